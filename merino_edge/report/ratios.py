"""Speeds against OPT-350M: at equal engine and format, and as shipped. The two kinds are never mixed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from merino_edge.records.schema import Record
from merino_edge.records.speed_ratio import Ratio, speed_ratio
from merino_edge.report.series import Series

PAPER_SPEED, PAPER_PARAMS = 4.9, 5.5
PAPER = "MeRino (arXiv 2403.07921), against OPT-350M on a Jetson Nano; published, not measured here"


@dataclass(frozen=True)
class Against:
    """One row against the reference's at the same test, on one machine. `params_ratio`: how many times fewer."""

    ours: Series
    theirs: Series
    test: str
    cached: int
    speed: Ratio
    params_ratio: float | None
    decodes: bool


def equal_ratios(series: Sequence[Series]) -> list[Against]:
    """Engine with its version, format, dialect and machine are the same on both sides. Where the reference was
    measured at several thread counts, the fastest counts: the ratio is then the smallest that can be said."""
    return _ratios(series, equal=True)


def shipped_ratios(series: Sequence[Series]) -> list[Against]:
    """Engine or format differs: what a user of the reference as it comes would see. Of each bundle its fastest form
    on our runtime and each machine, against each other form of the reference; the decode row that speaks for it,
    highest first."""
    fastest: dict[tuple[str, str], Series] = {}
    for one in series:
        ships = one.records[0].runs_on_onnxruntime and not one.is_reference
        if ships and _decode_tok_s(one) > _decode_tok_s(fastest.get((one.bundle, one.board))):
            fastest[one.bundle, one.board] = one
    references = [one for one in series if one.is_reference]
    found = [
        each for each in _ratios([*fastest.values(), *references], equal=False)
        if each.ours.decode and (each.test, each.cached) == (each.ours.decode.test, each.ours.decode.cached)
    ]  # fmt: skip
    return sorted(found, key=lambda each: -each.speed.value)


def headline_ratio(ratios: Sequence[Against]) -> Against | None:
    """Of the equal ratios on decode the one of the largest model, fp32 before others: the most cautious claim."""
    rows = [each for each in ratios if each.decodes]
    return min(rows, key=lambda one: (one.ours.precision != "fp32", one.cached, -(one.ours.params or 0)), default=None)


def _ratios(series: Sequence[Series], equal: bool) -> list[Against]:
    references = [one for one in series if one.is_reference]
    found: dict[tuple[object, ...], Against] = {}
    for ours in series:
        if ours.is_reference:
            continue
        for theirs in references:
            alike = _form(ours) == _form(theirs)
            if ours.board != theirs.board or alike != equal:
                continue
            for each in _against(ours, theirs):
                key = id(ours), _form(theirs), each.test, each.cached
                if key not in found or each.speed.value < found[key].speed.value:
                    found[key] = each
    return list(found.values())


def _decode_tok_s(series: Series | None) -> float:
    row = series.decode if series else None
    return row.tok_s or 0 if row and not row.flags else 0


def _form(series: Series) -> tuple[str, str, str]:
    return series.engine, series.precision, series.dialect


def _against(ours: Series, theirs: Series) -> list[Against]:
    """Undisturbed rows of the same test and the same depth."""
    base = {(row.test, row.cached): row for row in theirs.records if not row.flags}
    pairs = [(row, base.get((row.test, row.cached))) for row in ours.records if not row.flags]
    return [_pair(ours, theirs, row, other) for row, other in pairs if other is not None]


def _pair(ours: Series, theirs: Series, row: Record, other: Record) -> Against:
    fewer = theirs.params / ours.params if theirs.params and ours.params else None
    return Against(ours, theirs, row.test, row.cached, _ratio(row, other), fewer, row.decodes)


def _ratio(row: Record, other: Record) -> Ratio:
    """The harness's own where it measured the two in turn: its interval then leaves out the machine's drift."""
    found = speed_ratio(row.speeds, other.speeds)
    same = row.ratio_to_baseline is not None and math.isclose(row.ratio_to_baseline, found.value, rel_tol=1e-9)
    if same and row.ratio_interval is not None:
        return Ratio(found.value, *row.ratio_interval)
    return found
