"""Matrices that a source has stored in blocks, as blocks of the graph: the same codes and scales, no second rounding.

Minimums of blocks are the exception: they are rounded to 8 bits.
"""

from collections.abc import Sequence

import numpy as np

from merino_edge.export.quantize import Quantized, packed, quantize_blocks, quantize_minimums
from merino_edge.families.graph_ops import Weights
from merino_edge.families.weights import Blocks, BlockSource

WITH_MINIMUMS = 4  # bits: what 8 bits lose of the types with minimums is less than a fifteenth of what these lost


def repacked(
    source: BlockSource, names: Sequence[str], weights: Weights, bits: int, exact: set[str]
) -> Quantized | None:
    """The matrices `names` [out, in] joined along their outputs, in `bits`; None where none can be taken over.

    One that cannot, beside one that can, is quantised into the same size of blocks. `exact` grows by the names of
    those that were taken over.
    """
    found = {name: blocks for name in names if (blocks := source.blocks(name)) and fits(blocks, bits)}
    if not found:
        return None
    exact |= set(found)
    block = min(blocks.block for blocks in found.values())
    cut = {name: blocks.cut(block) for name, blocks in found.items()}
    parts = [
        as_codes(cut[name], bits) if name in cut else quantize_blocks(weights[name], bits, block) for name in names
    ]
    lowest = [cut[name].minimums if name in cut else None for name in names]
    return Quantized(
        np.concatenate([part.codes for part in parts]), np.concatenate([part.scales for part in parts]), bits, block,
        joined_minimums(lowest, parts),
    )  # fmt: skip


def fits(blocks: Blocks, bits: int) -> bool:
    return blocks.bits <= bits and (blocks.minimums is None or bits == WITH_MINIMUMS)


def as_codes(blocks: Blocks, bits: int) -> Quantized:
    codes = (blocks.levels.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    return Quantized(packed(codes, bits), blocks.scales, bits, blocks.block)


def joined_minimums(minimums: Sequence[np.ndarray | None], parts: Sequence[Quantized]) -> Quantized | None:
    """Those of the parts [rows, blocks] one below the other; a part without has zeros."""
    if all(each is None for each in minimums):
        return None
    filled = [
        np.zeros_like(part.scales) if each is None else each for each, part in zip(minimums, parts, strict=True)
    ]
    return quantize_minimums(np.concatenate(filled))
