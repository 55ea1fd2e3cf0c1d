"""The shipped boards that a bundle fits: free memory holds it, and the CPU is fast at its weight format."""

from collections.abc import Sequence

from merino_edge.families.operators import CPU_FORMATS, Core, Operator
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.formats import missing_isa
from merino_edge.prediction.other_core import slower_on
from merino_edge.prediction.shape import InferenceShape, default_prompt
from merino_edge.profiles.profile import DeviceProfile
from merino_edge.profiles.reading import list_profiles
from merino_runtime.bundle import Threads


def fitting_boards(
    operators: Sequence[Operator], precision: str, context: int, threads: Threads,
    profiles: Sequence[DeviceProfile] | None = None, core: Core | None = None,
) -> tuple[str, ...]:  # fmt: skip
    """Ids of the `profiles` (default: the shipped ones) that the bundle fits, a prompt of half the context included.

    `core`: the kind of core that its graph is for, and boards where that makes it slower are left out; None: any.
    `threads`: the bundle's, since counts that differ open two sessions, each with a copy of the weights. float16 is for
    boards with a GPU.
    """
    shape = InferenceShape(precision, context, default_prompt(context))

    def has_memory(profile: DeviceProfile) -> bool:
        needed_mb = cost_model(profile, shape).memory_mb(operators, sessions_of(threads, profile))
        return needed_mb <= profile.memory.free_mb.value

    return tuple(
        profile.id
        for profile in (list_profiles() if profiles is None else profiles)
        if (precision in CPU_FORMATS or profile.gpu)
        and not missing_isa(profile, precision)
        and not (core and slower_on(operators, precision, context, core, [profile]))
        and has_memory(profile)
    )


def sessions_of(threads: Threads, profile: DeviceProfile) -> int:
    """How many sessions the runtime opens on this board: two where the bundle's thread counts, at most one per core,
    differ. See `thread_counts` in `merino_runtime.backends.onnx_session`."""
    cores = int(profile.cpu.cores.value)
    decode = min(threads.decode or profile.performance.decode_threads.value, cores)
    return 1 if min(threads.prefill or decode, cores) == decode else 2
