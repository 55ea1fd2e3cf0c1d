"""Bytes in RAM of weights as the backend holds them, and of activations.

The backend (ONNX Runtime) prepacks matrices into the layout of its kernels, so weights take more in RAM than in the
file. How many sessions there are, and what Python and the backend take, is the cost model's.
"""

from collections.abc import Sequence

from merino_edge.families.operators import Operator, activation_bytes, packed_bytes
from merino_edge.prediction.latency_terms import matrix_format
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.coefficients import Coefficients
from merino_runtime.backends.onnx import PREFILL_CHUNK_IDS
from merino_runtime.board import MB as BYTES_PER_MB

HEAP_BYTES = 32 << 20  # glibc keeps freed blocks up to this size, so the original of so small a packed table stays
ARENA_FACTOR = 2.0  # ONNX Runtime's arena grows by doubling and returns nothing; small boards run without it


def weights_mb(
    operators: Sequence[Operator], coefficients: Coefficients, precision: str, *, prepacking: bool
) -> float:
    """MB of weights in one session, during prepacking of the table or after it. Adds up over operators."""
    held = sum(held_bytes(op, coefficients, precision, prepacking) for op in operators if op.own)
    return held / BYTES_PER_MB


def held_bytes(op: Operator, coefficients: Coefficients, precision: str, prepacking: bool) -> float:
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
    """Bytes of a table that the backend prepacks at once; original and packed copy coexist meanwhile."""
    return packed_bytes(op.stored_bytes(precision), matrix_format(op, precision))


def prepacking_peaks(table: Operator, precision: str) -> bool:
    """Whether a table can take more RAM during prepacking than after it: the heap does not keep so large a block."""
    return prepacked_bytes(table, precision) > HEAP_BYTES


def activation_mb(operators: Sequence[Operator], shape: InferenceShape, arena_factor: float) -> float:
    """MB of the worst operator in the last piece of the prefill, which attends to the whole prompt. A maximum."""
    tokens = min(PREFILL_CHUNK_IDS, shape.prompt)
    return arena_factor * activation_bytes(operators, tokens, shape.prompt) / BYTES_PER_MB
