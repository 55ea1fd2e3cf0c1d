"""Weight-only quantisation in groups, in the layout of ONNX Runtime's MatMulNBits and GatherBlockQuantized.

A row of a matrix is cut into groups of `group_size` weights. A group has one float32 scale and an unsigned code of 4 or
8 bits per weight: weight = (code - zero_point) * scale. Without zero points the code in the middle stands for zero.

Matrices that a source has stored in blocks (GGUF's word for groups) are taken over with the same codes and scales,
without a second rounding. Their blocks may have a minimum, which is added to each weight. The nearest zero point, an
integer, takes over all but half a step of it. The rest of a row's minimums is stored in groups of 4 bits in turn, and
what these lose in groups of 4 bits once more.
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
# By bits: scales that are tried, relative to the scale at which the largest weight has the outermost code.
SHRINKS = {4: np.linspace(0.7, 1.1, 9, dtype=np.float32), 8: np.linspace(1.0, 1.04, 5, dtype=np.float32)}
PIECE = 2**17  # weights quantised at a time, so few that they stay in the CPU's cache
WITH_MINIMUMS = 4  # bits: what 8 bits lose of the types with minimums is less than a fifteenth of what these lost
RESTS = 2  # with one, what 4 bits lose of half a step raises the divergence of a model by a third
THREADS = 2  # numpy releases the interpreter's lock during its loops


class Quantized(NamedTuple):
    """A matrix [rows, columns] whose rows are cut into groups of `group_size` weights."""

    # uint8 [rows, columns / group_size, group_size * bits / 8]; of two codes in a byte the low half is first
    codes: np.ndarray
    scales: np.ndarray  # float32 [rows, columns / group_size]
    bits: int
    group_size: int
    zero_points: np.ndarray | None = None  # uint8 [rows, columns / group_size], in 4 bits alone; None: the middle
    # Sums of these are added to the weights of each group: [rows, columns / group_size], the last group filled up.
    rests: "tuple[Quantized, ...]" = ()

    @property
    def nbytes(self) -> int:
        points = 0 if self.zero_points is None else packed_points(self.zero_points).nbytes
        return self.codes.nbytes + self.scales.nbytes + points + sum(rest.nbytes for rest in self.rests)


class MatrixError(NamedTuple):
    """Absolute errors of the weights of one quantised matrix, relative to the RMS of its weights."""

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
        found = quantize_groups(matrix, bits, group_size)
        if rms(dequantize(found) - matrix) <= allowed:
            return found
    return smallest


def group_sizes(name: str, columns: int, fewest: int = GROUP_SIZES[-1]) -> list[int]:
    """What rows of `columns` weights can be cut into, the largest first.

    `fewest`: weights in the smallest group that is wanted, where it divides the columns. Raises MerinoError if not even
    the smallest of all divides them.
    """
    dividing = [group_size for group_size in GROUP_SIZES if columns % group_size == 0]
    found = [group_size for group_size in dividing if group_size >= fewest] or dividing
    if not found:
        raise MerinoError(
            f"{name} has rows of {columns} weights, which groups of {GROUP_SIZES[-1]} do not divide: export with"
            " --precision fp32, or design with widths and FFN widths that are multiples of 32"
        )
    return found


def quantize_groups(matrix: np.ndarray, bits: int, group_size: int, *, both_signs: bool = False) -> Quantized:
    """Each group gets the scale of least squared error of a few that are tried; the matrix is float32
    [rows, columns].

    `both_signs`: the codes are as many on either side of zero, so that none is -2^(bits - 1).
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


def as_zero_points(
    minimums: np.ndarray, scales: np.ndarray, group_size: int
) -> tuple[np.ndarray, tuple[Quantized, ...]]:
    """Minimums float32 [rows, groups] of 4-bit codes with these scales, as zero points and the rests of them."""
    points = np.clip(np.rint(-minimums / np.where(scales == 0, 1, scales)), -8, 7)
    rests, left = [], np.pad(minimums + points * scales, ((0, 0), (0, -minimums.shape[1] % group_size)))
    for _ in range(RESTS):
        rests.append(quantize_groups(left, WITH_MINIMUMS, group_size))
        left = left - dequantize(rests[-1])
    return (points + 8).astype(np.uint8), tuple(rests)


def packed_points(points: np.ndarray) -> np.ndarray:
    """Zero points uint8 [rows, groups], two in a byte, as MatMulNBits takes them: each row is filled up to bytes."""
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


def dequantize(found: Quantized) -> np.ndarray:
    """The weights that the codes stand for, float32 [rows, columns]."""
    codes = found.codes
    if found.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
    zero = 2 ** (found.bits - 1) if found.zero_points is None else found.zero_points[..., None].astype(np.float32)
    values = (codes.astype(np.float32) - zero) * found.scales[..., None]
    for rest in found.rests:
        values += dequantize(rest)[:, : values.shape[1], None]
    return values.reshape(len(codes), -1)


def matrix_error(name: str, matrix: np.ndarray, found: Quantized) -> MatrixError:
    difference = np.abs(dequantize(found) - matrix)
    scale = rms(matrix) or 1.0
    mean, worst = float(difference.mean()) / scale, float(difference.max()) / scale
    return MatrixError(name, found.bits, found.group_size, found.nbytes, mean, worst)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def repacked(
    source: BlockSource, names: Sequence[str], weights: Weights, bits: int, exact: set[str]
) -> Quantized | None:
    """The matrices `names` [out, in] joined along their outputs, in `bits`; None where none can be taken over.

    One that cannot, beside one that can, is quantised into groups of the same size. `exact` grows by the names of
    those that were taken over.
    """
    found = {name: blocks for name in names if (blocks := source.blocks(name)) and fits(blocks, bits)}
    if not found:
        return None
    exact |= set(found)
    group_size = min(blocks.block for blocks in found.values())
    cut = {name: blocks.cut(group_size) for name, blocks in found.items()}
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
    """Those of the parts [rows, groups] one below the other; a part without has zeros."""
    if all(each is None for each in minimums):
        return None
    filled = [
        np.zeros_like(part.scales) if each is None else each for each, part in zip(minimums, parts, strict=True)
    ]
    return np.concatenate(filled)
