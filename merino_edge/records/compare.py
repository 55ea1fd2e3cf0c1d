"""Compare two sets of records, A before and B after: which rows became faster or slower, and which show no difference.

A row is judged by the confidence interval of its speed ratio. It is not judged if a side was disturbed or has fewer
than three processes. If the sides are exchanged, the ratios are the reciprocals. `reading` reads the files.

Rows of one run were interleaved, so their processes pair (`merino_bench.harness.pairs`). Rows of two runs are
independent samples of process means.
"""

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from math import exp, log, sqrt
from pathlib import Path
from statistics import geometric_mean, mean, variance

from scipy.stats import t as student

from merino_bench.harness.pairs import LEAST_PAIRS, LEVEL, STEADY, paired_ratio, select_processes
from merino_edge.records.reading import read_records
from merino_edge.records.schema import Record
from merino_runtime.errors import MerinoError

LEAST_PROCESSES = LEAST_PAIRS  # on each side; of fewer there is no interval
SMALLEST_DIFFERENCE = 0.02  # of the speed; two processes with the same bundle differ by up to this
LARGEST_DOUBT = 0.05  # of the speed; an interval around 1 that reaches further decides nothing
MAX_LISTED_TITLES = 4  # rows that a message names; the others are counted
NO_DIFFERENCE, UNDECIDED, NOT_JUDGED = "no difference", "undecided", "not judged"


@dataclass(frozen=True)
class Ratio:
    """A ratio of geometric means over processes.

    low, high: the 95 % interval; None if a side has fewer than three processes. flags: what disturbed the processes
    that count; empty where enough undisturbed ones remained. turns: (that count, that were measured); None between rows
    of two runs.
    """

    value: float
    low: float | None
    high: float | None
    flags: tuple[str, ...] = ()
    turns: tuple[int, int] | None = None


def row_ratio(row: Record, base: Record) -> Ratio:
    """Return the speed ratio of `row` to `base`, both measured: over pairs if their runs were interleaved, else of
    independent rows."""
    if row.run is None or row.run != base.run:
        unequal = ({*row.flags} ^ {*base.flags}) & {*STEADY}
        flags = sorted({*row.disturbances, *base.disturbances, *unequal})
        return independent_ratio(row.speeds, base.speeds, tuple(flags))
    selection = select_processes(row.flags_by_place, base.flags_by_place)
    speeds, base_speeds = ([side.process_speeds[place] for place in selection.places] for side in (row, base))
    ratio = paired_ratio(speeds, base_speeds)
    low, high = ratio.interval or (None, None)
    return Ratio(ratio.value, low, high, tuple(selection.flags), (len(selection.places), selection.turns))


def independent_ratio(speeds: Sequence[float], base: Sequence[float], flags: tuple[str, ...] = ()) -> Ratio:
    """Return the ratio of `speeds` to `base`, in tok/s, one per process, with Welch's t interval on the logs (Welch,
    Biometrika 34, 1947)."""
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


@dataclass(frozen=True)
class Pair:
    """One test measured in A and in B. `ratio` is B's speed over A's: above 1, B is faster."""

    bundle: str
    engine: str
    precision: str
    test: str
    depth: int
    threads: int | None
    a_tok_s: float | None  # geometric mean over processes; None where the side failed
    b_tok_s: float | None
    ratio: Ratio | None
    verdict: str  # faster, slower, no difference, undecided, not judged
    reason: str  # why the pair was not judged; empty where it was


