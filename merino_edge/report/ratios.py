"""Speed ratios against OPT-350M: at equal engine and format, and as shipped. The two kinds are never mixed."""

from collections.abc import Sequence
from dataclasses import dataclass

from merino_edge.records.compare import Ratio, row_ratio
from merino_edge.records.schema import Record
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
    """Ratios where engine with version, format, dialect, cache and machine are the same on both sides.

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
    """The most cautious claim: of equal decode ratios an undisturbed one, in fp32, least cached, of the largest
    model."""
    def caution(one: Against) -> tuple[object, ...]:
        return bool(one.speed.flags), one.ours.precision != "fp32", one.cached, -(one.ours.params or 0)

    return min((each for each in ratios if each.decodes), key=caution, default=None)


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
                if key not in found or _more_cautious(each, found[key]):
                    found[key] = each
    return list(found.values())


def _more_cautious(one: Against, other: Against) -> bool:
    """Undisturbed, then the smaller ratio."""
    return (bool(one.speed.flags), one.speed.value) < (bool(other.speed.flags), other.speed.value)


def _decode_tok_s(series: Series | None) -> float:
    row = series.decode if series else None
    return row.tok_s or 0 if row else 0


def _form(series: Series) -> tuple[str, str, str, str | None]:
    return series.engine, series.precision, series.dialect, series.kv


def _against(ours: Series, theirs: Series) -> list[Against]:
    """Rows of the same test with equally many cached tokens."""
    base = {(row.test, row.cached): row for row in theirs.records}
    pairs = [(row, base.get((row.test, row.cached))) for row in ours.records]
    return [_pair(ours, theirs, row, other) for row, other in pairs if other is not None]


def _pair(ours: Series, theirs: Series, row: Record, other: Record) -> Against:
    fewer = theirs.params / ours.params if theirs.params and ours.params else None
    return Against(ours, theirs, row.test, row.cached, row_ratio(row, other), fewer, row.decodes)
