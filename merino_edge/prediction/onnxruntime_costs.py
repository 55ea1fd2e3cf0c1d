"""Latency and memory of operators in ONNX Runtime on a board's CPU, resolved for one inference shape. The same
interface as `tensorrt_costs`.

ONNX Runtime prepacks matrices into the layout of its kernels, so weights are larger in RAM than in the file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from merino_edge.families.operators import Operator, activation_bytes, packed_bytes
from merino_edge.prediction import latency
from merino_edge.prediction.default_coefficients import coefficients_for
from merino_edge.prediction.formats import attends_by_groups
from merino_edge.prediction.intervals import Factors, phase_factors, why_no_interval
from merino_edge.prediction.latency import Latency, Regime, Residency, Run, ThreadCoefficients, matrix_format
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.coefficients import Coefficients, Figure
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.backends.onnx import PREFILL_CHUNK_IDS
from merino_runtime.backends.onnx_session import SMALL_BOARD_MB
from merino_runtime.io.board import MB as BYTES_PER_MB

FORMATS_USED = {"int8": ("fp32", "int8"), "int4": ("fp32", "int8", "int4")}  # int4 models have a head of 8 bits
HEAP_BYTES = 32 << 20  # glibc keeps freed blocks up to this size, so the original of a smaller packed table stays
ARENA_FACTOR = 2.0  # ONNX Runtime's arena grows by doubling and returns nothing; small boards run without it


@dataclass(frozen=True, eq=False)
class OnnxRuntimeCosts:
    """Costs in ONNX Runtime.

    Attributes:
        by_threads: coefficients of the latency model for each known thread count, ascending.
        prefill_runs: the runtime's chunks of the prefill, each of which computes the head.
        runtime_mb: memory of Python and the backend before a model is loaded.
        arena_factor: memory of the backend's arena, relative to the activations in it.
        by_groups: whether exports for this board use GroupAttention.
        default_regime: streaming, at the thread counts of the profile.
    """

    shape: InferenceShape
    coefficients: Coefficients
    by_threads: Mapping[int, ThreadCoefficients]
    prefill_runs: tuple[Run, ...]
    runtime_figure: Figure
    arena_factor: float
    by_groups: bool
    default_regime: Regime

    @property
    def runtime_mb(self) -> float:
        return self.runtime_figure.value

    @property
    def figures(self) -> Sequence[Figure | Coefficients]:
        """The figures that the predictions depend on."""
        return self.coefficients, self.runtime_figure

    @property
    def thread_counts(self) -> list[ThreadCoefficients]:
        return list(self.by_threads.values())

    def decode_latency(self, operators: Sequence[Operator], threads: int) -> Latency:
        """Latency of one decode step, batch 1, at a full KV cache."""
        return self._latency(operators, [(1, self.shape.context)], threads)

    def prefill_latency(self, operators: Sequence[Operator], threads: int) -> Latency:
        """Latency of prefilling the whole prompt into an empty KV cache."""
        return self._latency(operators, self.prefill_runs, threads)

    def _latency(self, operators: Sequence[Operator], runs: Sequence[Run], threads: int) -> Latency:
        at, dialect = self.by_threads[threads], self.coefficients.dialect
        return latency.latency(operators, self.shape.precision, runs, dialect, at, self.shape.kv, self.by_groups)

    def decode_ms(self, operators: Sequence[Operator], threads: int | None, residency: Residency) -> float:
        """ms of one decode step. Additive over operators."""
        assert threads is not None
        step = self.decode_latency(operators, threads)
        return {"resident": step.cached_ms, "partial": step.partial_ms, "streaming": step.streaming_ms}[residency]

    def prefill_ms(self, operators: Sequence[Operator], threads: int | None, residency: Residency) -> float:
        """ms of the prefill; only resident weights come from the caches. Additive over operators."""
        assert threads is not None
        prefill = self.prefill_latency(operators, threads)
        return prefill.cached_ms if residency == "resident" else prefill.streaming_ms

    def by_thread_counts(self, operators: Sequence[Operator]) -> dict[int | None, tuple[float, float]]:
        """(decode, prefill) in ms of a whole decoder, in its residency, for each thread count."""
        latencies: dict[int | None, tuple[float, float]] = {}
        read_mb = self.read_mb(operators)
        for count, at in self.by_threads.items():
            missed = at.missed_share(read_mb)
            step, prompt = self.decode_latency(operators, count), self.prefill_latency(operators, count)
            decode_ms = step.cached_ms + missed * step.memory_ms
            latencies[count] = decode_ms, prompt.streaming_ms if missed else prompt.cached_ms
        return latencies

    def latency_tables(self, operators: Sequence[Operator], prefill: bool) -> tuple[np.ndarray, np.ndarray]:
        """`cached_ms` and `memory_ms` of decode and of prefill for each operator alone and each thread count; zeros for
        a prefill that is not asked for. [operators, thread counts, 2] twice."""

        def table(runs: Sequence[Run]) -> np.ndarray:
            return latency.latency_table(
                operators, self.shape.precision, runs, self.coefficients.dialect, self.thread_counts, self.shape.kv,
                self.by_groups,
            )  # fmt: skip

        return table([(1, self.shape.context)]), table(self.prefill_runs if prefill else [])

    def read_mb(self, operators: Sequence[Operator]) -> float:
        """MB of a decode step's first reads, which decide the residency. Additive over operators."""
        shape = self.shape
        return latency.read_mb(operators, shape.precision, shape.context, self.coefficients.dialect, shape.kv)

    def regimes(self) -> list[Regime]:
        """Every regime; few threads and small decoders first."""
        counts = list(self.by_threads)
        return [
            Regime(decode, prefill, residency)
            for residency in latency.RESIDENCIES for decode in counts for prefill in counts
        ]  # fmt: skip

    def ceiling_mb(self, regime: Regime) -> float | None:
        """Upper limit of `read_mb` in the regime; None: no limit."""
        assert regime.decode_threads is not None
        return self.by_threads[regime.decode_threads].ceiling_mb(regime.residency)

    def weights_mb(self, operators: Sequence[Operator], *, opening: bool) -> float:
        """MB of weights in one session; while it opens, with the copies of prepacking. Additive over operators."""
        return weights_mb(operators, self.coefficients, self.shape.precision, prepacking=opening)

    def opening_can_peak(self, table: Operator) -> bool:
        """Whether an embedding of this size can take more memory during prepacking than after it."""
        return prepacking_peaks(table, self.shape.precision)

    def activation_mb(self, operators: Sequence[Operator]) -> float:
        """MB of the largest operator's activations: a maximum, not a sum."""
        return activation_mb(operators, self.shape, self.arena_factor)

    def factors(self, confidence: float) -> tuple[Factors | None, Factors | None]:
        """Prediction intervals of decode and prefill."""
        return phase_factors(self.coefficients, self.shape.precision, confidence)

    def why_no_interval(self) -> str:
        """Why a latency has no interval, and how to get one."""
        return why_no_interval(self.coefficients, self.shape.precision)


