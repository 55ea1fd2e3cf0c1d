"""How tables and lines show prediction intervals, and why there is none."""

from collections.abc import Sequence

from merino_edge.prediction.cost_model import CostModel
from merino_edge.prediction.intervals import Interval, percent


def interval_line(costs: Sequence[CostModel]) -> str:
    """What the limits on latency and energy hold for, by one cost model per weight format."""
    said = []
    if any(each.decode_factors or each.prefill_factors for each in costs):
        share = percent(costs[0].confidence)
        said.append(f"the upper end of each {share} interval of latency and energy keeps its budget")
    for each in costs:
        factors = {"decode": each.decode_factors, "prefill": each.prefill_factors}
        without = [phase for phase, known in factors.items() if known is None]
        if without:
            which = "no interval" if len(without) == len(factors) else f"no {without[0]} interval"
            said.append(f"{which}: {each.on.why_no_interval()}")
    return "; ".join(dict.fromkeys(said))


def shown(interval: Interval | None, confidence: float | None = None) -> str:
    """In a cell behind the predicted value, with the confidence where it is given; nothing where there is none."""
    if not interval:
        return ""
    return f" ({number(interval[0])} to {number(interval[1])}{f', {percent(confidence)}' if confidence else ''})"


def number(value: float) -> str:
    """Three digits and more."""
    if value < 1:
        return f"{value:.3g}"
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
