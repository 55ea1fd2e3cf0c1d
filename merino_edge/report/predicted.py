"""Predictions of the design's cost model for the measured bundles on one board, and which bundles have none."""

from collections.abc import Sequence
from dataclasses import dataclass

from merino_bench.sensors.environment import machine
from merino_edge.families.operators import CPU_FORMATS
from merino_edge.prediction.cost_model import Predicted, cost_model
from merino_edge.prediction.intervals import Interval
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.profile import DeviceProfile
from merino_edge.records.schema import Record
from merino_edge.report.series import Series


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
        """Whether the measurement lies in the interval; empty where there is none, or on another machine."""
        if not self.interval or not self.here:
            return ""
        low, high = self.interval
        return f"{'within' if low <= self.measured <= high else 'outside'} {low:.3g} to {high:.3g}"


@dataclass(frozen=True)
class Unpredicted:
    series: Series
    reason: str


def predictions(series: Sequence[Series], profile: DeviceProfile) -> list[Prediction]:
    """Of each series that the cost model covers, for decode, prefill and memory as far as they were measured."""
    found: list[Prediction] = []
    for one in series:
        if not reason_against(one, profile):
            found += _of(one, profile.with_backend(one.records[0].backend))
    return found


def unpredicted(series: Sequence[Series], profile: DeviceProfile) -> list[Unpredicted]:
    """The series that the cost model does not cover, each with the reason."""
    return [Unpredicted(one, reason) for one in series if (reason := reason_against(one, profile))]


def reason_against(series: Series, profile: DeviceProfile) -> str:
    """Why the board's cost model has no prediction for a series; empty where it has one."""
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
    """Whether a record's board is the profile's. A device tree appends a revision to the name, a profile the memory."""
    if profile.id == "host":
        return board == machine()["board"]
    return board.startswith(profile.name.partition(" (")[0])


def _of(series: Series, profile: DeviceProfile) -> list[Prediction]:
    operators, here = series.operators or [], is_board(profile, series.board)
    decode, prefill, on_gpu = series.decode, series.prefill, profile.backend == "tensorrt"
    precision = series.records[0].engine_precision or series.precision
    found = []

    def predict(context: int, prompt: int) -> Predicted:
        whole = series.context if on_gpu else None  # an engine reads the whole cache, however little of it is filled
        return cost_model(profile, InferenceShape(precision, whole or context, prompt, series.kv)).predict(operators)

    if decode and decode.ms_p50:
        mean_cached = decode.cached + decode.tokens // 2
        cost = predict(mean_cached, max(1, decode.cached))
        found.append(_one(series, "decode_ms", decode, cost, decode.ms_p50, here))
    if prefill and prefill.ms_p50:
        cost = predict(prefill.tokens, prefill.tokens)
        found.append(_one(series, "prefill_ms", prefill, cost, prefill.ms_p50, here))
    if prefill and prefill.peak_rss_mb and series.context and not on_gpu:  # whose memory is no part of the process's
        cost = predict(series.context, prefill.tokens)
        found.append(_one(series, "memory_mb", prefill, cost, prefill.peak_rss_mb, here))
    return found


def _one(series: Series, name: str, row: Record, cost: Predicted, measured: float, here: bool) -> Prediction:
    """name: of a field of `cost`, its unit at the end."""
    what, unit = name.split("_")
    return Prediction(
        series, what, row.test, {"ms": "ms", "mb": "MB"}[unit], getattr(cost, name), measured, cost.provenance, here,
        cost.interval(name),
    )  # fmt: skip
