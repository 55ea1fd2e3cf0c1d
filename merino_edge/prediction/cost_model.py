"""Predict what a decoder costs on a board: latency, memory, file size and energy, for one inference shape.

`cost_model(profile, shape)` binds the costs of the profile's backend (`onnxruntime_costs`, `tensorrt_costs`). Its
functions take operators. All that `design.costs` adds up over operators is additive; the share of a step's reads that
comes from memory, and the largest activations, are of a whole decoder.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict

from merino_edge.families.operators import Operator, flops, kv_bytes, params, weight_bytes
from merino_edge.prediction.formats import formats_of, uses_kernels
from merino_edge.prediction.intervals import DEFAULT_CONFIDENCE, Factors, Interval, check_confidence
from merino_edge.prediction.latency import ThreadCoefficients, memory_share
from merino_edge.prediction.limits import WATTS, within
from merino_edge.prediction.onnxruntime_costs import OnnxRuntimeCosts, onnxruntime_costs
from merino_edge.prediction.shape import InferenceShape
from merino_edge.prediction.tensorrt_costs import TensorRtCosts, tensorrt_costs
from merino_edge.profiles.coefficients import Kind, ThreadCount, weakest_kind
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.backends.threads import TWO_SESSIONS_BELOW_BYTES, sessions_of
from merino_runtime.errors import MerinoError
from merino_runtime.io.board import MB as BYTES_PER_MB

# Sizes in the folder other than weights, measured on exports of 11 to 291 operators and rounded up.
OPERATOR_FILE_BYTES = 1200  # graph and bundle.json: 370 to 860 in dialect fused, up to 1200 in portable
MATRIX_FILE_BYTES = 4096  # external data begins at whole pages
ENTRY_FILE_BYTES = 32  # tokenizer.json, per entry of the vocabulary: 15 of 512 entries, 27 of 50,257
FIXED_FILE_BYTES = 560_000  # merino.pyz and the rest of bundle.json
KERNELS_FILE_BYTES = 135_000  # runtime/kernels for both kinds of CPU
POSITION_FILE_BYTES = 256  # of the context: cosines and sines of rotary positions, heads of 64 channels


class Predicted(BaseModel):
    """The predicted costs of one decoder on one board, as in design.json and `recommend --json`.

    Decode latency is at a full KV cache; prefill latency is that of the whole prompt. MB are 2^20 bytes, GFLOPs are at
    1024 tokens. `j_per_token` is None if the profile has no watts of the busy board. `provenance` is the kind of the
    weakest coefficient used, except the watts. The latencies are at `decode_threads` and `prefill_threads`, which are
    None on a GPU. A prediction interval (low, high) has the probability `confidence`; both are None if the errors of
    predictions were not measured.
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
        """Return the prediction interval of the field `name`."""
        bounds: Interval | None = getattr(self, f"{name}_interval", None)
        return bounds

    def upper(self, name: str) -> float | None:
        """Return the upper bound of the field's interval, or the field if it has no interval, or None if there is no
        such field."""
        interval = self.interval(name)
        return interval[1] if interval else getattr(self, name, None)

    def meets(self, limits: Mapping[str, float]) -> bool:
        """Return whether the fields, or the upper bounds of their intervals, meet their limits. Names that are not
        fields do not depend on thread counts and count as met."""
        amounts = {name: self.upper(name) for name in limits}
        return all(amount is None or within(amount, limits[name]) for name, amount in amounts.items())


