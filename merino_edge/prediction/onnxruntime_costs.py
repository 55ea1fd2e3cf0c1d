"""Predict latency and memory of operators in ONNX Runtime on a board's CPU, for one inference shape. It has the same
interface as `tensorrt_costs`.

ONNX Runtime prepacks matrices into the layout of its kernels, so weights are larger in RAM than in the file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from merino_edge.families.operators import Operator, activation_bytes, packed_bytes
from merino_edge.prediction import latency
from merino_edge.prediction.default_coefficients import coefficients_for
from merino_edge.prediction.intervals import Factors, factors
from merino_edge.prediction.latency import Run, ThreadCoefficients, amounts, matrix_format
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.coefficients import MEMORY, Coefficients, Figure, LatencyError
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.backends.onnx import PREFILL_CHUNK_IDS
from merino_runtime.backends.onnx_session import SMALL_BOARD_MB
from merino_runtime.io.board import MB as BYTES_PER_MB

FORMATS_USED = {"int8": ("fp32", "int8"), "int4": ("fp32", "int8", "int4")}  # int4 models have a head of 8 bits
PROBE = "run `merino.pyz probe` on the board and `merino-edge calibrate` here"
HEAP_BYTES = 32 << 20  # glibc keeps freed blocks up to this size, so the original of a smaller packed table stays
ARENA_FACTOR = 2.0  # ONNX Runtime's arena grows by doubling and returns nothing; small boards run without it


@dataclass(frozen=True, eq=False)
class OnnxRuntimeCosts:
    """Costs in ONNX Runtime.

    Attributes:
        by_threads: coefficients of the latency model for each known thread count, ascending.
        decode_runs: one decode step, batch 1, at a full KV cache.
        prefill_runs: the runtime's chunks of the prefill into an empty cache, each of which computes the head.
        runtime_figure: MB of Python and the backend before a model is loaded.
        arena_factor: memory of the backend's arena, relative to the activations in it.
    """

    shape: InferenceShape
    coefficients: Coefficients
    by_threads: Mapping[int | None, ThreadCoefficients]
    decode_runs: tuple[Run, ...]
    prefill_runs: tuple[Run, ...]
    runtime_figure: Figure
    arena_factor: float

    @property
    def runtime_mb(self) -> float:
        return self.runtime_figure.value

    @property
    def figures(self) -> Sequence[Figure | Coefficients]:
        """Return the figures that the predictions depend on."""
        return self.coefficients, self.runtime_figure

    def latency_tables(self, operators: Sequence[Operator], prefill: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return `cached_ms` and `memory_ms` of decode and of prefill for each operator alone and each thread count.

        Two arrays [operators, thread counts, 2]. Without `prefill` the second is zeros.
        """
        shape, dialect, threads = self.shape, self.coefficients.dialect, list(self.by_threads.values())
        decode, prefilled = (
            latency.latency_table(
                operators, shape.precision, runs, dialect, threads, kv=shape.kv
            )
            for runs in (self.decode_runs, self.prefill_runs if prefill else ())
        )  # fmt: skip
        return decode, prefilled

    def read_mb(self, operators: Sequence[Operator]) -> float:
        """Return the MB of a decode step's first reads. The caches hold a part of them. Additive over operators."""
        shape, dialect = self.shape, self.coefficients.dialect
        steps = (amounts(op, shape.precision, 1, shape.context, dialect, kv=shape.kv) for op in operators)
        return sum(step.get(MEMORY, 0.0) for step in steps) * 1e6 / BYTES_PER_MB

    def weights_mb(self, operators: Sequence[Operator], *, opening: bool) -> float:
        """Return the MB of weights in one session; while it opens, with the copies of prepacking. Additive over
        operators."""
        return sum(self._resident_bytes(op, opening) for op in operators if op.own) / BYTES_PER_MB

    def _resident_bytes(self, op: Operator, prepacking: bool) -> float:
        """Return the bytes of one operator's weights in RAM. A format without CPU kernels (fp16) is not prepacked."""
        form, size = matrix_format(op, self.shape.precision), op.stored_bytes(self.shape.precision)
        if form not in self.coefficients.formats:
            return size
        factors = self.coefficients.of_format(form)
        if op.kind not in ("embed", "head"):
            return factors.resident * size
        piece = packed_bytes(size, form)  # prepacked at once: the original and the packed copy coexist
        original = factors.table_opening * piece if prepacking or piece <= HEAP_BYTES else 0.0
        return factors.table_resident * size + original

    def activation_mb(self, operators: Sequence[Operator]) -> float:
        """Return the MB of the largest operator in the last chunk of the prefill, which attends to the whole prompt: a
        maximum, not a sum."""
        tokens = min(PREFILL_CHUNK_IDS, self.shape.prompt)
        return self.arena_factor * activation_bytes(operators, tokens, self.shape.prompt) / BYTES_PER_MB

    def factors(self, confidence: float) -> tuple[Factors | None, Factors | None]:
        """Return the prediction intervals of decode and prefill; None if their errors were not measured."""
        decode_error, prefill_error = self._errors
        return factors(decode_error, confidence), factors(prefill_error, confidence)

    def why_no_interval(self) -> str:
        """Return why a latency has no interval, how to get one, and whose another latency's is."""
        decode_error, _ = self._errors
        published = decode_error is not None and decode_error.of == "published"
        whose = "decode's is that of other engines' published speeds; " if published else ""
        if self.coefficients.dialect == "portable":
            return f"{whose}a probe below ONNX Runtime 1.18 times no whole decoders"
        if self.coefficients.kind == "estimated":
            return f"{whose}the coefficients are estimated; {PROBE}"
        lacking = f"the profile has no errors of whole decoders in {self.shape.precision}"
        return f"{lacking}; {PROBE}, with nothing else running"

    @property
    def _errors(self) -> tuple[LatencyError | None, LatencyError | None]:
        form = getattr(self.coefficients, self.shape.precision, None)
        return (form.decode_error, form.prefill_error) if form else (None, None)


def onnxruntime_costs(profile: DeviceProfile, shape: InferenceShape) -> OnnxRuntimeCosts:
    speed = profile.performance.onnxruntime
    coefficients = coefficients_for(profile, FORMATS_USED.get(shape.precision, ("fp32",)))
    portable = coefficients.dialect == "portable"  # its graphs attend to the whole KV cache, filled or not
    return OnnxRuntimeCosts(
        shape=shape,
        coefficients=coefficients,
        by_threads=latency.by_threads(coefficients, latency.CACHE_TIMES.get(profile.arch, {})),
        decode_runs=((1, shape.context),),
        prefill_runs=tuple(
            (new, shape.context if portable else cached) for new, cached in prefill_chunks(shape.prompt)
        ),
        runtime_figure=speed.runtime_mb,
        arena_factor=ARENA_FACTOR if profile.memory.ram_mb.value >= SMALL_BOARD_MB else 1.0,
    )


def prefill_chunks(prompt: int) -> list[Run]:
    """Return the runtime's chunks of a prefill of `prompt` tokens into an empty cache."""
    return [(min(PREFILL_CHUNK_IDS, prompt - start), start) for start in range(0, prompt, PREFILL_CHUNK_IDS)]
