"""What a search sums up: for each budget, and for what a regime demands, a function that adds up over operators."""

from collections.abc import Callable, Mapping

from merino_edge.families.operators import Operator, flops, params
from merino_edge.prediction.cost_model import CostModel, Regime
from merino_edge.prediction.file_size import FIXED_FILE_MB
from merino_edge.prediction.memory import prepacking_peaks

ALSO = ("cached_", "opening_")  # before a budget's name: another sum that it limits
TIMED = {"decode_ms", "prefill_ms", "j_per_token"}  # the budgets that a regime bears on


def with_demands(
    given: Mapping[str, float], model: CostModel, regime: Regime, largest_table: Operator
) -> dict[str, float]:
    """The budgets, and where one is on time what keeps a decoder in the regime.

    max(a, b) <= limit is encoded as a <= limit and b <= limit (`ALSO`): memory while the backend opens and when all is
    in use, where a table is so large that they differ, and a step's latency in partial residency (`latency.Latency`).
    """
    limits = dict(given)
    if "memory_mb" in given and prepacking_peaks(largest_table, model.shape.precision):
        limits["opening_memory_mb"] = given["memory_mb"]
    if not TIMED & set(given):
        return limits
    ceiling = model.ceiling_mb(regime)
    if ceiling is not None:
        limits["cache_mb"] = ceiling
    if regime.residency == "partial" and "decode_ms" in given:
        limits["cached_decode_ms"] = given["decode_ms"]
    if regime.residency == "partial" and "j_per_token" in given:
        limits["cached_j_per_token"] = given["j_per_token"]
    return limits


def additive_measure(name: str, model: CostModel, regime: Regime) -> Callable[[list[Operator]], float | None]:
    """The function of a budget, or of a regime's demand, that adds up over operators, in its own unit."""
    decode, prefill, residency = regime.decode_threads, regime.prefill_threads, regime.residency
    measures: dict[str, Callable[[list[Operator]], float | None]] = {
        "decode_ms": lambda ops: model.decode_ms(ops, decode, residency),
        "cached_decode_ms": lambda ops: model.decode_ms(ops, decode, "resident"),
        "prefill_ms": lambda ops: model.prefill_ms(ops, prefill, residency),
        "memory_mb": lambda ops: model.in_use_mb(ops, regime.sessions),
        "opening_memory_mb": lambda ops: model.opening_mb(ops, regime.sessions),
        "cache_mb": model.read_mb,
        "flops_g": lambda ops: flops(ops) / 1e9,
        "params_m": lambda ops: params(ops) / 1e6,
        "file_mb": model.added_file_mb,
        "j_per_token": lambda ops: model.joules(model.decode_ms(ops, decode, residency)),
        "cached_j_per_token": lambda ops: model.joules(model.decode_ms(ops, decode, "resident")),
    }
    return measures[name]


def fixed_measure(name: str, model: CostModel) -> float:
    """What a budget loses whatever is chosen: the runtime's memory, the board's application."""
    fixed = {"memory_mb": model.runtime_mb, "opening_memory_mb": model.runtime_mb, "file_mb": FIXED_FILE_MB}
    return fixed.get(name, 0.0)