@dataclass(frozen=True, eq=False)
class CostModel:
    """Costs on one board for one inference shape. `cost_model` builds it; it is compared by identity.

    Latencies and energy are the most likely ones. Multiply them by `upper_decode` or `upper_prefill` to get the upper
    bounds of their prediction intervals.

    Attributes:
        on: latency and memory in the profile's backend.
        decode_factors, prefill_factors: interval of measured / predicted latency at `confidence`; None if the errors
            of predictions were not measured.
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
    def thread_counts(self) -> list[ThreadCoefficients]:
        return list(self.on.by_threads.values())

    def kv_bytes(self, operators: Sequence[Operator]) -> int:
        """Return the bytes of a full KV cache. Additive over operators."""
        return kv_bytes(operators, self.shape.context, self.shape.precision, self.shape.kv)

    def memory_mb(self, operators: Sequence[Operator], sessions: int = 1) -> float:
        """Return the peak MB of the process: while the last session opens, before the KV cache exists, or at the end
        of the longest prompt."""
        weights = self.on.weights_mb(operators, opening=False)
        in_use = sessions * weights + self.kv_bytes(operators) / BYTES_PER_MB + self.on.activation_mb(operators)
        opening = (sessions - 1) * weights + self.on.weights_mb(operators, opening=True)
        return max(in_use, opening) + self.on.runtime_mb

    def sessions(self, decode_threads: int | None, prefill_threads: int | None) -> int:
        """Return the number of sessions, each with its own copy of the weights. No thread counts: a GPU's."""
        if decode_threads is None or prefill_threads is None:
            return 1
        return sessions_of(prefill_threads, decode_threads, uses_kernels(self.profile, self.shape.precision))

    def file_mb(self, operators: Sequence[Operator]) -> float:
        kernels = KERNELS_FILE_BYTES if uses_kernels(self.profile, self.shape.precision) else 0
        return file_mb(operators, self.shape.precision, self.shape.context) + kernels / BYTES_PER_MB

    def joules(self, busy_ms: float) -> float | None:
        """Return the joules of `busy_ms` with all cores or the GPU busy, idle power included, or None if the profile
        lacks these watts. This is too high if decoding uses fewer threads than cores, or less power than the mode
        allows."""
        watts = self.profile.figure(WATTS[self.profile.backend])
        return None if watts is None else watts.value * busy_ms / 1e3

    def predict(self, operators: Sequence[Operator], limits: Mapping[str, float] | None = None) -> Predicted:
        """Return the costs of a whole decoder, at the thread counts of least decode latency, then of least prefill
        latency.

        Without limits the two counts differ only if one session suffices, or below TWO_SESSIONS_BELOW_BYTES of weights,
        because the runtime then opens a second one by default. With limits, by the names of Predicted's fields, the
        counts may differ if that meets the limits. Raise MerinoError for a format without coefficients.
        """
        predictions = self.predict_each(operators)
        usual = [
            cost for cost in predictions
            if self.sessions(cost.decode_threads, cost.prefill_threads) == 1
            or cost.weight_bytes < TWO_SESSIONS_BELOW_BYTES
        ]  # fmt: skip
        fitting = usual if limits is None else [cost for cost in predictions if cost.meets(limits)]
        return min(fitting or usual, key=lambda cost: (cost.decode_ms, cost.prefill_ms))

    def latencies(self, operators: Sequence[Operator]) -> dict[int | None, tuple[float, float]]:
        """Return (decode, prefill) in ms of a whole decoder for each thread count.

        A step reads from memory what the caches do not hold; a prefill reads all weights from the caches or none.
        """
        tables = zip(*(table.sum(axis=0).tolist() for table in self.on.latency_tables(operators, True)), strict=True)
        read_mb, latencies = self.on.read_mb(operators), {}
        for (count, at), (decode, prefill) in zip(self.on.by_threads.items(), tables, strict=True):
            missed = float(memory_share(read_mb, at.resident_mb, at.streaming_mb))
            latencies[count] = decode[0] + missed * decode[1], prefill[0] + bool(missed) * prefill[1]
        return latencies

    def predict_each(self, operators: Sequence[Operator]) -> list[Predicted]:
        """Return the costs of a whole decoder for each pair of (decode, prefill) thread counts."""
        profile, precision = self.profile, self.shape.precision
        if precision not in formats_of(profile):
            raise MerinoError(
                f"the latency of {precision} cannot be predicted, {profile.backend} has no figures for it: choose one"
                f" of {', '.join(formats_of(profile))}"
            )
        latencies = self.latencies(operators)
        memory_mb = {sessions: self.memory_mb(operators, sessions) for sessions in (1, 2)}
        same_for_all_counts: dict[str, Any] = {
            "flops_g": flops(operators) / 1e9,
            "params": params(operators),
            "weight_bytes": weight_bytes(operators, self.shape.precision),
            "kv_bytes": self.kv_bytes(operators),
            "file_mb": self.file_mb(operators),
            "confidence": self.confidence if self.decode_factors or self.prefill_factors else None,
            "provenance": weakest_kind(self.on.figures),
        }

        def interval(value: float | None, factors: Factors | None) -> Interval | None:
            return factors.of(value) if factors and value is not None else None

        predictions = []
        for decode_threads, prefill_threads in itertools.product(latencies, repeat=2):
            decode_ms, prefill_ms = latencies[decode_threads][0], latencies[prefill_threads][1]
            joules = self.joules(decode_ms)
            predictions.append(Predicted(
                decode_ms=decode_ms, decode_ms_interval=interval(decode_ms, self.decode_factors),
                prefill_ms=prefill_ms, prefill_ms_interval=interval(prefill_ms, self.prefill_factors),
                j_per_token=joules, j_per_token_interval=interval(joules, self.decode_factors),
                memory_mb=memory_mb[self.sessions(decode_threads, prefill_threads)],
                decode_threads=decode_threads, prefill_threads=prefill_threads, **same_for_all_counts,
            ))  # fmt: skip
        return predictions


@lru_cache(maxsize=64)
def cost_model(profile: DeviceProfile, shape: InferenceShape, confidence: float = DEFAULT_CONFIDENCE) -> CostModel:
    """Return the costs of this inference on this board, with intervals of `confidence` if the board was calibrated.

    Formats that the backend does not run have only memory and file size. Raise MerinoError for a confidence outside
    its range.
    """
    on = (tensorrt_costs if profile.backend == "tensorrt" else onnxruntime_costs)(profile, shape)
    check_confidence(confidence)
    decode_factors, prefill_factors = on.factors(confidence)
    return CostModel(profile, shape, on, confidence, decode_factors=decode_factors, prefill_factors=prefill_factors)


def added_file_mb(operators: Iterable[Operator], precision: str) -> float:
    """Return the MB (2^20 bytes) that these operators add to the bundle's folder. Additive over operators."""
    total = 0.0
    for op in operators:
        total += OPERATOR_FILE_BYTES
        if op.own:
            total += op.stored_bytes(precision) + (MATRIX_FILE_BYTES if op.matrix else 0)
        if op.kind == "embed":
            total += ENTRY_FILE_BYTES * op.matrix / op.columns
    return total / BYTES_PER_MB


def file_mb(operators: Iterable[Operator], precision: str, context: int) -> float:
    """Return the MB (2^20 bytes) of the whole folder, rounded up: weights, graph, tokenizer, application."""
    return added_file_mb(operators, precision) + (FIXED_FILE_BYTES + POSITION_FILE_BYTES * context) / BYTES_PER_MB
