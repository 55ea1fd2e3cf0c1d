"""What the design's cost code says of the measured bundles on one board, beside what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass

from merino_bench.sensors.environment import machine
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.predicted import Predicted
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.profile import DeviceProfile
from merino_edge.records.record import Record
from merino_edge.report.series import Series


@dataclass(frozen=True)
class Prediction:
    """`what` is decode, prefill or memory; unit ms or MB. `measured` may come from another machine: `here` tells."""

    series: Series
    what: str
    test: str
    unit: str
    predicted: float
    measured: float
    provenance: str
    here: bool  # whether the measurement was made on the board that the prediction is for


def predictions(series: Sequence[Series], profile: DeviceProfile) -> list[Prediction]:
    """Of what ran on ONNX Runtime's CPU path and has its geometry in the records; the model knows nothing else."""
    found: list[Prediction] = []
    for one in series:
        if one.operators is not None and one.records[0].runs_on_onnxruntime:
            found += _of(one, profile)
    return found


def is_board(profile: DeviceProfile, board: str) -> bool:
    """Whether a record's board is the profile's: a device tree adds a revision to the name, a profile its memory."""
    if profile.id == "host":
        return board == machine()["board"]
    return board.startswith(profile.name.partition(" (")[0])


def _of(series: Series, profile: DeviceProfile) -> list[Prediction]:
    operators, here = series.operators or [], is_board(profile, series.board)
    decode, prefill = series.decode, series.prefill
    found = []

    def predict(context: int, prompt: int) -> Predicted:
        return cost_model(profile, InferenceShape(series.precision, context, prompt)).predict(operators)

    if decode and decode.ms_p50:
        mean_cached = decode.cached + decode.tokens // 2
        cost = predict(mean_cached, max(1, decode.cached))
        found.append(_one(series, "decode", decode, "ms", cost.decode_ms, decode.ms_p50, cost.provenance, here))
    if prefill and prefill.ms_p50:
        cost = predict(prefill.tokens, prefill.tokens)
        found.append(_one(series, "prefill", prefill, "ms", cost.prefill_ms, prefill.ms_p50, cost.provenance, here))
    if prefill and prefill.peak_rss_mb and series.context:
        cost = predict(series.context, prefill.tokens)
        peak_mb = prefill.peak_rss_mb
        found.append(_one(series, "memory", prefill, "MB", cost.memory_mb, peak_mb, cost.provenance, here))
    return found


def _one(
    series: Series, what: str, row: Record, unit: str, predicted: float, measured: float, provenance: str, here: bool
) -> Prediction:
    return Prediction(series, what, row.test, unit, predicted, measured, provenance, here)
