"""What a search sums up: for each budget, and for what a regime demands, a function that adds up over operators."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from merino_edge.families.operators import Operator, flops, params
from merino_edge.prediction import predict as costs
from merino_edge.prediction.latency import Regime, Workload, ceiling_mb, decode_ms, prefill_ms, read_mb
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.board import MB as BYTES_PER_MB

ALSO = ("cached_", "opening_")  # before a budget's name: another sum that it limits
TIMED = {"decode_ms", "prefill_ms", "j_per_token"}  # the budgets that a regime bears on


def with_demands(
    given: Mapping[str, float], profile: DeviceProfile, work: Workload, regime: Regime, largest_table: Operator
) -> dict[str, float]:
    """The budgets, and where one is on time what keeps a decoder in the regime.

    What is the larger of two sums has two limits of one budget (`ALSO`): memory while the backend opens and when all is
    in use, where a table is so large that they differ, and where the caches hold a part, a step's time (`times.Run`).
    """
    limits = dict(given)
    if "memory_mb" in given and costs.piece_bytes(largest_table, work.precision) > costs.HEAP_BYTES:
        limits["opening_memory_mb"] = given["memory_mb"]
    if not TIMED & set(given):
        return limits
    ceiling = ceiling_mb(profile, work, regime)
    if ceiling is not None:
        limits["cache_mb"] = ceiling
    if regime.cache == "partly" and "decode_ms" in given:
        limits["cached_decode_ms"] = given["decode_ms"]
    if regime.cache == "partly" and "j_per_token" in given:
        limits["cached_j_per_token"] = given["j_per_token"]
    return limits


def additive_measure(
    name: str, profile: DeviceProfile, work: Workload, regime: Regime
) -> Callable[[list[Operator]], float | None]:
    """The function of a budget, or of a regime's demand, that adds up over operators, in its own unit."""
    within = replace(regime, cache="within")
    measures: dict[str, Callable[[list[Operator]], float | None]] = {
        "decode_ms": lambda ops: decode_ms(ops, profile, work, regime),
        "cached_decode_ms": lambda ops: decode_ms(ops, profile, work, within),
        "prefill_ms": lambda ops: prefill_ms(ops, profile, work, regime),
        "memory_mb": lambda ops: costs.resident_mb(ops, profile, work, regime),
        "opening_memory_mb": lambda ops: costs.opening_mb(ops, profile, work, regime),
        "cache_mb": lambda ops: read_mb(ops, profile, work),
        "flops_g": lambda ops: flops(ops) / 1e9,
        "params_m": lambda ops: params(ops) / 1e6,
        "file_mb": lambda ops: costs.file_part_mb(ops, work.precision),
        "j_per_token": lambda ops: costs.joules(decode_ms(ops, profile, work, regime), profile),
        "cached_j_per_token": lambda ops: costs.joules(decode_ms(ops, profile, work, within), profile),
    }
    return measures[name]


def fixed_measure(name: str, profile: DeviceProfile) -> float:
    """What a budget loses whatever is chosen: the runtime's memory, the board's application."""
    runtime_mb = profile.performance.runtime_mb.value
    file_mb = costs.FIXED_FILE_BYTES / BYTES_PER_MB
    return {"memory_mb": runtime_mb, "opening_memory_mb": runtime_mb, "file_mb": file_mb}.get(name, 0.0)
