"""Costs of a decoder on a board: latency, memory, file size and energy, resolved for one inference shape.

`cost_model(profile, shape)` binds the costs of the profile's backend (`onnxruntime_costs`, `tensorrt_costs`). Its
functions take operators. Under a `Regime` all costs except activation memory are additive over operators, as searches
require; `predict` determines the regime of a whole decoder.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from pydantic import BaseModel, ConfigDict

from merino_edge.families.operators import Operator, flops, kv_bytes, params, weight_bytes
from merino_edge.prediction.formats import attends_by_groups, formats_of, is_predicted
from merino_edge.prediction.intervals import DEFAULT_CONFIDENCE, Factors, Interval, check_confidence
from merino_edge.prediction.latency import Regime, Residency
from merino_edge.prediction.limits import busy_watts, within
from merino_edge.prediction.onnxruntime_costs import OnnxRuntimeCosts, onnxruntime_costs
from merino_edge.prediction.shape import InferenceShape
from merino_edge.prediction.tensorrt_costs import TensorRtCosts, tensorrt_costs
from merino_edge.profiles.coefficients import Kind, ThreadCount, weakest_kind
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.backends.threads import TWO_SESSIONS_BELOW_BYTES
from merino_runtime.errors import MerinoError
from merino_runtime.io.board import MB as BYTES_PER_MB

# Sizes in the folder other than weights, measured on exports of 11 to 291 operators and rounded up.
OPERATOR_FILE_BYTES = 1200  # graph and bundle.json: 370 to 860 in dialect fused, up to 1200 in portable
MATRIX_FILE_BYTES = 4096  # external data begins at whole pages
ENTRY_FILE_BYTES = 32  # tokenizer.json, per entry of the vocabulary: 15 of 512 entries, 27 of 50,257
FIXED_FILE_BYTES = 550_000  # merino.pyz and the rest of bundle.json
KERNELS_FILE_BYTES = 135_000  # runtime/kernels for both kinds of CPU
POSITION_FILE_BYTES = 256  # of the context: cosines and sines of rotary positions, heads of 64 channels


class Predicted(BaseModel):
    """The predicted costs of one decoder on one board, as in design.json, pareto.json and `recommend --json`.

    Decode latency is at a full KV cache, prefill latency of the whole prompt. MB are 2^20 bytes, GFLOPs are at 1024
    tokens. `j_per_token` is None where the profile lacks the busy board's watts. `provenance` is the kind of the
    weakest coefficient used, except the watts. The latencies are at `decode_threads` and `prefill_threads`, which are
    None on a GPU. A prediction interval (low, high) has the probability `confidence`; None where no errors are known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    decode_ms: float
    decode_ms_interval: Interval | None
    prefill_ms: float
    prefill_ms_interval: Interval | None
    memory_mb: float
    flops_g: float
    params: int
    weight_bytes: int
    kv_bytes: int
    file_mb: float
    j_per_token: float | None
    j_per_token_interval: Interval | None
    confidence: float | None
    provenance: Kind
    decode_threads: ThreadCount | None
    prefill_threads: ThreadCount | None

    def interval(self, name: str) -> Interval | None:
        """The prediction interval of the field `name`."""
        bounds: Interval | None = getattr(self, f"{name}_interval", None)
        return bounds

    def upper(self, name: str) -> float | None:
        """The upper bound of the field's interval, or the field without one; None where there is no such field."""
        interval = self.interval(name)
        return interval[1] if interval else getattr(self, name, None)


