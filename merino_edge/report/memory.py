"""Peak memory of a run, split into weights, KV cache and rest as far as its records allow."""

from collections.abc import Sequence
from dataclasses import dataclass

from merino_edge.families.operators import kv_bytes, weight_bytes
from merino_edge.report.series import Series
from merino_runtime.io.board import MB as BYTES_PER_MB


@dataclass(frozen=True)
class MemoryParts:
    """Parts of the peak in MB (2^20 bytes). kv_mb is None without a known architecture: `rest_mb` then includes it."""

    series: Series
    weights_mb: float
    kv_mb: float | None
    rest_mb: float


def memory_parts(series: Sequence[Series]) -> list[MemoryParts]:
    return [parts for one in series if (parts := parts_of(one)) is not None]


def parts_of(series: Series) -> MemoryParts | None:
    """None where the peak or the size of the weights is unknown.

    The size of the weights follows from the architecture on ONNX Runtime. For other engines, whose storage is
    unknown, it is the size of the bundle's files.
    """
    peak_mb, size = series.peak_rss_mb, series.records[0].bundle_bytes
    operators = series.operators if series.records[0].runs_on_onnxruntime else None
    context = series.context
    if peak_mb is None or (operators is None and size is None):
        return None
    stored = weight_bytes(operators, series.precision) if operators else size or 0
    weights_mb = min(stored / BYTES_PER_MB, peak_mb)
    kv_mb = None
    if operators and context:
        kv_mb = min(kv_bytes(operators, context, series.precision, series.kv) / BYTES_PER_MB, peak_mb - weights_mb)
    return MemoryParts(series, weights_mb, kv_mb, peak_mb - weights_mb - (kv_mb or 0))
