"""Predict latency and memory of operators in TensorRT on a board's GPU, for one inference shape.

An engine runs one kernel after the other, so an operator takes its launches x `launch_us`, plus the longer of moving
its bytes at `read_gb_s` and computing at the format's rate. This is additive over operators, as the exact search
requires. The engine is built from the `portable` graph, in which each run reads the whole cache of fixed shape, however
little of it is filled.

No engine was timed on a board yet. Kernels are counted in the graph: a chain of elementwise nodes is one kernel, as
TensorRT fuses them; each matmul, softmax and change of layout is one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from merino_edge.families.operators import FIRST_HASHING, FORMATS, Operator, activation_bytes, has_states, hashes_ids
from merino_edge.prediction.intervals import Factors
from merino_edge.prediction.latency import ThreadCoefficients
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.coefficients import Figure
from merino_edge.profiles.profile import DeviceProfile, TensorRtPerformance
from merino_runtime.backends.engine_build import PREFILL_CHUNK_IDS
from merino_runtime.bundle.requirements import version_tuple
from merino_runtime.errors import MerinoError
from merino_runtime.io.board import MB as BYTES_PER_MB

LAUNCHES: Mapping[str, int] = {
    "embed": 6,  # the row; both masks and rotary angles of a run
    "linear": 1,
    "norm": 3,  # the residual's sum and the squares; their mean; the scaling
    "activation": 1,
    # layouts of query, keys, values and the result 4; rotary positions 4; products with cached and new keys and values
    # 4; both masks 2; softmax 1; its two parts 2; their sum 1; new keys and values out 2 (one strided copy takes those
    # of all layers into the cache: it is in `step_us`)
    "attention": 20,
    "head": 2,  # the last position, the product
    "slots": 3,  # positions; whether they are of the text; the cache's slots
    "taps": 8,  # cached and new inputs 4, joined 2; products and sums; the gates
    "ids": 8,
    "ngrams": 3,  # the hash, the row, the sum
}
NORM_PASSES, ACTIVATION_PASSES, SCORE_PASSES = 6, 2, 8  # reads and writes of each element
LOGIT_COPIES = 2  # to the host, and there by the sampler
OPENING_COPIES = 2  # of the engine: the plan from the file, and its weights


@dataclass(frozen=True, eq=False)
class TensorRtCosts:
    """Costs in TensorRT, from the shape and the GPU's figures.

    Attributes:
        chunk: tokens in one run of the prefill.
        version: of TensorRT.
    """

    shape: InferenceShape
    speed: TensorRtPerformance
    chunk: int
    version: str

    @property
    def runtime_mb(self) -> float:
        """Return the MB of Python, the backend's libraries and the CUDA context, before an engine is opened."""
        return self.speed.runtime_mb.value + self.speed.cuda_context_mb.value

    @property
    def figures(self) -> Sequence[Figure]:
        """Return the figures that the predictions depend on."""
        speed = self.speed
        return (
            speed.read_gb_s, self._rate, speed.launch_us, speed.step_us, speed.host_copy_gb_s, speed.runtime_mb,
            speed.cuda_context_mb,
        )  # fmt: skip

    @property
    def _rate(self) -> Figure:
        return self.speed.fp16_gflops if self.shape.precision == "fp16" else self.speed.fp32_gflops

    @property
    def by_threads(self) -> Mapping[int | None, ThreadCoefficients]:
        """One, without caches: a GPU has no thread counts to choose, and its cache is a fraction of any decoder."""
        return {None: ThreadCoefficients({}, 0.0, 0.0, 0.0)}

    def latency_tables(self, operators: Sequence[Operator], prefill: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the same tables as `onnxruntime_costs`: one column of thread counts, and no latency that caches could
        save."""
        decode, whole = np.zeros((2, len(operators), 1, 2))
        decode[:, 0, 0] = [self._run_ms([op], 1) for op in operators]
        if prefill:
            runs = -(-self.shape.prompt // self.chunk)
            whole[:, 0, 0] = [runs * self._run_ms([op], self.chunk) for op in operators]
        return decode, whole

    def _run_ms(self, operators: Sequence[Operator], tokens: int) -> float:
        """Return the ms of one run over `tokens` new positions."""
        speed, total_us = self.speed, 0.0
        if hashes_ids(operators) and version_tuple(self.version) < version_tuple(FIRST_HASHING):
            raise MerinoError(
                f"n-gram tables need TensorRT {FIRST_HASHING} or later, and the board has {self.version}: design"
                " without ngrams, or for --board BOARD:onnxruntime"
            )
        if has_states(operators):
            raise MerinoError("gated DeltaNet is not possible in TensorRT: give --board BOARD:onnxruntime")
        for op in operators:
            launches = LAUNCHES[op.kind] + bool(op.vector and op.kind == "linear")  # a bias
            rows = 1 if op.kind == "head" or op.final else tokens
            flops = 2 * op.macs * rows + 4 * op.query_width * tokens * (self.shape.context + tokens)
            moving_us = self._moved_bytes(op, tokens) / speed.read_gb_s.value / 1e3
            computing_us = flops / self._rate.value / 1e3
            total_us += launches * speed.launch_us.value + max(moving_us, computing_us)
            if op.kind == "head":  # a run has one
                logits_bytes = LOGIT_COPIES * 4 * op.matrix / op.columns
                total_us += speed.step_us.value + logits_bytes / speed.host_copy_gb_s.value / 1e3
        return total_us / 1e3

    def _moved_bytes(self, op: Operator, tokens: int) -> float:
        """Return the bytes that one run reads and writes. Shared weights are read at each use."""
        size = FORMATS[self.shape.precision].element_bytes
        rows = 1 if op.kind == "head" or op.final else tokens
        if op.kind == "attention":
            total = self.shape.context + tokens
            ends = 4 * (op.query_width + op.width) * tokens  # layouts and rotary positions read and write them twice
            return size * (2 * op.width * total + ends + SCORE_PASSES * op.heads * tokens * total)
        if op.kind == "norm":
            return op.read_bytes(self.shape.precision) + 4 * NORM_PASSES * op.vectors * rows  # float32 in each format
        if op.kind in ("activation", "taps"):
            return size * ACTIVATION_PASSES * op.vectors * rows
        if op.kind in ("embed", "ngrams"):
            return 2 * size * op.columns * tokens
        return op.read_bytes(self.shape.precision) + size * rows * (op.columns + op.matrix // op.columns)

    def read_mb(self, operators: Sequence[Operator]) -> float:
        """Return the MB that a decode step reads and writes. Additive over operators."""
        return sum(self._moved_bytes(op, 1) for op in operators) / BYTES_PER_MB

    def weights_mb(self, operators: Sequence[Operator], *, opening: bool) -> float:
        """Return the MB of the engine's weights; while it opens, with the plan. Additive over operators.

        Each use of a matrix counts, a tied embedding twice: TensorRT lays out a matrix for each kernel, and it was not
        measured whether two kernels share one.
        """
        engine = sum(op.stored_bytes(self.shape.precision) for op in operators) / BYTES_PER_MB
        return OPENING_COPIES * engine if opening else engine

    def activation_mb(self, operators: Sequence[Operator]) -> float:
        """Return the MB of the execution context: the largest operator in a run of the prefill, a maximum."""
        return activation_bytes(operators, self.chunk, self.shape.context + self.chunk) / BYTES_PER_MB

    def factors(self, confidence: float) -> tuple[Factors | None, Factors | None]:  # noqa: ARG002
        """Return no intervals: the errors of predictions were not measured."""
        return None, None

    def why_no_interval(self) -> str:
        return "the errors of predictions for TensorRT were not measured yet"


def tensorrt_costs(profile: DeviceProfile, shape: InferenceShape) -> TensorRtCosts:
    speed = profile.performance.tensorrt
    assert speed is not None, "a profile's backend has figures"
    version = profile.software.tensorrt or FIRST_HASHING
    return TensorRtCosts(shape, speed, min(PREFILL_CHUNK_IDS, shape.context), version)
