"""Speed ratios against OPT-350M: at equal engine and format, and as shipped. The two kinds are never mixed."""

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
    """One row and the reference's for the same test on the same machine.

    cached: tokens in the cache before the first timed one. params_ratio: the reference's parameters over ours.
    """

    ours: Series
    theirs: Series
    test: str
    cached: int
    speed: Ratio
    params_ratio: float | None
    decodes: bool


def equal_ratios(series: Sequence[Series]) -> list[Against]:
    """Ratios where engine with version, format, dialect and machine are the same on both sides.

    If the reference was measured with several thread counts, its fastest row counts: the ratio is the smallest one.
    """
    return _ratios(series, equal=True)


def shipped_ratios(series: Sequence[Series]) -> list[Against]:
    """Ratios where engine or format differ, as for a user who runs the reference as published; highest first.

    Each bundle is represented by its fastest form on our runtime on each machine, and that form by its
    representative decode row. It is compared with every other form of the reference.
    """
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
    """The most cautious claim: of equal decode ratios the one in fp32, least cached, then of the largest model."""
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
    """Undisturbed rows of the same test with equally many cached tokens."""
    base = {(row.test, row.cached): row for row in theirs.records if not row.flags}
    pairs = [(row, base.get((row.test, row.cached))) for row in ours.records if not row.flags]
    return [_pair(ours, theirs, row, other) for row, other in pairs if other is not None]


def _pair(ours: Series, theirs: Series, row: Record, other: Record) -> Against:
    fewer = theirs.params / ours.params if theirs.params and ours.params else None
    return Against(ours, theirs, row.test, row.cached, _ratio(row, other), fewer, row.decodes)


def _ratio(row: Record, other: Record) -> Ratio:
    """The harness's own interval where it measured both sides in turn: that interval excludes the machine's drift."""
    found = speed_ratio(row.speeds, other.speeds)
    same = row.ratio_to_baseline is not None and math.isclose(row.ratio_to_baseline, found.value, rel_tol=1e-9)
    if same and row.ratio_interval is not None:
        return Ratio(found.value, *row.ratio_interval)
    return found
