"""Weight-only quantization in groups, in the layout of ONNX Runtime's MatMulNBits and GatherBlockQuantized.

A row of a matrix is cut into groups of `group_size` weights. A group has one float32 scale and an unsigned code of 4 or
8 bits per weight: weight = (code - zero_point) * scale. Without zero points the middle code stands for zero.

Matrices in a source's blocks (GGUF's word for groups) are taken over with the same codes and scales, without a second
rounding. A block may have a minimum, which is added to each weight. The nearest zero point, an integer, represents it
to half a step. The rests of a row's minimums are quantized in groups of 4 bits, and the error of these once more.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from merino_edge.families.graph_ops import Weights
from merino_edge.families.operators import GROUP_SIZES
from merino_edge.families.weights import Blocks, BlockSource
from merino_runtime.errors import MerinoError

ERROR_RATIO = {4: 1.25, 8: 2.0}  # by bits: allowed RMS error of a larger group, relative to the smallest group's
# By bits: scales to try, relative to the scale at which the largest weight has the outermost code.
SHRINKS = {4: np.linspace(0.7, 1.1, 9, dtype=np.float32), 8: np.linspace(1.0, 1.04, 5, dtype=np.float32)}
PIECE = 2**17  # weights quantized at a time: they fit the CPU's cache
WITH_MINIMUMS = 4  # bits; 8 bits lose less than a fifteenth of the error that GGUF types with minimums have
RESTS = 2  # with one, the error of the rests raises a model's KL divergence by a third
THREADS = 2  # numpy releases the interpreter's lock during its loops


class Quantized(NamedTuple):
    """A matrix [rows, columns] whose rows are cut into groups of `group_size` weights."""

    # uint8 [rows, columns / group_size, group_size * bits / 8]; of two codes in a byte the low half is first
    codes: np.ndarray
    scales: np.ndarray  # float32 [rows, columns / group_size]
    bits: int
    group_size: int
    zero_points: np.ndarray | None = None  # uint8 [rows, columns / group_size], for 4 bits; None: the middle code
    # Their sum is added to the weights of each group: [rows, columns / group_size], padded to whole groups.
    rests: "tuple[Quantized, ...]" = ()

    @property
    def nbytes(self) -> int:
        points = 0 if self.zero_points is None else packed_points(self.zero_points).nbytes
        return self.codes.nbytes + self.scales.nbytes + points + sum(rest.nbytes for rest in self.rests)


class MatrixError(NamedTuple):
    """Absolute errors of the weights of one quantized matrix, relative to the RMS of its weights."""

    name: str
    bits: int
    group_size: int
    nbytes: int  # codes and scales
    mean: float
    worst: float


def quantize(name: str, matrix: np.ndarray, bits: int, fewest: int = GROUP_SIZES[-1]) -> Quantized:
    """A matrix float32 [rows, columns] in the largest groups whose RMS error is within ERROR_RATIO of the smallest's.

    A larger group has fewer scales to read. `fewest`, and MerinoError: see `group_sizes`.
    """
    candidates = group_sizes(name, matrix.shape[1], fewest)
    smallest = quantize_groups(matrix, bits, candidates[-1])
    allowed = ERROR_RATIO[bits] * rms(dequantize(smallest) - matrix)
    for group_size in candidates[:-1]:
        larger = quantize_groups(matrix, bits, group_size)
        if rms(dequantize(larger) - matrix) <= allowed:
            return larger
    return smallest


def group_sizes(name: str, columns: int, fewest: int = GROUP_SIZES[-1]) -> list[int]:
    """The group sizes that divide rows of `columns` weights, the largest first.

    `fewest`: the smallest size, where one of at least that size divides the row. Raises MerinoError if none divides it.
    """
    dividing = [group_size for group_size in GROUP_SIZES if columns % group_size == 0]
    sizes = [group_size for group_size in dividing if group_size >= fewest] or dividing
    if not sizes:
        raise MerinoError(
            f"{name} has rows of {columns} weights, which groups of {GROUP_SIZES[-1]} do not divide: export with"
            " --precision fp32, or design with widths and FFN widths that are multiples of 32"
        )
    return sizes


def quantize_groups(matrix: np.ndarray, bits: int, group_size: int, *, both_signs: bool = False) -> Quantized:
    """Quantize a matrix float32 [rows, columns]: of a few scales, each group gets the one of least squared error.

    `both_signs`: the codes are symmetric around zero, so that none is -2^(bits - 1).
    """
    rows, columns = matrix.shape
    values = np.ascontiguousarray(matrix, np.float32).reshape(rows, columns // group_size, group_size)
    step = max(1, PIECE // columns)
    with ThreadPoolExecutor(THREADS) as pool:
        pieces = list(
            pool.map(lambda at: quantize_rows(values[at : at + step], bits, both_signs), range(0, rows, step))
        )
    codes, scales = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    return Quantized(codes, scales, bits, group_size)


def quantize_rows(values: np.ndarray, bits: int, both_signs: bool) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 [rows, groups, group_size * bits / 8] and scales float32 [rows, groups] of values [rows, groups,
    group_size].

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


def as_zero_points(
    minimums: np.ndarray, scales: np.ndarray, group_size: int
) -> tuple[np.ndarray, tuple[Quantized, ...]]:
    """Minimums float32 [rows, groups] of 4-bit codes with these scales, as zero points and quantized rests."""
    points = np.clip(np.rint(-minimums / np.where(scales == 0, 1, scales)), -8, 7)
    rests, left = [], np.pad(minimums + points * scales, ((0, 0), (0, -minimums.shape[1] % group_size)))
    for _ in range(RESTS):
        rests.append(quantize_groups(left, WITH_MINIMUMS, group_size))
        left = left - dequantize(rests[-1])
    return (points + 8).astype(np.uint8), tuple(rests)


def packed_points(points: np.ndarray) -> np.ndarray:
    """Zero points uint8 [rows, groups] as MatMulNBits takes them: two in a byte, each row padded to whole bytes."""
    return packed(np.pad(points, ((0, 0), (0, points.shape[1] % 2)), constant_values=8), WITH_MINIMUMS).reshape(-1)


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes uint8 [..., group_size], two of 4 bits in a byte."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4) if bits == 4 else codes


def rounded(values: np.ndarray, scale: np.ndarray, lowest: int, highest: int) -> np.ndarray:
    """values / scale as integers from `lowest` to `highest`, float32; values [rows, groups, group_size], scale
    [rows, groups]."""
    codes = values / np.where(scale == 0, 1, scale)[..., None]  # a scale underflows to 0 with the tiniest values
    np.rint(codes, out=codes)
    return np.clip(codes, lowest, highest, out=codes)


def dequantize(matrix: Quantized) -> np.ndarray:
    """The weights that the codes represent, float32 [rows, columns]."""
    codes = matrix.codes
    if matrix.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
    zero = 2 ** (matrix.bits - 1) if matrix.zero_points is None else matrix.zero_points[..., None].astype(np.float32)
    values = (codes.astype(np.float32) - zero) * matrix.scales[..., None]
    for rest in matrix.rests:
        values += dequantize(rest)[:, : values.shape[1], None]
    return values.reshape(len(codes), -1)


def matrix_error(name: str, exact: np.ndarray, quantized: Quantized) -> MatrixError:
    difference = np.abs(dequantize(quantized) - exact)
    scale = rms(exact) or 1.0
    mean, worst = float(difference.mean()) / scale, float(difference.max()) / scale
    return MatrixError(name, quantized.bits, quantized.group_size, quantized.nbytes, mean, worst)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def repacked(
    source: BlockSource, names: Sequence[str], weights: Weights, bits: int, exact: set[str]
) -> Quantized | None:
    """The matrices `names` [out, in] in the source's own blocks, joined along their outputs, in `bits`; None where no
    matrix can be taken over.

    If only some can, the others are quantized in groups of the same size. The names of those taken over are added to
    `exact`.
    """
    stored = {name: blocks for name in names if (blocks := source.blocks(name)) and fits(blocks, bits)}
    if not stored:
        return None
    exact |= set(stored)
    group_size = min(blocks.block for blocks in stored.values())
    cut = {name: blocks.cut(group_size) for name, blocks in stored.items()}
    parts = [
        as_codes(cut[name], bits) if name in cut else quantize_groups(weights[name], bits, group_size) for name in names
    ]
    scales = np.concatenate([part.scales for part in parts])
    minimums = joined_minimums([cut[name].minimums if name in cut else None for name in names], parts)
    points, rests = (None, ()) if minimums is None else as_zero_points(minimums, scales, group_size)
    return Quantized(np.concatenate([part.codes for part in parts]), scales, bits, group_size, points, rests)


def fits(blocks: Blocks, bits: int) -> bool:
    return blocks.bits <= bits and (blocks.minimums is None or bits == WITH_MINIMUMS)


def as_codes(blocks: Blocks, bits: int) -> Quantized:
    codes = (blocks.levels.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    return Quantized(packed(codes, bits), blocks.scales, bits, blocks.block)


def joined_minimums(minimums: Sequence[np.ndarray | None], parts: Sequence[Quantized]) -> np.ndarray | None:
    """The minimums of the parts [rows, groups], concatenated; zeros for a part without minimums."""
    if all(each is None for each in minimums):
        return None
    filled = [
        np.zeros_like(part.scales) if each is None else each for each, part in zip(minimums, parts, strict=True)
    ]
    return np.concatenate(filled)
