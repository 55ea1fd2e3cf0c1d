"""Two sets of records, A before and B after: which rows became faster, slower, or show no difference.

A row is judged by an interval over repetitions (`ratio`), never where a side was disturbed. Left to others: reading
records (`records`), and ratios between different bundles (`report`).
"""

import json
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from merino_edge.records.record import Record, read_records
from merino_edge.records.speed_ratio import Ratio, speed_ratio
from merino_runtime.errors import MerinoError

SMALLEST_DIFFERENCE = 0.02  # less than this between two processes of one bundle is not the bundle's doing
SHOWN_TITLES = 4  # in a message
NO_DIFFERENCE, NOT_JUDGED = "no difference", "not judged"


@dataclass(frozen=True)
class Pair:
    """The same test in A and B. `ratio` is B's speed over A's: above 1, B is faster."""

    bundle: str
    engine: str
    precision: str
    test: str
    depth: int
    threads: int | None
    a_tok_s: float | None
    b_tok_s: float | None
    ratio: Ratio | None
    verdict: str  # faster, slower, no difference, not judged
    reason: str  # why it was not judged, else empty


@dataclass(frozen=True)
class Comparison:
    """only_a, only_b: rows without a partner, for people. notes: what else makes the sides differ."""

    pairs: tuple[Pair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    notes: tuple[str, ...]

    def slower_than(self, share: float) -> list[Pair]:
        """Pairs judged slower whose speed fell by more than `share` (0.05: to less than 95 %)."""
        return [pair for pair in self.pairs if pair.verdict == "slower" and pair.ratio and pair.ratio.value < 1 - share]

    def to_json(self) -> str:
        return json.dumps({"schema": 1, "smallest_difference": SMALLEST_DIFFERENCE, **asdict(self)}, indent=1) + "\n"


def compare_files(before: Path, after: Path) -> Comparison:
    return compare(read_records([before]), read_records([after]))


def compare(a: Sequence[Record], b: Sequence[Record]) -> Comparison:
    """Rows are partners where bundle, engine without its version, precision, dialect, test, depth and threads agree.

    Bundles agree by name; what is left then by geometry, where the records carry one. Rows of one side that agree
    are taken together. Raises MerinoError where nothing has a partner.
    """
    pairs: list[Pair] = []
    left_a, left_b = list(a), list(b)
    for key_of in (_by_name, _by_geometry, _by_what_a_failed_row_knows):
        groups_a, groups_b = _groups(left_a, key_of), _groups(left_b, key_of)
        shared = [key for key in groups_a if key in groups_b and _may_pair(groups_a[key], groups_b[key])]
        pairs += [pair_of(groups_a[key], groups_b[key]) for key in shared]
        left_a = [row for row in left_a if key_of(row) not in shared]
        left_b = [row for row in left_b if key_of(row) not in shared]
    only_a, only_b = _titles(left_a), _titles(left_b)
    if not pairs:
        raise MerinoError(
            "A and B have no row in common: the same bundle (or geometry), engine, format, test, depth and threads. "
            f"A has {_few(only_a)}. B has {_few(only_b)}. Measure both with the same options"
        )
    return Comparison(tuple(pairs), only_a, only_b, _notes(a, b))


def pair_of(a: Sequence[Record], b: Sequence[Record]) -> Pair:
    """Disturbed rows are shown and not judged; where a side has others as well, those are taken."""
    rows_a, rows_b = _undisturbed(a), _undisturbed(b)
    reason = "; ".join(f"{side}: {flags}" for side, rows in (("A", rows_a), ("B", rows_b)) if (flags := _flags(rows)))
    speeds_a, speeds_b = _speeds(rows_a), _speeds(rows_b)
    ratio = speed_ratio(speeds_b, speeds_a) if speeds_a and speeds_b else None
    if ratio is not None and not reason and ratio.low is None:
        reason = "one repetition has no interval, measure with -r 5"
    verdict = NOT_JUDGED if reason or ratio is None else verdict_of(ratio)
    one = a[0]
    names = dict.fromkeys([one.bundle, b[0].bundle])
    return Pair(
        " / ".join(names), one.engine_name, one.precision or "-", one.test, one.depth or 0, one.threads,
        mean(speeds_a) if speeds_a else None, mean(speeds_b) if speeds_b else None, ratio, verdict, reason,
    )  # fmt: skip


def verdict_of(ratio: Ratio) -> str:
    """No difference where the interval holds 1 or the ratio is within the smallest difference, up or down."""
    assert ratio.low is not None and ratio.high is not None
    if ratio.low <= 1 <= ratio.high or 1 - SMALLEST_DIFFERENCE < ratio.value < 1 / (1 - SMALLEST_DIFFERENCE):
        return NO_DIFFERENCE
    return "faster" if ratio.value > 1 else "slower"


def parse_percent(text: str) -> float:
    """"5%" -> 0.05. The sign is required: 0.05 could mean two things. Raises ValueError with what is allowed."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    if not found or not 0 <= float(found.group(1)) < 100:
        raise ValueError(f"{text!r} is no share of the speed, allowed: 0% to below 100%, such as 5%")
    return float(found.group(1)) / 100


def check_not_slower(comparison: Comparison, share: float) -> None:
    """Raise MerinoError where a row fell by more than `share`, where B failed and A did not, or where no row could
    be judged."""
    slower = [f"{title(pair)} by {1 - pair.ratio.value:.1%}" for pair in comparison.slower_than(share) if pair.ratio]
    if slower:
        raise MerinoError(f"slower by more than {100 * share:g} %: {'; '.join(slower)}")
    broken = [pair for pair in comparison.pairs if pair.a_tok_s is not None and pair.b_tok_s is None]
    if broken:
        raise MerinoError(f"measured in A, not in B: {_reasons(broken)}")
    if all(pair.verdict == NOT_JUDGED for pair in comparison.pairs):
        raise MerinoError(f"no row could be judged: {_reasons(comparison.pairs)}. Measure again on a quiet machine")


def title(pair: Pair) -> str:
    return f"{pair.bundle} {pair.precision} {pair.test}"


def _by_name(row: Record) -> Hashable:
    return row.bundle, *_conditions(row)


def _by_geometry(row: Record) -> Hashable:
    """None, which partners nothing, where the record has no geometry."""
    if row.architecture is None:
        return None
    return json.dumps([row.family, row.architecture], sort_keys=True), *_conditions(row)


def _by_what_a_failed_row_knows(row: Record) -> Hashable:
    """Neither engine nor threads."""
    return row.bundle, row.precision, row.test, row.depth or 0


def _conditions(row: Record) -> tuple[Hashable, ...]:
    return row.engine_name, row.precision, row.dialect, row.test, row.depth or 0, row.threads, bool(row.failure)


def _may_pair(a: Sequence[Record], b: Sequence[Record]) -> bool:
    """Rows measured under unequal conditions partner only where one failed, and then are not judged."""
    alike = {_conditions(row) for row in a} == {_conditions(row) for row in b}
    return alike or any(row.failure for row in (*a, *b))


def _groups(rows: Sequence[Record], key_of: Callable[[Record], Hashable]) -> dict[Hashable, list[Record]]:
    groups: dict[Hashable, list[Record]] = {}
    for row in rows:
        key = key_of(row)
        if key is not None:
            groups.setdefault(key, []).append(row)
    return groups


def _reasons(pairs: Sequence[Pair]) -> str:
    return "; ".join(f"{title(pair)} ({pair.reason})" for pair in pairs)


def _undisturbed(rows: Sequence[Record]) -> list[Record]:
    return [row for row in rows if not row.flags] or list(rows)


def _flags(rows: Sequence[Record]) -> str:
    return ", ".join(dict.fromkeys(flag for row in rows for flag in row.flags))


def _speeds(rows: Sequence[Record]) -> list[float]:
    return [speed for row in rows for speed in row.speeds]


def _titles(rows: Sequence[Record]) -> tuple[str, ...]:
    said = (
        f"{row.bundle} {row.precision or '-'} {row.test}, {row.engine_name}, "
        f"{row.threads or '-'} threads" + (f" ({row.flags[0]})" if row.failure else "")
        for row in rows
    )
    return tuple(dict.fromkeys(said))


def _notes(a: Sequence[Record], b: Sequence[Record]) -> tuple[str, ...]:
    """What the key leaves out and a reader should know."""
    notes = []
    for what, of in (("machine", lambda row: row.board), ("engine", lambda row: row.engine)):
        ours, theirs = ({of(row) for row in rows if not row.failure} for rows in (a, b))
        if ours != theirs:
            notes.append(f"A and B differ in {what}: {_joined(ours)} / {_joined(theirs)}")
    return tuple(notes)


def _few(titles: Sequence[str]) -> str:
    more = f" and {len(titles) - SHOWN_TITLES} more" if len(titles) > SHOWN_TITLES else ""
    return "; ".join(titles[:SHOWN_TITLES]) + more


def _joined(words: set[str]) -> str:
    return ", ".join(sorted(words)) or "none"
