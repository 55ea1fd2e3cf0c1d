"""The shipped boards that a bundle fits: free memory holds it, and the CPU is fast at its weight format."""

from collections.abc import Sequence

from merino_edge.families.operators import CPU_FORMATS, Operator
from merino_edge.prediction.formats import missing_isa
from merino_edge.prediction.latency import Regime, Workload
from merino_edge.prediction.predict import memory_mb, usual_prompt
from merino_edge.profiles.profile import DeviceProfile
from merino_edge.profiles.reading import list_profiles
from merino_runtime.bundle import Threads


def fitting_boards(
    operators: Sequence[Operator], precision: str, context: int, threads: Threads,
    profiles: Sequence[DeviceProfile] | None = None,
) -> tuple[str, ...]:  # fmt: skip
    """Ids of the `profiles` (default: the shipped ones) that the bundle fits, a prompt of half the context included.

    `threads`: the bundle's, since counts that differ open two sessions, each with a copy of the weights. float16 is for
    boards with a GPU.
    """
    work = Workload(precision, context, usual_prompt(context))
    return tuple(
        profile.id
        for profile in (list_profiles() if profiles is None else profiles)
        if (precision in CPU_FORMATS or profile.gpu)
        and not missing_isa(profile, precision)
        and memory_mb(operators, profile, work, sessions_of(threads, profile)) <= profile.memory.free_mb.value
    )


def sessions_of(threads: Threads, profile: DeviceProfile) -> Regime:
    """The thread counts that the runtime takes on this board: the bundle's, at most one per core; see `thread_counts`
    in `merino_runtime.backends.onnx_session`."""
    cores = int(profile.cpu.cores.value)
    decode = min(threads.decode or profile.performance.decode_threads.value, cores)
    return Regime(int(decode), int(min(threads.prefill or decode, cores)), "beyond")
