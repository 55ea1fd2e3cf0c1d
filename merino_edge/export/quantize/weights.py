"""Quantization of a model's matrices, from {name: float32 weights} to {name: QuantizedMatrix}.

A matrix keeps the codes of a GGUF's blocks (GGUF's word for groups), or is rounded by GPTQ if there is a Hessian of
its input, or is rounded to the nearest codes. Matrices of one input are joined along their outputs.
Figures: docs/decisions/quantization.md.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from merino_edge.bundles.description import GraphFormat
from merino_edge.export.quantize.gptq import Hessians, gptq
from merino_edge.export.quantize.matrix import (
    MatrixLayout,
    QuantizedMatrix,
    dequantize,
    fewest_bits,
    for_tiles,
    packed,
    quantize_groups,
)
from merino_edge.families.geometry import Geometry
from merino_edge.families.graph_ops import MatrixNames, Weights
from merino_edge.families.mapped import in_file
from merino_edge.families.operators import FORMATS, GROUP
from merino_edge.families.weights import ROW_BLOCK, Blocks, BlockSource
from merino_runtime.errors import MerinoError

Matrices = Mapping[str, QuantizedMatrix]  # by the names of the joined matrices, with `+` between them
WITH_MINIMUMS = 4  # bits of blocks with minimums; 8 bits lose less than a fifteenth of the error of such GGUF types


class MatrixError(NamedTuple):
    """Absolute errors of the weights of one quantized matrix, relative to the RMS of its weights."""

    name: str
    bits: int
    group_size: int
    nbytes: int  # codes and scales
    mean: float
    worst: float


class Rounding(NamedTuple):
    """How matrices are rounded.

    Attributes:
        blocks: matrices as a GGUF stores them; None for other sources.
        hessians: returns the Hessians of the matrices' inputs; None: no GPTQ.
        eight_bits: names of matrices that get 8 bits in a format of 4.
        folder: the codes lie in files on its disk; None: in memory.
    """

    blocks: BlockSource | None = None
    hessians: Callable[[], Hessians] | None = None
    eight_bits: frozenset[str] = frozenset()
    folder: Path | None = None


PLAIN = Rounding()


def quantized_matrices(
    arch: Geometry, weights: Weights, form: GraphFormat, how: Rounding = PLAIN,
    progress: Callable[[str], None] = lambda _: None,
) -> Matrices:  # fmt: skip
    """Return the quantized matrices in the order of the graph; none for a format of floats.

    `weights`: in the graph's layout. `progress` gets a line for each matrix. Raises MerinoError for a matrix that
    cannot be cut into groups.
    """
    bits = matrix_bits(arch, form, how.blocks, how.eight_bits)
    matrices = dict[str, QuantizedMatrix]()
    for name in bits:
        progress(f"quantizing to {form.precision}, matrix {len(matrices) + 1} of {len(bits)}")
        matrix = quantized_matrix(name, weights, bits[name], form, how)
        if how.folder:
            codes, scales = (in_file(array, how.folder) for array in matrix[:2])
            minimums = None if matrix.minimums is None else in_file(matrix.minimums, how.folder)
            matrix = matrix._replace(codes=codes, scales=scales, minimums=minimums)
        matrices[name] = matrix
    return matrices


def quantized_matrix(name: str, weights: Weights, bits: int, form: GraphFormat, how: Rounding) -> QuantizedMatrix:
    names, layout = name.split("+"), matrix_layout(form, bits)
    if how.blocks and layout == "tiles":  # a block has a scale of its own, a row one for all its weights
        stored = matrix_from_blocks(how.blocks, names, weights, bits)
        if stored is not None and (stored.group_size % GROUP == 0 or fewest_bits(stored) == 6):
            return for_tiles(name, stored)
    parts = [weights[one] for one in names]
    matrix = parts[0] if len(parts) == 1 else np.concatenate(parts)  # float32 [sum of out, in]
    rounded = rounded_matrix(name, matrix, bits, layout, how)
    return for_tiles(name, rounded) if layout == "tiles" else rounded._replace(layout=layout)


def rounded_matrix(name: str, matrix: np.ndarray, bits: int, layout: MatrixLayout, how: Rounding) -> QuantizedMatrix:
    """Round a matrix float32 [rows, columns] in the groups that its layout takes. Raises MerinoError if they do not
    divide a row."""
    columns, both_signs = matrix.shape[1], layout == "rows"
    if layout == "tiles" and columns % GROUP:
        raise MerinoError(
            f"{name} has rows of {columns} weights, which groups of {GROUP} do not divide: export with --precision"
            f" fp32, or design with widths and FFN widths that are multiples of {GROUP}"
        )
    group_size = columns if layout == "rows" else GROUP
    hessian = how.hessians().get(name.split("+")[0]) if how.hessians else None  # joined matrices have one input
    if hessian is None:
        return quantize_groups(matrix, bits, group_size, both_signs=both_signs)
    return gptq(matrix, hessian, bits, group_size, both_signs=both_signs)._replace(by_gptq=True)


def matrix_from_blocks(
    source: BlockSource, names: Sequence[str], weights: Weights, bits: int
) -> QuantizedMatrix | None:
    """Return the matrices `names` [out, in] in the source's own blocks and in `bits`, joined along their outputs. If
    only some can be taken over, the others are quantized in groups of the same size. Return None if none can."""
    stored = {name: blocks for name in names if (blocks := source.blocks(name)) and fits(blocks, bits)}
    if not stored:
        return None
    group_size = min(GROUP, *(blocks.block for blocks in stored.values()))
    cut = {name: blocks.cut(group_size) for name, blocks in stored.items()}
    parts = [
        (codes_of(cut[name].levels, bits), cut[name].scales) if name in cut
        else quantize_groups(weights[name], bits, group_size)[:2] for name in names
    ]  # fmt: skip
    codes, scales = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
    minimums: np.ndarray | None = None
    if any(blocks.minimums is not None for blocks in cut.values()):
        given = [cut[name].minimums if name in cut else None for name in names]
        zeros = [np.zeros_like(own_scales) for _, own_scales in parts]
        minimums = np.concatenate([zero if one is None else one for zero, one in zip(zeros, given, strict=True)])
    return QuantizedMatrix(codes, scales, bits, group_size, minimums, exact=frozenset(stored))


def codes_of(levels: np.ndarray, bits: int) -> np.ndarray:
    """Return levels int8 [rows, groups, group_size] as packed codes uint8. Changes `levels`: of an embedding, they have
    hundreds of MB."""
    codes = levels.view(np.uint8)
    codes += np.uint8(2 ** (bits - 1))
    return packed(codes, bits)


def fits(blocks: Blocks, bits: int) -> bool:
    return blocks.bits <= bits and (blocks.minimums is None or bits == WITH_MINIMUMS)


def matrix_layout(form: GraphFormat, bits: int) -> MatrixLayout:
    """Return how a graph of this format multiplies matrices of so many bits: portable graphs are for runtimes without
    this project's kernels too, but 4 bits have no other operator."""
    return "rows" if form.dialect == "portable" and bits != 4 else "tiles"


