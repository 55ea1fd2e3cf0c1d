"""What a graph costs on boards whose kind of core it was not written for, against one that was. By estimates alone: no
board has both timed."""

from collections.abc import Sequence

from merino_edge.families.operators import Core, Operator
from merino_edge.prediction.default_coefficients import estimated
from merino_edge.prediction.formats import core_of_board, has_cache
from merino_edge.prediction.latency import by_threads, latency
from merino_edge.profiles.coefficients import Dialect
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.bundle import Slower

LEAST_TIMES = 1.1  # less is within what an estimate may be off by
WRITTEN_FOR: dict[Core, Dialect] = {"dotprod": "fused", "plain": "plain"}


def slower_on(
    operators: Sequence[Operator], precision: str, context: int, core: Core, profiles: Sequence[DeviceProfile],
    kv: str | None = None,
) -> tuple[Slower, ...]:  # fmt: skip
    """The Arm boards on which a `fused` graph for `core` decodes slower than one for theirs, with how many times.

    `kv`: the format of the cache, None: that of the activations. Boards whose runtime does not take it are left out: an
    export for them is refused.
    """
    found = []
    for profile in profiles:
        own = core_of_board(profile)
        if profile.arch == "aarch64" and own != core and has_cache(profile.with_backend("onnxruntime"), kv):
            times = decode_ms(operators, precision, context, profile, core, kv)
            times /= decode_ms(operators, precision, context, profile, own, kv)
            if times >= LEAST_TIMES:
                found.append(Slower(profile.id, own, float(f"{times:.2g}")))
    return tuple(found)


def decode_ms(
    operators: Sequence[Operator], precision: str, context: int, profile: DeviceProfile, core: Core,
    kv: str | None = None,
) -> float:  # fmt: skip
    """ms of a decode step at a full cache, at the best thread count, of a `fused` graph that was written for `core`."""
    dialect = WRITTEN_FOR[core]
    return min(
        latency(operators, precision, [(1, context)], dialect, at, kv).streaming_ms
        for at in by_threads(estimated(profile, dialect)).values()
    )
