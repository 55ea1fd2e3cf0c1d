"""The ratio of two speeds with its confidence interval; exchanging the sides gives the reciprocals.

The interval is `merino_bench.harness.interval`'s. Which rows may be compared is decided by `compare` and
`report.ratios`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from merino_bench.harness.interval import ratio_interval


@dataclass(frozen=True)
class Ratio:
    """value: mean speed over mean speed. low, high: the 95 % interval; None where a side has one repetition."""

    value: float
    low: float | None
    high: float | None


def speed_ratio(speeds: Sequence[float], base: Sequence[float]) -> Ratio:
    """Mean of `speeds` over mean of `base`: tok/s, one per repetition. The two samples are independent.

    The bootstrap always draws the sides in sorted order, so that exchanging them gives the reciprocals exactly.
    """
    value = mean(speeds) / mean(base)
    swapped = tuple(speeds) < tuple(base)
    interval = ratio_interval(base, speeds, False) if swapped else ratio_interval(speeds, base, False)
    if interval is None:
        return Ratio(value, None, None)
    low, high = (1 / interval[1], 1 / interval[0]) if swapped else interval
    return Ratio(value, low, high)