@dataclass(frozen=True, eq=False)
class CostModel:
    """Costs on one board for one inference shape. Made by `cost_model`, compared by identity.

    Latencies and energy are the most likely ones. Multiplied by `upper_decode` or `upper_prefill` they are the upper
    bounds of their prediction intervals.

    Attributes:
        on: latency and memory in the profile's backend.
        decode_factors, prefill_factors: interval of measured / predicted latency at `confidence`; None where the errors
            of predictions are not known.
    """

    profile: DeviceProfile
    shape: InferenceShape
    on: OnnxRuntimeCosts | TensorRtCosts
    confidence: float
    decode_factors: Factors | None
    prefill_factors: Factors | None

    @property
    def upper_decode(self) -> float:
        return self.decode_factors.high if self.decode_factors else 1.0

    @property
    def upper_prefill(self) -> float:
        return self.prefill_factors.high if self.prefill_factors else 1.0

    @property
    def runtime_mb(self) -> float:
        """MB of Python and the backend before a model is loaded."""
        return self.on.runtime_mb

    def decode_ms(self, operators: Sequence[Operator], threads: int | None, residency: Residency) -> float:
        """ms of one decode step, batch 1, at a full KV cache. Additive over operators. Raises MerinoError for a format
        that the backend has no figures of."""
        self._require_predicted()
        return self.on.decode_ms(operators, threads, residency)

    def prefill_ms(self, operators: Sequence[Operator], threads: int | None, residency: Residency) -> float:
        """ms of prefilling the whole prompt into an empty KV cache. Otherwise as `decode_ms`."""
        self._require_predicted()
        return self.on.prefill_ms(operators, threads, residency)

    def _require_predicted(self) -> None:
        profile, precision = self.profile, self.shape.precision
        if not is_predicted(profile, precision):
            raise MerinoError(
                f"the latency of {precision} cannot be predicted, {profile.backend} has no figures of it: choose one of"
                f" {', '.join(formats_of(profile))}"
            )

    def read_mb(self, operators: Sequence[Operator]) -> float:
        """MB of a decode step's first reads, which decide the residency. Additive over operators."""
        return self.on.read_mb(operators)

    def kv_bytes(self, operators: Sequence[Operator]) -> int:
        """Bytes of a full KV cache. Additive over operators."""
        return kv_bytes(operators, self.shape.context, self.shape.precision, self.shape.kv)

    def in_use_mb(self, operators: Sequence[Operator], sessions: int = 1) -> float:
        """MB of weights in all sessions and of a full KV cache. Additive over operators."""
        cache = self.kv_bytes(operators) / BYTES_PER_MB
        return sessions * self.on.weights_mb(operators, opening=False) + cache

    def opening_mb(self, operators: Sequence[Operator], sessions: int = 1) -> float:
        """MB of weights while the last session opens, before there is a KV cache. Additive over operators."""
        others = (sessions - 1) * self.on.weights_mb(operators, opening=False)
        return others + self.on.weights_mb(operators, opening=True)

    def opening_can_peak(self, table: Operator) -> bool:
        """Whether a decoder with an embedding of this size can have its peak memory while it opens."""
        return self.on.opening_can_peak(table)

    def activation_mb(self, operators: Sequence[Operator]) -> float:
        """MB of the largest operator's activations: a maximum, not a sum."""
        return self.on.activation_mb(operators)

    def memory_mb(self, operators: Sequence[Operator], sessions: int = 1) -> float:
        """Peak MB of the process: while the backend opens, or at the end of the longest prompt."""
        in_use = self.in_use_mb(operators, sessions) + self.activation_mb(operators)
        return max(in_use, self.opening_mb(operators, sessions)) + self.runtime_mb

    def added_file_mb(self, operators: Sequence[Operator]) -> float:
        """MB that the operators add to the bundle's folder. Additive over operators."""
        return added_file_mb(operators, self.shape.precision)

    def file_mb(self, operators: Sequence[Operator]) -> float:
        kernels = KERNELS_FILE_BYTES if attends_by_groups(self.profile, self.shape.precision) else 0
        return file_mb(operators, self.shape.precision, self.shape.context) + kernels / BYTES_PER_MB

    def joules(self, busy_ms: float) -> float | None:
        """Energy of `busy_ms` with all cores or the GPU busy, idle power included; None where the profile lacks these
        watts. An upper estimate where decoding uses fewer threads than cores, or less power than the mode allows."""
        watts = busy_watts(self.profile)
        return None if watts is None else watts.value * busy_ms / 1e3

    def regimes(self) -> list[Regime]:
        """Every regime; few threads and small decoders first."""
        return self.on.regimes()

    def default_regime(self) -> Regime:
        return self.on.default_regime

    def ceiling_mb(self, regime: Regime) -> float | None:
        """Upper limit of `read_mb` in the regime; None: no limit."""
        return self.on.ceiling_mb(regime)

    def predict(self, operators: Sequence[Operator], limits: Mapping[str, float] | None = None) -> Predicted:
        """Costs of a whole decoder, at the thread counts of least decode latency, then of least prefill latency.

        Without limits the two counts differ only below TWO_SESSIONS_BELOW_BYTES of weights, where the runtime opens a
        second session by itself. With limits, by the names of Predicted's fields, the counts may differ if that meets
        the limits. Raises MerinoError for a format without coefficients.
        """
        predicted = self.predict_each(operators)
        usual = [
            one for one in predicted
            if one.decode_threads == one.prefill_threads or one.weight_bytes < TWO_SESSIONS_BELOW_BYTES
        ]  # fmt: skip
        fitting = usual if limits is None else [one for one in predicted if keeps(one, limits)]
        return min(fitting or usual, key=lambda one: (one.decode_ms, one.prefill_ms))

    def predict_each(self, operators: Sequence[Operator]) -> list[Predicted]:
        """Costs of a whole decoder for each pair of (decode, prefill) thread counts."""
        self._require_predicted()
        latencies = self.on.by_thread_counts(operators)
        decode_ms = {count: decode for count, (decode, _) in latencies.items()}
        prefill_ms = {count: prefill for count, (_, prefill) in latencies.items()}
        memory_mb = {sessions: self.memory_mb(operators, sessions) for sessions in (1, 2)}
        flops_g, stored, file_mb = flops(operators) / 1e9, params(operators), self.file_mb(operators)
        weights = weight_bytes(operators, self.shape.precision)
        cache = self.kv_bytes(operators)
        confidence = self.confidence if self.decode_factors or self.prefill_factors else None
        provenance = weakest_kind(self.on.figures)
        return [
            Predicted(
                decode_ms=decode_ms[regime.decode_threads],
                decode_ms_interval=interval(decode_ms[regime.decode_threads], self.decode_factors),
                prefill_ms=prefill_ms[regime.prefill_threads],
                prefill_ms_interval=interval(prefill_ms[regime.prefill_threads], self.prefill_factors),
                memory_mb=memory_mb[regime.sessions],
                flops_g=flops_g,
                params=stored,
                weight_bytes=weights,
                kv_bytes=cache,
                file_mb=file_mb,
                j_per_token=self.joules(decode_ms[regime.decode_threads]),
                j_per_token_interval=interval(self.joules(decode_ms[regime.decode_threads]), self.decode_factors),
                confidence=confidence,
                provenance=provenance,
                decode_threads=regime.decode_threads,
                prefill_threads=regime.prefill_threads,
            )
            for regime in self.regimes() if regime.residency == "streaming"
        ]  # fmt: skip


