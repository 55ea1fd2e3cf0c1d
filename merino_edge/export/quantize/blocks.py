"""Matrices taken over from a GGUF file's blocks (its word for groups), with the same codes and scales, without a second
rounding.

A block may have a minimum, which is added to each weight. The nearest zero point, an integer, represents it to half a
step. The rests of a row's minimums are quantized in groups of 4 bits, and the error of these once more.
"""

from collections.abc import Sequence

import numpy as np

from merino_edge.export.quantize.matrix import QuantizedMatrix, dequantize, packed, quantize_groups
from merino_edge.families.graph_ops import Weights
from merino_edge.families.weights import Blocks, BlockSource

WITH_MINIMUMS = 4  # bits; 8 bits lose less than a fifteenth of the error that GGUF types with minimums have
RESTS = 2  # with one, the error of the rests raises a model's KL divergence by a third


def matrix_from_blocks(
    source: BlockSource, names: Sequence[str], weights: Weights, bits: int
) -> QuantizedMatrix | None:
    """Return the matrices `names` [out, in] in the source's own blocks and in `bits`, joined along their outputs. If
    only some can be taken over, the others are quantized in groups of the same size. Return None if none can."""
    stored = {name: blocks for name in names if (blocks := source.blocks(name)) and fits(blocks, bits)}
    if not stored:
        return None
    group_size = min(blocks.block for blocks in stored.values())
    cut = {name: blocks.cut(group_size) for name, blocks in stored.items()}
    parts = [
        (packed((cut[name].levels.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8), bits), cut[name].scales)
        if name in cut else quantize_groups(weights[name], bits, group_size)[:2] for name in names
    ]  # fmt: skip
    codes, scales = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    points: np.ndarray | None = None
    rests: tuple[QuantizedMatrix, ...] = ()
    if any(blocks.minimums is not None for blocks in cut.values()):
        given = [cut[name].minimums if name in cut else None for name in names]
        zeros = [np.zeros_like(own_scales) for _, own_scales in parts]
        minimums = [zero if one is None else one for zero, one in zip(zeros, given, strict=True)]
        points, rests = as_zero_points(np.concatenate(minimums), scales, group_size)
    return QuantizedMatrix(
        codes, scales, bits, group_size, zero_points=points, rests=rests, exact=frozenset(stored)
    )


def fits(blocks: Blocks, bits: int) -> bool:
    return blocks.bits <= bits and (blocks.minimums is None or bits == WITH_MINIMUMS)


def as_zero_points(
    minimums: np.ndarray, scales: np.ndarray, group_size: int
) -> tuple[np.ndarray, tuple[QuantizedMatrix, ...]]:
    """Return minimums float32 [rows, groups] of 4-bit codes with these scales as zero points and quantized rests."""
    points = np.clip(np.rint(-minimums / np.where(scales == 0, 1, scales)), -8, 7)
    rests, left = [], np.pad(minimums + points * scales, ((0, 0), (0, -minimums.shape[1] % group_size)))
    for _ in range(RESTS):
        rests.append(quantize_groups(left, WITH_MINIMUMS, group_size))
        left = left - dequantize(rests[-1])
    return (points + 8).astype(np.uint8), tuple(rests)
