"""How much faster: the ratio of two speeds with its interval, the same whichever side comes first.

The interval is the harness's (`merino_bench.harness.interval`); which rows may be compared at all is `compare`'s and
`report.ratios`'.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from merino_bench.harness.interval import ratio_interval


@dataclass(frozen=True)
class Ratio:
    """value: mean speed over mean speed; low, high: the 95 % interval, None where a side has one repetition."""

    value: float
    low: float | None
    high: float | None


def speed_ratio(speeds: Sequence[float], base: Sequence[float]) -> Ratio:
    """Mean of `speeds` over mean of `base`, tok/s per repetition each; the sides are independent.

    Exchanging the sides gives the reciprocals, since the sides are drawn in one order.
    """
    value = mean(speeds) / mean(base)
    swapped = tuple(speeds) < tuple(base)
    interval = ratio_interval(base, speeds, False) if swapped else ratio_interval(speeds, base, False)
    if interval is None:
        return Ratio(value, None, None)
    low, high = (1 / interval[1], 1 / interval[0]) if swapped else interval
    return Ratio(value, low, high)
