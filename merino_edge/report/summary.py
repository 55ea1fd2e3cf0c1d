"""All that a report says, as plain values. HTML and Markdown only show them."""

from collections.abc import Sequence
from dataclasses import dataclass

from merino_edge.profiles.profile import DeviceProfile
from merino_edge.records.schema import Environment, Record
from merino_edge.report.memory import MemoryParts, memory_parts
from merino_edge.report.predicted import Prediction, Unpredicted, predictions, unpredicted
from merino_edge.report.ratios import Against, equal_ratios, headline_ratio, shipped_ratios
from merino_edge.report.series import Series, series_of


@dataclass(frozen=True)
class Place:
    """A machine with one set of software versions, and the rows measured there."""

    board: str
    environment: Environment
    rows: tuple[Record, ...]


@dataclass(frozen=True)
class Summary:
    records: tuple[Record, ...]
    series: tuple[Series, ...]
    equal: tuple[Against, ...]
    shipped: tuple[Against, ...]
    headline: Against | None
    memory: tuple[MemoryParts, ...]
    places: tuple[Place, ...]
    profile: DeviceProfile | None
    predictions: tuple[Prediction, ...]
    unpredicted: tuple[Unpredicted, ...]  # empty without a profile

    @property
    def boards(self) -> list[str]:
        return list(dict.fromkeys(one.board for one in self.series))

    @property
    def failed(self) -> list[Record]:
        return [row for row in self.records if row.failure is not None]

    @property
    def disturbed(self) -> list[Record]:
        """Measured on a busy or swapping machine, so that too few processes were undisturbed. They are marked."""
        return [row for row in self.records if row.disturbances and row.failure is None]

    @property
    def predicted_for(self) -> str:
        """The board's name, of one with several backends with that of the predictions. A report may be published, so
        the machine at hand goes without its host name."""
        if self.profile is None:
            return "no board"
        if self.profile.id == "host":
            return "this machine"
        return f"{self.profile.name} on onnxruntime" if len(self.profile.backends) > 1 else self.profile.name

    @property
    def measured_on(self) -> str:
        return f"measured on {', '.join(self.boards) or 'no machine'}"


def summarise(records: Sequence[Record], profile: DeviceProfile | None = None) -> Summary:
    """profile: the board to predict for; None for no predictions."""
    series = series_of(records)
    equal = equal_ratios(series)
    return Summary(
        tuple(records), tuple(series), tuple(equal), tuple(shipped_ratios(series)), headline_ratio(equal),
        tuple(memory_parts(series)), tuple(_places(records)), profile,
        tuple(predictions(series, profile)) if profile else (), tuple(unpredicted(series)) if profile else (),
    )  # fmt: skip


def _places(records: Sequence[Record]) -> list[Place]:
    groups: dict[tuple[object, ...], list[Record]] = {}
    for row in records:
        found = row.environment
        if found is not None:
            key = found.board, found.kernel, found.arch, found.cpus, tuple(sorted(found.versions.items(), key=str))
            groups.setdefault(key, []).append(row)
    return [Place(rows[0].board, rows[0].environment or Environment(), tuple(rows)) for rows in groups.values()]
