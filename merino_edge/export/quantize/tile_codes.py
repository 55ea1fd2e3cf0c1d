"""Quantized matrices for this project's kernels: groups of 32 channels, or of 16 in 6 bits, and float16 scales.
`dialects/tiles` writes their bytes."""

import numpy as np

from merino_edge.export.quantize.matrix import QuantizedMatrix
from merino_runtime.errors import MerinoError

GROUP_SIZE = 32
HALF_GROUP = GROUP_SIZE // 2
LARGEST_HALF = float(np.finfo(np.float16).max)


def fits_tiles(matrix: QuantizedMatrix, few_bits: bool) -> bool:
    return matrix.group_size % GROUP_SIZE == 0 or few_bits and fewest_bits(matrix) == 6


def for_tiles(name: str, matrix: QuantizedMatrix, few_bits: bool) -> QuantizedMatrix:
    """Return the matrix with scales rounded to float16. `few_bits`: store codes of 8 bits in 5 or 6 if they fit."""
    scales = halves(name, matrix.scales).astype(np.float32)
    bits = fewest_bits(matrix) if few_bits else matrix.bits
    codes = matrix.codes if bits == matrix.bits else matrix.codes - np.uint8(2**7 - 2 ** (bits - 1))
    return matrix._replace(codes=codes, scales=scales, bits=bits, layout="tiles")


def fewest_bits(matrix: QuantizedMatrix) -> int:
    if matrix.bits != 8:
        return matrix.bits
    if matrix.group_size == HALF_GROUP:
        return 6 if matrix.codes.shape[1] % 2 == 0 and hold(6, matrix.codes) else 8
    return 5 if hold(5, matrix.codes) else 8


def hold(bits: int, codes: np.ndarray) -> bool:
    """Return whether these codes of 8 bits fit in so many bits."""
    half = 2 ** (bits - 1)
    return bool(codes.min() >= 2**7 - half and codes.max() < 2**7 + half)


def halves(name: str, values: np.ndarray) -> np.ndarray:
    """Return the values in float16. Raises MerinoError for values beyond its range."""
    if np.abs(values).max(initial=0) > LARGEST_HALF:
        raise MerinoError(
            f"{name} has groups whose scale is above {LARGEST_HALF:.0f}, which float16 cannot hold: export with"
            " --precision fp32"
        )
    return values.astype(np.float16)
