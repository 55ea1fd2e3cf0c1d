"""Records grouped by what was measured: a bundle, an engine, a format, a machine. And which group is OPT-350M."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from merino_edge.families.operators import FORMATS, Operator, params
from merino_edge.families.zoo import model
from merino_edge.records.schema import DEFAULT_ENGINE, Record

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
    kv: str | None  # the cache's format where it is quantised
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
        """Recognised by the exact count of parameters, since a bundle's name is free."""
        return self.params == REFERENCE_PARAMS

    @property
    def context(self) -> int | None:
        return self.records[0].context

    @property
    def operators(self) -> list[Operator] | None:
        """Of the records' architecture; None where they have none, or where the format's size in memory is unknown."""
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
    """Series in the order of the records. Failed rows belong to none."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    for row in records:
        if row.failure is None:
            key = row.bundle, row.engine, row.precision, row.dialect, row.kv, row.weights, row.threads, row.board
            groups.setdefault(key, []).append(row)
    labels = distinct_labels([rows[0] for rows in groups.values()])
    return [_one_series(rows, label) for rows, label in zip(groups.values(), labels, strict=True)]


def distinct_labels(rows: Sequence[Record]) -> list[str]:
    """Bundle, formats, and the engine unless it is the default one; then more keys until the labels differ."""
    labels = [
        " ".join([
            row.bundle, row.precision or "-", *([f"{row.kv} cache"] if row.kv else []),
            *([] if row.runs_on_onnxruntime else [row.engine_name]),
        ])
        for row in rows
    ]
    for more in (lambda row: row.dialect, _thread_words, lambda row: row.engine, lambda row: row.weights,
                 lambda row: row.board):  # fmt: skip
        said: dict[str, set[object]] = {}
        for label, row in zip(labels, rows, strict=True):
            said.setdefault(label, set()).add(more(row))
        labels = [f"{label}, {more(row)}" if len(said[label]) > 1 else label
                  for label, row in zip(labels, rows, strict=True)]  # fmt: skip
    return labels


def engines_of(series: Sequence[Series]) -> list[str]:
    """Names without versions, ONNX Runtime first, so that its colour is the same in each report."""
    names = dict.fromkeys(one.engine_name for one in series)
    return sorted(names, key=lambda name: not name.startswith(DEFAULT_ENGINE))


def _thread_words(row: Record) -> str:
    return f"{row.threads} thread{'s' * (row.threads != 1)}"


def _one_series(rows: Sequence[Record], label: str) -> Series:
    one = rows[0]
    return Series(
        label, one.bundle, one.engine or "-", one.precision or "-", one.dialect or "", one.kv,
        one.weights or "unknown", one.threads, one.board, tuple(rows),
    )  # fmt: skip
