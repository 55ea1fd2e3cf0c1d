"""Records grouped by what was measured: a bundle, an engine, a format, a machine; and speed ratios against OPT-350M.

Ratios at equal engine and format and ratios as shipped are never mixed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from merino_edge.families.operators import FORMATS, Operator, params
from merino_edge.families.zoo import model
from merino_edge.records.compare import Ratio, row_ratio
from merino_edge.records.schema import Record

REFERENCE = "OPT-350M"
REFERENCE_PARAMS = params(model("opt-350m").geometry.operators)


@dataclass(frozen=True)
class Series:
    """All rows of one bundle on one engine. `label` is unique in a report."""

    label: str
    bundle: str
    engine: str
    precision: str
    dialect: str
    kv: str | None  # the cache's format where it is quantized
    weights: str
    threads: int | None
    board: str
    records: tuple[Record, ...]

    @property
    def engine_name(self) -> str:
        return self.records[0].engine_name

    @property
    def params(self) -> int | None:
        return self.records[0].params

    @property
    def is_reference(self) -> bool:
        """Recognized by the exact count of parameters, since a bundle's name is free."""
        return self.params == REFERENCE_PARAMS

    @property
    def context(self) -> int | None:
        return self.records[0].context

    @property
    def operators(self) -> list[Operator] | None:
        """The operators of the records' architecture; None if it or the format's size in memory is unknown."""
        geometry = self.records[0].geometry
        return geometry.operators if geometry and self.precision in FORMATS else None

    @property
    def decode(self) -> Record | None:
        """The representative decode row: undisturbed, least cached, then longest."""
        rows = [row for row in self.records if row.decodes]
        return min(rows, key=lambda row: (bool(row.disturbances), row.cached, -row.tokens), default=None)

    @property
    def prefill(self) -> Record | None:
        """The representative prefill row, chosen likewise: the longest prompt into an empty cache."""
        rows = [row for row in self.records if not row.decodes]
        return min(rows, key=lambda row: (bool(row.disturbances), row.cached, -row.tokens), default=None)

    @property
    def representatives(self) -> list[Record]:
        """The rows that a short report shows."""
        return [row for row in (self.prefill, self.decode) if row is not None]

    @property
    def peak_rss_mb(self) -> float | None:
        return max((row.peak_rss_mb for row in self.records if row.peak_rss_mb), default=None)


def series_of(records: Iterable[Record]) -> list[Series]:
    """Group the records into series, in their order. Failed rows belong to none."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    for row in records:
        if row.failure is None:
            key = row.bundle, row.engine, row.precision, row.dialect, row.kv, row.weights, row.threads, row.board
            groups.setdefault(key, []).append(row)
    labels = distinct_labels([rows[0] for rows in groups.values()])
    return [
        Series(
            label=label, bundle=first.bundle, engine=first.engine or "-", precision=first.precision or "-",
            dialect=first.dialect or "", kv=first.kv, weights=first.weights or "unknown", threads=first.threads,
            board=first.board, records=tuple(rows),
        )
        for label, rows in zip(labels, groups.values(), strict=True) for first in rows[:1]
    ]  # fmt: skip


def distinct_labels(rows: Sequence[Record]) -> list[str]:
    """Label rows by bundle, formats, and the engine if it is not the default; add keys until the labels differ."""
    labels = [
        " ".join([
            row.bundle, row.precision or "-", *([f"{row.kv} cache"] if row.kv else []),
            *([] if row.backend == "onnxruntime" else [row.engine_name]),
        ])
        for row in rows
    ]
    for more in (lambda row: row.dialect, lambda row: f"{row.threads} thread{'s' * (row.threads != 1)}",
                 lambda row: row.engine, lambda row: row.weights, lambda row: row.board):  # fmt: skip
        values: dict[str, set[object]] = {}
        for label, row in zip(labels, rows, strict=True):
            values.setdefault(label, set()).add(more(row))
        labels = [f"{label}, {more(row)}" if len(values[label]) > 1 else label
                  for label, row in zip(labels, rows, strict=True)]  # fmt: skip
    return labels


PAPER_SPEED, PAPER_PARAMS = 4.9, 5.5
PAPER = "MeRino (arXiv 2403.07921), against OPT-350M on a Jetson Nano; published, not measured here"


@dataclass(frozen=True)
class SpeedRatio:
    """The speed of one row relative to the reference's row for the same test on the same machine.

    cached: tokens in the cache before the first timed one. params_ratio: the reference's parameters over the model's.
    """

    model: Series
    reference: Series
    test: str
    cached: int
    speed: Ratio
    params_ratio: float | None
    decodes: bool


def shipped_ratios(series: Sequence[Series]) -> list[SpeedRatio]:
    """Return ratios between different engines or formats, as for a user who runs the reference as published; the
    highest first.

    Each bundle is represented by its fastest form in this project's runtime on each machine, and that form by its
    representative decode row. It is compared with every other form of the reference.
    """
    fastest: dict[tuple[str, str], Series] = {}
    for entry in series:
        ships = entry.records[0].backend == "onnxruntime" and not entry.is_reference
        if ships and _decode_tok_s(entry) > _decode_tok_s(fastest.get((entry.bundle, entry.board))):
            fastest[entry.bundle, entry.board] = entry
    references = [entry for entry in series if entry.is_reference]
    ratios = [
        ratio for ratio in ratios_of([*fastest.values(), *references], equal=False)
        if ratio.model.decode and (ratio.test, ratio.cached) == (ratio.model.decode.test, ratio.model.decode.cached)
    ]  # fmt: skip
    return sorted(ratios, key=lambda ratio: -ratio.speed.value)


def headline_ratio(ratios: Sequence[SpeedRatio]) -> SpeedRatio | None:
    """Return the most cautious of the equal decode ratios: undisturbed, in fp32, least cached, of the largest model."""
    def caution(ratio: SpeedRatio) -> tuple[object, ...]:
        return bool(ratio.speed.flags), ratio.model.precision != "fp32", ratio.cached, -(ratio.model.params or 0)

    return min((ratio for ratio in ratios if ratio.decodes), key=caution, default=None)


def ratios_of(series: Sequence[Series], equal: bool) -> list[SpeedRatio]:
    """Return ratios on one machine, if `equal` with the same engine, version, format, dialect and cache on both sides,
    else with another one. If the reference was measured with several thread counts, its fastest undisturbed row counts:
    the ratio is the smallest one."""
    ratios: dict[tuple[object, ...], SpeedRatio] = {}
    for candidate in (entry for entry in series if not entry.is_reference):
        for reference in (entry for entry in series if entry.is_reference and entry.board == candidate.board):
            if (_form(candidate) == _form(reference)) != equal:
                continue
            base = {(row.test, row.cached): row for row in reference.records}
            fewer = reference.params / candidate.params if reference.params and candidate.params else None
            for row in candidate.records:
                if other := base.get((row.test, row.cached)):
                    ratio = SpeedRatio(
                        model=candidate, reference=reference, test=row.test, cached=row.cached,
                        speed=row_ratio(row, other), params_ratio=fewer, decodes=row.decodes,
                    )  # fmt: skip
                    key = id(candidate), _form(reference), row.test, row.cached
                    ratios[key] = min(
                        ratios.get(key, ratio), ratio, key=lambda one: (bool(one.speed.flags), one.speed.value)
                    )
    return list(ratios.values())


def _decode_tok_s(series: Series | None) -> float:
    row = series.decode if series else None
    return row.tok_s or 0 if row else 0


def _form(series: Series) -> tuple[str, str, str, str | None]:
    return series.engine, series.precision, series.dialect, series.kv
