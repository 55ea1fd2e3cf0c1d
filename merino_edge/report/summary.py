"""The content of a report as plain values: series, ratios, memory, predictions. HTML and Markdown only show them."""

from collections.abc import Sequence
from dataclasses import dataclass

from merino_bench.sensors.environment import machine
from merino_edge.families.operators import CPU_FORMATS, kv_bytes, weight_bytes
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.intervals import Interval
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.profile import DeviceProfile
from merino_edge.records.evaluation import Evaluation
from merino_edge.records.schema import Environment, Record
from merino_edge.report.series import Series, SpeedRatio, headline_ratio, ratios_of, series_of, shipped_ratios
from merino_runtime.io.board import MB as BYTES_PER_MB


@dataclass(frozen=True)
class Prediction:
    """One predicted quantity beside its measurement. what: decode, prefill or memory; unit: ms or MB (2^20 bytes)."""

    series: Series
    what: str
    test: str
    unit: str
    predicted: float
    measured: float
    provenance: str
    here: bool  # whether the measurement was made on the board that the prediction is for
    interval: Interval | None  # of the predicted value

    @property
    def verdict(self) -> str:
        """Return whether the measurement lies in the interval; empty if there is none, or on another machine."""
        if not self.interval or not self.here:
            return ""
        low, high = self.interval
        return f"{'within' if low <= self.measured <= high else 'outside'} {low:.3g} to {high:.3g}"


def reason_against(series: Series, profile: DeviceProfile) -> str:
    """Return why the board's cost model does not cover a series; empty if it does."""
    row = series.records[0]
    if row.backend is None:
        return "the cost model covers ONNX Runtime and TensorRT only"
    if row.backend not in profile.backends:
        return f"the profile of {profile.id} has no performance.{row.backend}"
    if row.backend == "onnxruntime" and series.precision not in CPU_FORMATS:
        return f"the CPU cost model has no coefficients for {series.precision}, only for {', '.join(CPU_FORMATS)}"
    if row.geometry is None:
        return "the records have no architecture of a known family"
    return ""


def is_board(profile: DeviceProfile, board: str) -> bool:
    """Return whether a record's board is the profile's. Device trees append a revision to the name, and
    profiles the memory."""
    if profile.id == "host":
        return board == machine()["board"]
    return board.startswith(profile.name.partition(" (")[0])


