"""Weight-only block quantisation, in the layout of ONNX Runtime's MatMulNBits and GatherBlockQuantized.

A row of a matrix is cut into blocks. A block has one float32 scale and an unsigned code of 4 or 8 bits per weight:
weight = (code - 2^(bits - 1)) * scale. It is symmetric: the code in the middle stands for zero. A block may have a
minimum besides, which is added to each of its weights. The minimums of a row are stored in blocks of 8 bits in turn.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from merino_edge.families.operators import BLOCKS
from merino_runtime.errors import MerinoError

ERROR_RATIO = {4: 1.25, 8: 2.0}  # by bits: allowed RMS error of a larger block, relative to the smallest block's
# By bits: scales that are tried, relative to the scale at which the largest weight has the outermost code.
SHRINKS = {4: np.linspace(0.7, 1.1, 9, dtype=np.float32), 8: np.linspace(1.0, 1.04, 5, dtype=np.float32)}
MINIMUMS_BLOCK = 32
PIECE = 2**17  # weights quantised at a time, so few that they stay in the CPU's cache
THREADS = 2  # numpy releases the interpreter's lock during its loops


class Quantized(NamedTuple):
    """A matrix [rows, columns] whose rows are cut into blocks of `block` weights."""

    codes: np.ndarray  # uint8 [rows, columns / block, block * bits / 8]; of two codes in a byte the low half is first
    scales: np.ndarray  # float32 [rows, columns / block]
    bits: int
    block: int
    minimums: "Quantized | None" = None  # of [rows, columns / block], its last block filled up; None where all are 0

    @property
    def nbytes(self) -> int:
        minimum_bytes = 0 if self.minimums is None else self.minimums.nbytes
        return self.codes.nbytes + self.scales.nbytes + minimum_bytes


class MatrixError(NamedTuple):
    """Absolute errors of the weights of one quantised matrix, relative to the RMS of its weights."""

    name: str
    bits: int
    block: int
    nbytes: int  # codes and scales
    mean: float
    worst: float


def quantize(name: str, matrix: np.ndarray, bits: int, fewest: int = BLOCKS[-1]) -> Quantized:
    """A matrix float32 [rows, columns] in the largest block whose RMS error is within ERROR_RATIO of the smallest's.

    A larger block has fewer scales to read. `fewest`, and MerinoError: see `block_sizes`.
    """
    candidates = block_sizes(name, matrix.shape[1], fewest)
    smallest = quantize_blocks(matrix, bits, candidates[-1])
    allowed = ERROR_RATIO[bits] * rms(dequantize(smallest) - matrix)
    for block in candidates[:-1]:
        found = quantize_blocks(matrix, bits, block)
        if rms(dequantize(found) - matrix) <= allowed:
            return found
    return smallest


def block_sizes(name: str, columns: int, fewest: int = BLOCKS[-1]) -> list[int]:
    """What rows of `columns` weights can be cut into, the largest first.

    `fewest`: weights in the smallest block that is wanted, where it divides the columns. Raises MerinoError if not even
    the smallest of all divides them.
    """
    dividing = [block for block in BLOCKS if columns % block == 0]
    found = [block for block in dividing if block >= fewest] or dividing
    if not found:
        raise MerinoError(
            f"{name} has rows of {columns} weights, which blocks of {BLOCKS[-1]} do not divide: export with"
            " --precision fp32, or design with widths and FFN widths that are multiples of 32"
        )
    return found


def quantize_blocks(matrix: np.ndarray, bits: int, block: int, *, both_signs: bool = False) -> Quantized:
    """Each block gets the scale of least squared error of a few that are tried; the matrix is float32
    [rows, columns].

    `both_signs`: the codes are as many on either side of zero, so that none is -2^(bits - 1).
    """
    rows, columns = matrix.shape
    values = np.ascontiguousarray(matrix, np.float32).reshape(rows, columns // block, block)
    step = max(1, PIECE // columns)
    with ThreadPoolExecutor(THREADS) as pool:
        pieces = list(
            pool.map(lambda at: quantize_rows(values[at : at + step], bits, both_signs), range(0, rows, step))
        )
    codes, scales = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    return Quantized(codes, scales, bits, block)


def quantize_rows(values: np.ndarray, bits: int, both_signs: bool) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 [rows, blocks, block * bits / 8] and scales float32 [rows, blocks] of values [rows, blocks, block].

    A trial rounds the values v to codes c by a trial scale, and then refits the scale to these codes: v.c / c.c has the
    least squared error.
    """
    half = 2 ** (bits - 1)
    largest = np.take_along_axis(values, np.abs(values).argmax(-1)[..., None], -1)[..., 0]  # with its sign
    lowest = 1 - half if both_signs else -half
    full = np.where(largest == 0, 1, largest) / np.float32(lowest)  # of both signs, the negative may have one code more
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


def quantize_minimums(minimums: np.ndarray) -> Quantized:
    """Minimums float32 [rows, blocks] in 8 bits: an error of at most 1/254 of the largest of MINIMUMS_BLOCK of them."""
    filled = np.pad(minimums, ((0, 0), (0, -minimums.shape[1] % MINIMUMS_BLOCK)))
    return quantize_blocks(filled, 8, MINIMUMS_BLOCK)


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes uint8 [..., block], two of 4 bits in a byte."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4) if bits == 4 else codes


def rounded(values: np.ndarray, scale: np.ndarray, lowest: int, highest: int) -> np.ndarray:
    """values / scale as whole numbers from `lowest` to `highest`, float32; values [rows, blocks, block], scale
    [rows, blocks]."""
    codes = values / np.where(scale == 0, 1, scale)[..., None]  # a scale underflows to 0 with the tiniest values
    np.rint(codes, out=codes)
    return np.clip(codes, lowest, highest, out=codes)


def dequantize(found: Quantized) -> np.ndarray:
    """The weights that the codes stand for, float32 [rows, columns]."""
    codes = found.codes
    if found.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
    values = (codes.astype(np.float32) - 2 ** (found.bits - 1)) * found.scales[..., None]
    if found.minimums is not None:
        values += dequantize(found.minimums)[:, : values.shape[1], None]
    return values.reshape(len(codes), -1)


def matrix_error(name: str, matrix: np.ndarray, found: Quantized) -> MatrixError:
    difference = np.abs(dequantize(found) - matrix)
    scale = rms(matrix) or 1.0
    mean, worst = float(difference.mean()) / scale, float(difference.max()) / scale
    return MatrixError(name, found.bits, found.block, found.nbytes, mean, worst)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
