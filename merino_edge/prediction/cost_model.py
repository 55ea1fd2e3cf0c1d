"""Costs of a decoder on a board: the latency model, memory, file size and energy, resolved for one inference shape.

`cost_model(profile, shape)` looks up the coefficients once. Its functions take operators. Under a `Regime` all but
activation memory add up over operators, which the searches need; `predict` finds the regime of a whole decoder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from merino_edge.families.operators import CPU_FORMATS, Operator, flops, kv_bytes, params, weight_bytes
from merino_edge.prediction import file_size, latency, memory
from merino_edge.prediction.confidence import DEFAULT_CONFIDENCE
from merino_edge.prediction.default_coefficients import coefficients_for
from merino_edge.prediction.intervals import Factors, Interval, phase_factors
from merino_edge.prediction.latency import Latency, Residency, Run, ThreadCoefficients
from merino_edge.prediction.limits import within
from merino_edge.prediction.predicted import Predicted
from merino_edge.prediction.shape import InferenceShape, is_predicted
from merino_edge.profiles.coefficients import Coefficients, weakest_kind
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.backends.onnx import PREFILL_CHUNK_IDS
from merino_runtime.backends.onnx_session import SMALL_BOARD_MB
from merino_runtime.board import MB as BYTES_PER_MB
from merino_runtime.errors import MerinoError

FORMATS_USED = {"int8": ("fp32", "int8"), "int4": ("fp32", "int8", "int4")}  # int4 models have a head of 8 bits


@dataclass(frozen=True)
class Regime:
    """Thread counts and residency. Under one regime all costs but activation memory are sums over operators."""

    decode_threads: int
    prefill_threads: int
    residency: Residency

    @property
    def sessions(self) -> int:
        """Thread counts that differ take two sessions, and each prepacks the weights for itself."""
        return 1 if self.decode_threads == self.prefill_threads else 2


@dataclass(frozen=True, eq=False)
class CostModel:
    """All that costs on one board depend on, for one inference shape. Made by `cost_model`, compared by identity.

    Latencies and energy are the most likely ones; `upper_decode` and `upper_prefill` times as much is the upper end of
    their intervals.

    Attributes:
        by_threads: coefficients of the latency model for each known thread count, ascending.
        prefill_runs: the pieces of the prefill as the runtime cuts it, each with a head of its own.
        runtime_mb: memory of Python and the backend before a model is loaded.
        arena_factor: memory of the backend's arena over the activations in it.
        decode_factors, prefill_factors: the interval of measured over predicted latency at `confidence`; None where
            the errors of predictions are not known.
    """

    profile: DeviceProfile
    shape: InferenceShape
    coefficients: Coefficients
    by_threads: Mapping[int, ThreadCoefficients]
    prefill_runs: tuple[Run, ...]
    runtime_mb: float
    arena_factor: float
    confidence: float
    decode_factors: Factors | None
    prefill_factors: Factors | None

    @property
    def upper_decode(self) -> float:
        return self.decode_factors.high if self.decode_factors else 1.0

    @property
    def upper_prefill(self) -> float:
        return self.prefill_factors.high if self.prefill_factors else 1.0

    def decode_latency(self, operators: Sequence[Operator], threads: int) -> Latency:
        """Of one decode step, batch 1, the KV cache full."""
        return self.latency_of_runs(operators, [(1, self.shape.context)], threads)

    def prefill_latency(self, operators: Sequence[Operator], threads: int) -> Latency:
        """Of the whole prompt into an empty KV cache."""
        return self.latency_of_runs(operators, self.prefill_runs, threads)

    def latency_of_runs(self, operators: Sequence[Operator], runs: Sequence[Run], threads: int) -> Latency:
        """Raises MerinoError for a format without coefficients."""
        precision = self.shape.precision
        if not is_predicted(precision):
            raise MerinoError(
                f"the latency of {precision} cannot be predicted, the coefficients are those of CPU kernels: choose one"
                f" of {', '.join(CPU_FORMATS)}"
            )
        return latency.latency(operators, precision, runs, self.coefficients.dialect, self.by_threads[threads])

    def decode_ms(self, operators: Sequence[Operator], threads: int, residency: Residency) -> float:
        """ms of one decode step. Adds up over operators."""
        found = self.decode_latency(operators, threads)
        return {"resident": found.cached_ms, "partial": found.line_ms, "streaming": found.streaming_ms}[residency]

    def prefill_ms(self, operators: Sequence[Operator], threads: int, residency: Residency) -> float:
        """ms of the prefill; only a resident decoder is found in the caches. Adds up over operators."""
        found = self.prefill_latency(operators, threads)
        return found.cached_ms if residency == "resident" else found.streaming_ms

    def read_mb(self, operators: Sequence[Operator]) -> float:
        """MB that a decode step reads for the first time: it decides the residency. Adds up over operators."""
        return latency.read_mb(operators, self.shape.precision, self.shape.context, self.coefficients.dialect)

    def in_use_mb(self, operators: Sequence[Operator], sessions: int = 1) -> float:
        """MB of weights in all sessions and of a full KV cache. Adds up over operators."""
        cache = kv_bytes(operators, self.shape.context, self.shape.precision) / BYTES_PER_MB
        return sessions * self.weights_mb(operators, prepacking=False) + cache

    def opening_mb(self, operators: Sequence[Operator], sessions: int = 1) -> float:
        """MB of weights while the last session prepacks its table, before there is a KV cache. Adds up."""
        others = (sessions - 1) * self.weights_mb(operators, prepacking=False)
        return others + self.weights_mb(operators, prepacking=True)

    def opening_can_peak(self, table: Operator) -> bool:
        """Whether a table of this size can make `opening_mb` the peak."""
        return memory.prepacking_peaks(table, self.shape.precision)

    def weights_mb(self, operators: Sequence[Operator], *, prepacking: bool) -> float:
        return memory.weights_mb(operators, self.coefficients, self.shape.precision, prepacking=prepacking)

    def activation_mb(self, operators: Sequence[Operator]) -> float:
        """MB of the operator that needs most: a maximum over operators, not a sum."""
        return memory.activation_mb(operators, self.shape, self.arena_factor)

    def memory_mb(self, operators: Sequence[Operator], sessions: int = 1) -> float:
        """Peak MB of the process: while the backend opens, or at the end of the longest prompt."""
        in_use = self.in_use_mb(operators, sessions) + self.activation_mb(operators)
        return max(in_use, self.opening_mb(operators, sessions)) + self.runtime_mb

    def added_file_mb(self, operators: Sequence[Operator]) -> float:
        """MB that the operators add to the bundle's folder. Adds up over operators."""
        return file_size.added_file_mb(operators, self.shape.precision)

    def file_mb(self, operators: Sequence[Operator]) -> float:
        return file_size.file_mb(operators, self.shape.precision)

    def joules(self, busy_ms: float) -> float | None:
        """Energy of `busy_ms` with all cores busy, idle power included; None where the profile has no stress_w.

        An upper estimate where decoding uses fewer threads than there are cores.
        """
        watts = self.profile.power.stress_w
        return None if watts is None else watts.value * busy_ms / 1e3

    def regimes(self) -> list[Regime]:
        """Every regime; few threads and small decoders first."""
        counts = list(self.by_threads)
        return [
            Regime(decode, prefill, residency)
            for residency in latency.RESIDENCIES for decode in counts for prefill in counts
        ]  # fmt: skip

    def default_regime(self) -> Regime:
        """Streaming, at the thread counts of the profile."""
        speed = self.profile.performance
        return Regime(speed.decode_threads.value, speed.prefill_threads.value, "streaming")

    def ceiling_mb(self, regime: Regime) -> float | None:
        """The most that `read_mb` may be under the regime; None: any amount."""
        return self.by_threads[regime.decode_threads].ceiling_mb(regime.residency)

    def predict(self, operators: Sequence[Operator], limits: Mapping[str, float] | None = None) -> Predicted:
        """Costs of a whole decoder, at the thread counts of least decode latency, then of least prefill latency.

        Without limits decode and prefill have one thread count, as the runtime chooses by itself, since two counts take
        more memory. With limits, by the names of Predicted's fields, the counts may differ where that keeps them;
        where no counts keep them all, they are one again. Raises MerinoError for a format without coefficients.
        """
        found = self.predict_each(operators)
        single = [one for one in found if one.decode_threads == one.prefill_threads]
        fitting = single if limits is None else [one for one in found if keeps(one, limits)]
        return min(fitting or single, key=lambda one: (one.decode_ms, one.prefill_ms))

    def predict_each(self, operators: Sequence[Operator]) -> list[Predicted]:
        """Costs of a whole decoder for each pair of (decode, prefill) thread counts."""
        decode_ms, prefill_ms = {}, {}
        read_mb = self.read_mb(operators)
        for count, at in self.by_threads.items():
            missed = at.missed_share(read_mb)
            step, prompt = self.decode_latency(operators, count), self.prefill_latency(operators, count)
            decode_ms[count] = step.cached_ms + missed * step.memory_ms
            prefill_ms[count] = prompt.streaming_ms if missed else prompt.cached_ms
        memory_mb = {sessions: self.memory_mb(operators, sessions) for sessions in (1, 2)}
        flops_g, stored, file_mb = flops(operators) / 1e9, params(operators), self.file_mb(operators)
        weights = weight_bytes(operators, self.shape.precision)
        cache = kv_bytes(operators, self.shape.context, self.shape.precision)
        confidence = self.confidence if self.decode_factors or self.prefill_factors else None
        provenance = weakest_kind([self.coefficients, self.profile.performance.runtime_mb])
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
    """Whether the predicted fields that have a limit are within it, of an interval the upper end; other names do not
    depend on thread counts."""
    amounts = {name: predicted.upper(name) for name in limits}
    return all(amount is None or within(amount, limits[name]) for name, amount in amounts.items())