def predictions(series: Series, profile: DeviceProfile) -> list[Prediction]:
    """Predict the measured quantities (decode, prefill, memory) of a series; none if the cost model does not cover
    it."""
    if reason_against(series, profile):
        return []
    profile = profile.with_backend(series.records[0].backend)
    operators, here = series.operators or [], is_board(profile, series.board)
    decode, prefill, on_gpu = series.decode, series.prefill, profile.backend == "tensorrt"
    precision = series.records[0].engine_precision or series.precision
    predicted = []

    def add(field: str, row: Record, measured: float, context: int, prompt: int) -> None:
        """field: of Predicted, with its unit at the end."""
        whole = series.context if on_gpu else None  # an engine reads the whole cache, however little of it is filled
        shape = InferenceShape(precision, whole or context, prompt, series.kv)
        cost = cost_model(profile, shape).predict(operators)
        what, unit = field.split("_")
        predicted.append(Prediction(
            series=series, what=what, test=row.test, unit={"ms": "ms", "mb": "MB"}[unit],
            predicted=getattr(cost, field), measured=measured, provenance=cost.provenance, here=here,
            interval=cost.interval(field),
        ))  # fmt: skip

    if decode and decode.ms_p50:
        add("decode_ms", decode, decode.ms_p50, decode.cached + decode.tokens // 2, max(1, decode.cached))
    if prefill and prefill.ms_p50:
        add("prefill_ms", prefill, prefill.ms_p50, prefill.tokens, prefill.tokens)
    if prefill and prefill.peak_rss_mb and series.context and not on_gpu:  # a process's RSS excludes GPU memory
        add("memory_mb", prefill, prefill.peak_rss_mb, series.context, prefill.tokens)
    return predicted


@dataclass(frozen=True)
class MemoryParts:
    """Parts of the peak in MB (2^20 bytes). kv_mb is None without a known architecture: `rest_mb` then includes it."""

    series: Series
    weights_mb: float
    kv_mb: float | None
    rest_mb: float


def parts_of(series: Series) -> MemoryParts | None:
    """None if the peak or the size of the weights is unknown.

    The size of the weights follows from the architecture on ONNX Runtime. For other engines, whose storage is
    unknown, it is the size of the bundle's files.
    """
    peak_mb, size = series.peak_rss_mb, series.records[0].bundle_bytes
    operators = series.operators if series.records[0].backend == "onnxruntime" else None
    context = series.context
    if peak_mb is None or (operators is None and size is None):
        return None
    stored = weight_bytes(operators, series.precision) if operators else size or 0
    weights_mb = min(stored / BYTES_PER_MB, peak_mb)
    kv_mb = None
    if operators and context:
        kv_mb = min(kv_bytes(operators, context, series.precision, series.kv) / BYTES_PER_MB, peak_mb - weights_mb)
    return MemoryParts(series, weights_mb, kv_mb, peak_mb - weights_mb - (kv_mb or 0))


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
    equal: tuple[SpeedRatio, ...]
    shipped: tuple[SpeedRatio, ...]
    headline: SpeedRatio | None
    memory: tuple[MemoryParts, ...]
    places: tuple[Place, ...]
    profile: DeviceProfile | None
    predictions: tuple[Prediction, ...]
    unpredicted: tuple[tuple[Series, str], ...]  # with the reasons; empty without a profile
    evaluations: tuple[Evaluation, ...] = ()

    @property
    def boards(self) -> list[str]:
        return list(dict.fromkeys(entry.board for entry in self.series))

    @property
    def failed(self) -> list[Record]:
        return [row for row in self.records if row.failure is not None]

    @property
    def disturbed(self) -> list[Record]:
        """Measured on a busy or swapping machine, so that too few processes were undisturbed. They are marked."""
        return [row for row in self.records if row.disturbances and row.failure is None]

    @property
    def predicted_for(self) -> str:
        """The board's name, with the backend where the board has several. A report may be published, so the machine at
        hand goes without its host name."""
        if self.profile is None:
            return "no board"
        if self.profile.id == "host":
            return "this machine"
        return f"{self.profile.name} on onnxruntime" if len(self.profile.backends) > 1 else self.profile.name

    @property
    def measured_on(self) -> str:
        return f"measured on {', '.join(self.boards) or 'no machine'}"


def summarize(
    records: Sequence[Record], profile: DeviceProfile | None = None, evaluations: Sequence[Evaluation] = ()
) -> Summary:
    """Summarize records. profile: the board to predict for; None for no predictions."""
    series = series_of(records)
    equal = ratios_of(series, equal=True)
    reasons = {entry.label: reason_against(entry, profile) for entry in series} if profile else {}
    return Summary(
        records=tuple(records), series=tuple(series), equal=tuple(equal), shipped=tuple(shipped_ratios(series)),
        headline=headline_ratio(equal), memory=tuple(parts for entry in series if (parts := parts_of(entry))),
        places=tuple(_places(records)), profile=profile,
        predictions=tuple(one for entry in series for one in predictions(entry, profile)) if profile else (),
        unpredicted=tuple((entry, reasons[entry.label]) for entry in series if reasons.get(entry.label)),
        evaluations=tuple(evaluations),
    )  # fmt: skip


def _places(records: Sequence[Record]) -> list[Place]:
    groups: dict[tuple[object, ...], list[Record]] = {}
    for row in records:
        environment = row.environment
        if environment is not None:
            versions = tuple(sorted(environment.versions.items(), key=str))
            key = environment.board, environment.kernel, environment.arch, environment.cpus, versions
            groups.setdefault(key, []).append(row)
    return [Place(rows[0].board, rows[0].environment or Environment(), tuple(rows)) for rows in groups.values()]