def keeps(predicted: Predicted, limits: Mapping[str, float]) -> bool:
    """Whether the predicted fields meet their limits; with an interval, its upper bound. Other names do not depend on
    thread counts."""
    amounts = {name: predicted.upper(name) for name in limits}
    return all(amount is None or within(amount, limits[name]) for name, amount in amounts.items())


def interval(predicted: float | None, factors: Factors | None) -> Interval | None:
    return factors.of(predicted) if factors and predicted is not None else None


@lru_cache(maxsize=64)
def cost_model(profile: DeviceProfile, shape: InferenceShape, confidence: float = DEFAULT_CONFIDENCE) -> CostModel:
    """The costs of this inference on this board, with intervals of `confidence` if the board was calibrated.

    Formats that the backend does not run have only memory and file size. Raises MerinoError for a confidence outside
    its range.
    """
    on = (tensorrt_costs if profile.backend == "tensorrt" else onnxruntime_costs)(profile, shape)
    check_confidence(confidence)
    decode_factors, prefill_factors = on.factors(confidence)
    return CostModel(profile, shape, on, confidence, decode_factors, prefill_factors)


def added_file_mb(operators: Iterable[Operator], precision: str) -> float:
    """MB (2^20 bytes) that these operators add to the bundle's folder. Additive over operators."""
    total = 0.0
    for op in operators:
        total += OPERATOR_FILE_BYTES
        if op.own:
            total += op.stored_bytes(precision) + (MATRIX_FILE_BYTES if op.matrix else 0)
        if op.kind == "embed":
            total += ENTRY_FILE_BYTES * op.matrix / op.columns
    return total / BYTES_PER_MB


def file_mb(operators: Iterable[Operator], precision: str, context: int) -> float:
    """MB (2^20 bytes) of the whole folder, rounded up: weights, graph, tokenizer, application."""
    return added_file_mb(operators, precision) + (FIXED_FILE_BYTES + POSITION_FILE_BYTES * context) / BYTES_PER_MB