def interval(predicted: float | None, factors: Factors | None) -> Interval | None:
    return factors.of(predicted) if factors and predicted is not None else None


@lru_cache(maxsize=64)
def cost_model(profile: DeviceProfile, shape: InferenceShape, confidence: float = DEFAULT_CONFIDENCE) -> CostModel:
    """The costs of this inference on this board, with intervals of `confidence` where the board was calibrated.

    Formats without CPU kernels have memory and file size only. Raises MerinoError for a confidence out of its range.
    """
    coefficients = coefficients_for(profile, FORMATS_USED.get(shape.precision, ("fp32",)))
    decode_factors, prefill_factors = phase_factors(coefficients, shape.precision, confidence)
    starts = range(0, shape.prompt, PREFILL_CHUNK_IDS)
    portable = coefficients.dialect == "portable"  # its graphs attend to all of the KV cache, however little is filled
    return CostModel(
        profile=profile,
        shape=shape,
        coefficients=coefficients,
        by_threads=latency.by_threads(coefficients),
        prefill_runs=tuple(
            (min(PREFILL_CHUNK_IDS, shape.prompt - start), shape.context if portable else start) for start in starts
        ),
        runtime_mb=profile.performance.runtime_mb.value,
        arena_factor=memory.ARENA_FACTOR if profile.memory.ram_mb.value >= SMALL_BOARD_MB else 1.0,
        confidence=confidence,
        decode_factors=decode_factors,
        prefill_factors=prefill_factors,
    )