def matrix_bits(
    arch: Geometry, form: GraphFormat, blocks: BlockSource | None = None, eight_bits: frozenset[str] = frozenset()
) -> dict[str, int]:
    """Return the bits of each matrix to quantize, in the order of the graph; empty for a format of floats.

    Matrices that a GGUF has in more than 4 bits get 8: such files spend bits where 4 lose most. The gates of DeltaNet
    get 8 too: they are small, and their errors grow with each step.
    """
    numbers, decoder = FORMATS[form.precision], arch.decoder()
    deltas = [layer.qkv for layer in decoder.layers if layer.delta] if decoder else []
    eight_bits |= {name for packed in deltas for name in packed.weights[-2:]}

    def bits_of(name: str) -> int:
        stored = blocks.bits(name) if blocks else None
        return 8 if name in eight_bits or stored and stored > numbers.bits else numbers.bits

    def stored_bits(name: str) -> int:
        """Return the key by which matrices are joined: those that are stored alike."""
        stored = blocks.bits(name) if blocks and form.dialect == "fused" and bits_of(name) == 8 else None
        return stored if stored in (5, 6) else bits_of(name)

    result: dict[str, int] = {}
    listed = MatrixNames()
    if numbers.grouped:
        arch.build_graph(listed)
    for names, is_table in listed.read:
        if is_table:
            result[names[0]] = numbers.embedding_bits
        else:
            runs = [list(run) for _, run in groupby(names, stored_bits)]
            result |= {"+".join(run): bits_of(run[0]) for run in runs}
    return result


def matrix_errors(weights: Weights, matrices: Matrices) -> list[MatrixError]:
    """Return the errors of the dequantized matrices."""
    errors = []
    for name, matrix in matrices.items():
        total = worst = squares = 0.0
        first = size = 0
        for exact in (block for one in name.split("+") for block in row_blocks(weights[one])):
            difference = np.abs(dequantize(matrix, slice(first, first + len(exact))) - exact)
            total, worst = total + float(difference.sum(dtype=np.float64)), float(np.maximum(worst, difference.max()))
            squares += float(np.square(exact, dtype=np.float64).sum())
            first, size = first + len(exact), size + exact.size
        scale = math.sqrt(squares / size) or 1.0
        mean = total / size / scale
        errors.append(MatrixError(name, matrix.bits, matrix.group_size, matrix.nbytes, mean=mean, worst=worst / scale))
    return errors


def row_blocks(matrix: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of a matrix a few at a time, so that copies of them are small beside an embedding."""
    for first in range(0, len(matrix), ROW_BLOCK):
        yield matrix[first : first + ROW_BLOCK]
