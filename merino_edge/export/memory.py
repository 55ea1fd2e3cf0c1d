"""Estimates the memory of an export from the geometry, before any weight is allocated or read."""

import psutil

from merino_edge.families.geometry import Geometry
from merino_edge.families.operators import params
from merino_runtime.errors import MerinoError
from merino_runtime.io.board import MB as BYTES_PER_MB

# Near the lowest of the measured peaks (docs/decisions/house.md), so that no export that fits is refused.
IMPORTS_MB = 450  # Python, torch, transformers and onnx
COPIES = 2.5  # float32 copies of the weights: torch's, the graph's, and ONNX Runtime's packed ones during parity
QUANTIZED_COPIES = 3.0  # and torch's dequantized copy


def needed_mb(arch: Geometry, precision: str, calibrated: bool = False) -> float:
    """Return the peak memory of the process in MB (2^20 bytes). The KV cache is not counted, because few of its pages
    are touched."""
    needed = IMPORTS_MB + (COPIES if precision == "fp32" else QUANTIZED_COPIES) * weights_mb(arch)
    if calibrated:  # at most a float32 Hessian for each matrix: those that share an input share one
        needed += sum(4 * op.columns**2 for op in arch.operators if op.kind == "linear") / BYTES_PER_MB
    return needed


def weights_mb(arch: Geometry) -> float:
    """Return the memory of one float32 copy of the weights."""
    return 4 * params(arch.operators) / BYTES_PER_MB


def check_memory(
    arch: Geometry, name: str, precision: str = "fp32", used_mb: float = 0.0,
    calibrated: bool = False,
) -> None:  # fmt: skip
    """Raises MerinoError if the export would need more memory than is available now.

    used_mb: the part of it that this process uses already. calibrated: whether GPTQ keeps Hessians.
    """
    needed = needed_mb(arch, precision, calibrated)
    available = psutil.virtual_memory().available / BYTES_PER_MB + used_mb
    if needed > available:
        raise MerinoError(
            f"exporting {name} in {precision} needs about {needed:,.0f} MB, for copies of {weights_mb(arch):,.0f} MB of"
            f" float32 weights, and {available:,.0f} MB are available. Stop other programs, export on a machine with"
            " more memory, or choose a smaller model"
        )
