"""The shipped boards that a bundle fits: one of its backends is there, computes its weight format fast, and free memory
holds it."""

from collections.abc import Collection, Sequence

from merino_edge.families.operators import Operator, weight_bytes
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.formats import has_cache, is_predicted, missing_isa
from merino_edge.prediction.shape import InferenceShape, default_prompt
from merino_edge.profiles.profile import DeviceProfile
from merino_edge.profiles.reading import list_profiles
from merino_runtime.backends.threads import prefill_choice
from merino_runtime.bundle import Threads


def fitting_boards(
    operators: Sequence[Operator], precision: str, context: int, threads: Threads,
    backends: Sequence[str], profiles: Sequence[DeviceProfile] | None = None, kv: str | None = None,
    slower: Collection[str] = (),
) -> tuple[str, ...]:  # fmt: skip
    """Ids of the `profiles` (default: the shipped ones) that the bundle fits, a prompt of half the context included.

    `threads`: the bundle's, since counts that differ open two sessions, each with a copy of the weights. `backends`:
    those that run the bundle's graph. `kv`: the format of the cache; None: the activations'. `slower`: ids of boards
    with the other kind of core, on which the graph decodes slower than a graph for that kind: these are left out.
    """
    shape, weights = InferenceShape(precision, context, default_prompt(context), kv), weight_bytes(operators, precision)

    def fits(profile: DeviceProfile) -> bool:
        if not is_predicted(profile, precision) or missing_isa(profile, precision) or not has_cache(profile, kv):
            return False
        if profile.backend == "onnxruntime" and profile.id in slower:
            return False
        needed_mb = cost_model(profile, shape).memory_mb(operators, sessions_of(threads, profile, weights))
        return needed_mb <= profile.memory.free_mb.value

    return tuple(
        profile.id
        for profile in (list_profiles() if profiles is None else profiles)
        if any(fits(profile.with_backend(name)) for name in profile.backends if name in backends)
    )


def sessions_of(threads: Threads, profile: DeviceProfile, weights: int) -> int:
    """How many sessions the runtime opens on this board for `weights` bytes: in ONNX Runtime two where the thread
    counts, at most one per core, differ. As `merino_runtime.backends.threads` counts them."""
    if profile.backend != "onnxruntime":
        return 1
    cores = int(profile.cpu.cores.value)
    decode = min(threads.decode or profile.performance.onnxruntime.decode_threads.value, cores)
    return 1 if min(threads.prefill or prefill_choice(weights, decode, cores), cores) == decode else 2