@dataclass(frozen=True)
class Comparison:
    """only_a, only_b: titles of rows without a partner. notes: differences of the sides that pairing ignores."""

    pairs: tuple[Pair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        return json.dumps({"schema": 2, "smallest_difference": SMALLEST_DIFFERENCE, **asdict(self)}, indent=1) + "\n"


def compare_files(before: Path, after: Path, say: Callable[[str], None] = lambda _: None) -> Comparison:
    """Compare two files of records. `say` gets the notes of reading."""
    return compare(read_records([before], say), read_records([after], say))


def compare(a: Sequence[Record], b: Sequence[Record]) -> Comparison:
    """Pair the rows of A and B, and judge each pair.

    Two rows are partners if bundle, engine without its version, precision, dialect, cache, test, depth and threads (of
    prefill in its rows) agree. Rows without a partner are paired in a second pass, for failed rows, by the keys that a
    failed row has. Rows of one side with the same key are pooled. Raise MerinoError if no row has a partner.
    """
    pairs: list[Pair] = []
    left_a, left_b = list(a), list(b)
    for key_of, only_failed in ((_conditions, False), (_keys_of_a_failed_row, True)):
        groups_a, groups_b = _groups(left_a, key_of), _groups(left_b, key_of)
        shared = [
            key for key in groups_a if key in groups_b
            and (not only_failed or any(row.failure for row in (*groups_a[key], *groups_b[key])))
        ]  # fmt: skip
        pairs += [pair_of(groups_a[key], groups_b[key]) for key in shared]
        left_a = [row for row in left_a if key_of(row) not in shared]
        left_b = [row for row in left_b if key_of(row) not in shared]
    only_a, only_b = _titles(left_a), _titles(left_b)
    if not pairs:
        raise MerinoError(
            "A and B have no row in common: the same bundle, engine, format, test, depth and threads. "
            f"A has {_few(only_a)}. B has {_few(only_b)}. Measure both with the same options"
        )
    return Comparison(tuple(pairs), only_a, only_b, _notes(a, b))


def pair_of(a: Sequence[Record], b: Sequence[Record]) -> Pair:
    """Judge pooled rows of one key. A side that has only disturbed rows is shown without a verdict."""
    rows_a, rows_b = ([row for row in rows if not row.disturbances] or rows for rows in (a, b))
    sides = (("A", _disturbances(rows_a, rows_b)), ("B", _disturbances(rows_b, rows_a)))
    reason = "; ".join(f"{side}: {', '.join(flags)}" for side, flags in sides if flags)
    speeds_a, speeds_b = ([speed for row in rows for speed in row.speeds] for rows in (rows_a, rows_b))
    ratio = independent_ratio(speeds_b, speeds_a) if speeds_a and speeds_b else None
    if ratio is not None and not reason and ratio.low is None:
        reason = f"fewer than {LEAST_PROCESSES} processes have no interval, measure with -r 5"
    first = a[0]
    return Pair(
        bundle=first.bundle, engine=first.engine_name, precision=first.precision or "-", test=first.test,
        depth=first.depth or 0, threads=first.timed_threads,
        a_tok_s=geometric_mean(speeds_a) if speeds_a else None, b_tok_s=geometric_mean(speeds_b) if speeds_b else None,
        ratio=ratio, verdict=NOT_JUDGED if reason or ratio is None else verdict_of(ratio), reason=reason,
    )  # fmt: skip


def verdict_of(ratio: Ratio) -> str:
    """Return `faster` or `slower` if the interval lies on one side of 1 and the ratio differs by SMALLEST_DIFFERENCE or
    more.

    Return `no difference` if the interval rules out a difference that matters (LARGEST_DOUBT), up or down, or lies on
    one side with a smaller ratio, and `undecided` if it contains 1 and also such a difference.
    """
    assert ratio.low is not None and ratio.high is not None
    if ratio.low <= 1 <= ratio.high:
        return NO_DIFFERENCE if ratio.low >= 1 - LARGEST_DOUBT and ratio.high <= 1 / (1 - LARGEST_DOUBT) else UNDECIDED
    if 1 - SMALLEST_DIFFERENCE < ratio.value < 1 / (1 - SMALLEST_DIFFERENCE):
        return NO_DIFFERENCE
    return "faster" if ratio.value > 1 else "slower"


def check_not_slower(comparison: Comparison, share: float) -> None:
    """Raise MerinoError unless every pair was judged and its interval rules out that it fell by more than `share`."""
    pairs, allowed = comparison.pairs, f"slower by more than {100 * share:g} %"
    slower = [
        f"{title(pair)} by {1 - pair.ratio.value:.1%}" for pair in pairs
        if pair.verdict == "slower" and pair.ratio and pair.ratio.value < 1 - share
    ]  # fmt: skip
    doubtful = [
        f"{title(pair)} ({pair.ratio.low:.2f} to {pair.ratio.high:.2f})" for pair in pairs
        if pair.ratio and pair.ratio.low is not None and pair.ratio.low < 1 - share
    ]  # fmt: skip
    broken, unjudged = (
        [f"{title(pair)} ({pair.reason})" for pair in chosen]
        for chosen in (
            [pair for pair in pairs if pair.a_tok_s is not None and pair.b_tok_s is None],
            [pair for pair in pairs if pair.verdict == NOT_JUDGED],
        )
    )
    for fault, titles, remedy in (
        (allowed, slower, "Make B faster, or allow more"),
        ("measured in A, not in B", broken, "Measure it in B too"),
        ("not judged", unjudged, "Measure again on a quiet machine"),
        (f"undecided whether {allowed}", doubtful, "Measure both again on a quiet machine, with -r 10"),
    ):
        if titles:
            raise MerinoError(f"{fault}: {'; '.join(titles)}. {remedy}")


def title(pair: Pair) -> str:
    return f"{pair.bundle} {pair.precision} {pair.test}"


def _conditions(row: Record) -> Hashable:
    where = row.bundle, row.engine_name, row.precision, row.dialect, row.kv
    return *where, row.test, row.depth or 0, row.timed_threads, bool(row.failure)


def _keys_of_a_failed_row(row: Record) -> Hashable:
    """Return a key without engine and threads, which a failed row does not name. Such a pair is not judged."""
    return row.bundle, row.precision, row.test, row.depth or 0


def _groups(rows: Sequence[Record], key_of: Callable[[Record], Hashable]) -> dict[Hashable, list[Record]]:
    groups: dict[Hashable, list[Record]] = {}
    for row in rows:
        groups.setdefault(key_of(row), []).append(row)
    return groups


def _disturbances(rows: Sequence[Record], others: Sequence[Record]) -> list[str]:
    """Return what disturbed one side, including throttling and low power if the other side was not in that state."""
    in_state, in_others = ({flag for row in side for flag in row.flags} for side in (rows, others))
    flags = [flag for row in rows for flag in row.disturbances]
    return list(dict.fromkeys([*flags, *(flag for flag in STEADY if flag in in_state - in_others)]))


def _titles(rows: Sequence[Record]) -> tuple[str, ...]:
    titles = (
        f"{row.bundle} {row.precision or '-'}{f' {row.kv} cache' if row.kv else ''} {row.test}, {row.engine_name}, "
        f"{row.timed_threads or '-'} threads" + (f" ({row.flags[0]})" if row.failure else "")
        for row in rows
    )
    return tuple(dict.fromkeys(titles))


def _notes(a: Sequence[Record], b: Sequence[Record]) -> tuple[str, ...]:
    """Return the differences between A and B that pairing ignores: the machine and the engine's version."""
    notes = []
    for what, attribute in (("machine", "board"), ("engine", "engine")):
        in_a, in_b = ({getattr(row, attribute) for row in rows if not row.failure} for rows in (a, b))
        if in_a != in_b:
            words = (", ".join(sorted(values)) or "none" for values in (in_a, in_b))
            notes.append(f"A and B differ in {what}: {' / '.join(words)}")
    return tuple(notes)


def _few(titles: Sequence[str]) -> str:
    more = f" and {len(titles) - MAX_LISTED_TITLES} more" if len(titles) > MAX_LISTED_TITLES else ""
    return "; ".join(titles[:MAX_LISTED_TITLES]) + more