def onnxruntime_costs(profile: DeviceProfile, shape: InferenceShape) -> OnnxRuntimeCosts:
    speed = profile.performance.onnxruntime
    coefficients = coefficients_for(profile, FORMATS_USED.get(shape.precision, ("fp32",)))
    portable = coefficients.dialect == "portable"  # its graphs attend to the whole KV cache, however little is filled
    return OnnxRuntimeCosts(
        shape=shape,
        coefficients=coefficients,
        by_threads=latency.by_threads(coefficients, latency.CACHE_TIMES.get(profile.arch, {})),
        prefill_runs=tuple(
            (new, shape.context if portable else cached) for new, cached in prefill_pieces(shape.prompt)
        ),
        runtime_figure=speed.runtime_mb,
        arena_factor=ARENA_FACTOR if profile.memory.ram_mb.value >= SMALL_BOARD_MB else 1.0,
        by_groups=attends_by_groups(profile, shape.precision),
        default_regime=Regime(speed.decode_threads.value, speed.prefill_threads.value, "streaming"),
    )


def prefill_pieces(prompt: int) -> list[Run]:
    """The runtime's chunks of a prefill of `prompt` tokens into an empty cache."""
    return [(min(PREFILL_CHUNK_IDS, prompt - start), start) for start in range(0, prompt, PREFILL_CHUNK_IDS)]


def weights_mb(
    operators: Sequence[Operator], coefficients: Coefficients, precision: str, *, prepacking: bool
) -> float:
    """MB of weights in one session, during prepacking of the embedding or after it. Additive over operators."""
    total_bytes = sum(resident_bytes(op, coefficients, precision, prepacking) for op in operators if op.own)
    return total_bytes / BYTES_PER_MB


def resident_bytes(op: Operator, coefficients: Coefficients, precision: str, prepacking: bool) -> float:
    """Bytes of one operator's weights in RAM. A format without CPU kernels (fp16) is not prepacked."""
    form, size = matrix_format(op, precision), op.stored_bytes(precision)
    if form not in coefficients.formats:
        return size
    factors = coefficients.of_format(form)
    if op.kind not in ("embed", "head"):
        return factors.resident * size
    piece = prepacked_bytes(op, precision)
    beside = factors.table_opening * piece if prepacking or piece <= HEAP_BYTES else 0.0
    return factors.table_resident * size + beside


def prepacked_bytes(op: Operator, precision: str) -> float:
    """Bytes of an embedding that the backend prepacks at once, while original and packed copy coexist."""
    return packed_bytes(op.stored_bytes(precision), matrix_format(op, precision))


def prepacking_peaks(table: Operator, precision: str) -> bool:
    """Whether an embedding can take more RAM during prepacking than after it: the heap frees such a large block."""
    return prepacked_bytes(table, precision) > HEAP_BYTES


def activation_mb(operators: Sequence[Operator], shape: InferenceShape, arena_factor: float) -> float:
    """MB of the largest operator in the last chunk of the prefill, which attends to the whole prompt. A maximum."""
    tokens = min(PREFILL_CHUNK_IDS, shape.prompt)
    return arena_factor * activation_bytes(operators, tokens, shape.prompt) / BYTES_PER_MB
