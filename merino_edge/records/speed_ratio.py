"""The ratio of two rows' speeds with its confidence interval; exchanging the sides gives the reciprocals.

Rows of one run took turns, so their processes pair (`merino_bench.harness.pairs`). Rows of two runs are independent
samples of process means. Which rows may be compared is decided by `compare` and `report.ratios`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import mean, variance

from scipy.stats import t as student

from merino_bench.harness.pairs import LEAST_PAIRS, LEVEL, STEADY, chosen, paired_ratio
from merino_edge.records.schema import Record

LEAST_PROCESSES = LEAST_PAIRS  # on each side; of fewer there is no interval


@dataclass(frozen=True)
class Ratio:
    """A ratio of geometric means over processes.

    low, high: the 95 % interval; None where a side has fewer than three processes. flags: what disturbed the processes
    that count; empty where enough undisturbed ones remained. turns: (that count, that were measured); None between
    rows of two runs.
    """

    value: float
    low: float | None
    high: float | None
    flags: tuple[str, ...] = ()
    turns: tuple[int, int] | None = None


def row_ratio(row: Record, base: Record) -> Ratio:
    """Speed of `row` over that of `base`, both measured: of pairs where the two took turns, else of independent
    rows."""
    if row.run is None or row.run != base.run:
        unequal = ({*row.flags} ^ {*base.flags}) & {*STEADY}
        flags = sorted({*row.disturbances, *base.disturbances, *unequal})
        return independent_ratio(row.speeds, base.speeds, tuple(flags))
    choice = chosen(row.flags_by_place, base.flags_by_place)
    speeds, base_speeds = row.process_speeds, base.process_speeds
    found = paired_ratio([speeds[place] for place in choice.places], [base_speeds[place] for place in choice.places])
    low, high = found.interval or (None, None)
    return Ratio(found.value, low, high, tuple(choice.flags), (len(choice.places), choice.turns))


def independent_ratio(speeds: Sequence[float], base: Sequence[float], flags: tuple[str, ...] = ()) -> Ratio:
    """`speeds` over `base`: tok/s, one per process. Welch's t interval on the logs (Welch, Biometrika 34, 1947)."""
    logs, base_logs = ([log(speed) for speed in side] for side in (speeds, base))
    middle = mean(logs) - mean(base_logs)
    if min(len(logs), len(base_logs)) < LEAST_PROCESSES:
        return Ratio(exp(middle), None, None, flags)
    parts = [variance(side) / len(side) for side in (logs, base_logs)]
    error = sqrt(sum(parts))
    if not error:
        return Ratio(exp(middle), exp(middle), exp(middle), flags)
    shares = (part**2 / (len(side) - 1) for part, side in zip(parts, (logs, base_logs), strict=True))
    half = error * float(student.ppf((1 + LEVEL) / 2, error**4 / sum(shares)))
    return Ratio(exp(middle), exp(middle - half), exp(middle + half), flags)
