"""A matrix in integers with scales, and its plain quantization in groups.

A row of a matrix is cut into groups of `group_size` weights. A group has one float32 scale, an unsigned code per
weight, and in a GGUF at times a minimum: weight = (code - middle) * scale + minimum, with the middle of all codes.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np

from merino_edge.families.operators import GROUP
from merino_runtime.errors import MerinoError

# How a graph multiplies a matrix: by this project's kernels, or by MatMulInteger with one scale per row and codes
# symmetric around zero.
MatrixLayout = Literal["tiles", "rows"]
# By bits: scales to try, relative to the scale at which the largest weight has the outermost code.
SHRINKS = {4: np.linspace(0.7, 1.1, 9, dtype=np.float32), 8: np.linspace(1.0, 1.04, 5, dtype=np.float32)}
LARGEST_HALF = float(np.finfo(np.float16).max)
CHUNK = 2**17  # weights quantized at a time: they fit the CPU's cache
THREADS = 2  # numpy releases the interpreter's lock during its loops


class Outliers(NamedTuple):
    """Outlier channels among the `size` channels from `first` on, whose groups are stored twice; see `outliers`."""

    first: int
    size: int
    channels: np.ndarray


class QuantizedMatrix(NamedTuple):
    """A matrix [rows, columns], one or several of the state dict joined along their outputs.

    Attributes:
        codes: uint8 [rows, groups, group_size], or [rows, groups, group_size / 2] with two codes of 4 bits in a byte,
            the first in the low half.
        scales: float32 [rows, groups].
        bits: of a code: 4, 5, 6 or 8.
        minimums: float32 [rows, groups]; None: all are 0.
        outliers: the groups that the graph stores twice.
        exact: names of the matrices taken over from a GGUF without a second rounding.
        by_gptq: whether GPTQ rounded it.
    """

    codes: np.ndarray
    scales: np.ndarray
    bits: int
    group_size: int
    minimums: np.ndarray | None = None
    layout: MatrixLayout = "tiles"
    outliers: tuple[Outliers, ...] = ()
    exact: frozenset[str] = frozenset()
    by_gptq: bool = False

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes + (0 if self.minimums is None else self.minimums.nbytes)

    @property
    def columns(self) -> int:
        return self.scales.shape[1] * self.group_size


def quantize_groups(matrix: np.ndarray, bits: int, group_size: int, *, both_signs: bool = False) -> QuantizedMatrix:
    """Quantize a matrix float32 [rows, columns]: of a few scales, each group gets the one of least squared error.

    `both_signs`: the codes are symmetric around zero, so that none is -2^(bits - 1).
    """
    rows, columns = matrix.shape
    values = np.ascontiguousarray(matrix, np.float32).reshape(rows, columns // group_size, group_size)
    step = max(1, CHUNK // columns)
    codes = np.empty((rows, columns // group_size, group_size * bits // 8), np.uint8)
    scales = np.empty(codes.shape[:2], np.float32)

    def fill(at: int) -> None:
        codes[at : at + step], scales[at : at + step] = quantize_rows(values[at : at + step], bits, both_signs)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fill, range(0, rows, step)))
    return QuantizedMatrix(codes, scales, bits, group_size)


def quantize_rows(values: np.ndarray, bits: int, both_signs: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return codes uint8 [rows, groups, group_size * bits / 8] and scales float32 [rows, groups] of values [rows,
    groups, group_size].

    For each trial scale the values v are rounded to codes c. Then the scale is refitted to the codes: v.c / c.c has the
    least squared error.
    """
    half = 2 ** (bits - 1)
    largest = np.take_along_axis(values, np.abs(values).argmax(-1)[..., None], -1)[..., 0]  # with its sign
    lowest = 1 - half if both_signs else -half
    full = np.where(largest == 0, 1, largest) / np.float32(lowest)  # the negative side may have one code more
    best_scale, best_error = full, np.full_like(full, np.inf)
    for shrink in SHRINKS[bits]:
        codes = rounded(values, full * shrink, lowest, half - 1)
        norm = np.einsum("rbk,rbk->rb", codes, codes)
        scale = np.where(norm > 0, np.einsum("rbk,rbk->rb", codes, values) / np.maximum(norm, 1), full)
        codes *= scale[..., None]
        codes -= values
        error = np.einsum("rbk,rbk->rb", codes, codes)
        better = error < best_error
        best_scale, best_error = np.where(better, scale, best_scale), np.where(better, error, best_error)
    codes = (rounded(values, best_scale, lowest, half - 1) + half).astype(np.uint8)
    return packed(codes, bits), best_scale


def rounded(values: np.ndarray, scale: np.ndarray, lowest: int, highest: int) -> np.ndarray:
    """Return values / scale as integers from `lowest` to `highest`, in float32; values [rows, groups, group_size],
    scale [rows, groups]."""
    codes = values / np.where(scale == 0, 1, scale)[..., None]  # a scale underflows to 0 with the tiniest values
    np.rint(codes, out=codes)
    return np.clip(codes, lowest, highest, out=codes)


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes uint8 [..., group_size]: two of 4 bits in a byte."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4) if bits == 4 else codes


def dequantize(matrix: QuantizedMatrix, rows: slice = slice(None)) -> np.ndarray:
    """Return the weights that the codes of these rows represent, float32 [rows, columns]."""
    codes = matrix.codes[rows]
    if matrix.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
    values = codes.astype(np.float32)  # in place from here on: an embedding may have a GB
    values -= 2 ** (matrix.bits - 1)
    values *= matrix.scales[rows][..., None]
    if matrix.minimums is not None:
        values += matrix.minimums[rows][..., None]
    return values.reshape(len(codes), -1)


# For this project's kernels: groups of 32 channels, or of 16 in 6 bits, and float16 scales. `dialects/tiles` writes
# their bytes.


def for_tiles(name: str, matrix: QuantizedMatrix) -> QuantizedMatrix:
    """Return the matrix with scales and minimums rounded to float16, and codes of 8 bits in 5 or 6 if they fit. Codes
    are changed in place."""
    scales = halves(name, matrix.scales).astype(np.float32)
    minimums = None if matrix.minimums is None else halves(name, matrix.minimums).astype(np.float32)
    bits = fewest_bits(matrix)
    if bits != matrix.bits:
        np.subtract(matrix.codes, np.uint8(2**7 - 2 ** (bits - 1)), out=matrix.codes)
    return matrix._replace(scales=scales, minimums=minimums, bits=bits)


def fewest_bits(matrix: QuantizedMatrix) -> int:
    """Return the fewest bits in which the kernels have the codes: 6 in groups of 16 channels, 5 in others."""
    small = matrix.group_size == GROUP // 2
    bits = 6 if small else 5
    half, codes = 2 ** (bits - 1), matrix.codes
    fit = matrix.bits == 8 and codes.min() >= 2**7 - half and codes.max() < 2**7 + half
    return bits if fit and not (small and codes.shape[1] % 2) else matrix.bits


def halves(name: str, values: np.ndarray) -> np.ndarray:
    """Return the values in float16. Raises MerinoError for values beyond its range."""
    if np.abs(values).max(initial=0) > LARGEST_HALF:
        raise MerinoError(
            f"{name} has groups whose scale is above {LARGEST_HALF:.0f}, which float16 cannot hold: export with"
            " --precision fp32"
        )
    return values.astype(np.float16)
