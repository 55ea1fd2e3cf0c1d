"""Matrices in tiles, for this project's operators (runtime/kernels).

MatMul4 and MatMul8 multiply int4 and int8 weights. Their instructions per weight on each kind of core, and why they
look so: docs/decisions/kernels.md.
"""

import numpy as np

from merino_edge.export.dialects.external_data import Deferred
from merino_edge.export.dialects.graph import KERNELS_DOMAIN, Graph
from merino_edge.export.quantize.matrix import QuantizedMatrix, halves
from merino_edge.export.quantize.outliers import groups_of, input_order
from merino_edge.families.operators import GROUP
from merino_edge.families.weights import ROW_BLOCK

TILE_ROWS = 16


def tile_node(graph: Graph, kind: str, x: str, name: str, rows: int = 0) -> str:
    """Add a MatMul of x with a matrix in tiles, or the Rows of it by the ids x.

    `rows`: the number of rows that a decode step reads; 0: all. A tied embedding is stored once: Rows8 reads a few of
    its rows, the head reads all.
    """
    matrix = graph.matrices[name]
    tiles = deferred_tiles(name, matrix)
    count = len(matrix.codes)
    stored = graph.stored(f"{name}.tiles", tiles, tiles.nbytes * (rows or count) // count)
    inputs = [stored, x] if kind == "Rows" else [x, stored]
    if matrix.outliers:
        order = input_order(matrix.columns, matrix.columns, matrix.outliers).astype(np.int32)
        inputs.append(graph.constant(f"{name}.order", order))
    columns = tiles.shape[1] * GROUP
    return graph.node(
        f"{kind}{matrix.bits}", inputs, domain=KERNELS_DOMAIN,
        rows=count, columns=columns, minimums=int(matrix.minimums is not None),
    )  # fmt: skip


def deferred_tiles(name: str, matrix: QuantizedMatrix) -> Deferred:
    """Return the tiles of a matrix and of the copies of its groups with outliers."""
    copied = groups_of(matrix.outliers, matrix.group_size)
    groups = matrix.scales.shape[1] + len(copied)
    columns = groups * matrix.group_size
    halves_of_group = GROUP // min(GROUP, matrix.group_size) * (1 + (matrix.minimums is not None))
    tile_bytes = TILE_ROWS * (GROUP * matrix.bits // 8 + 2 * halves_of_group)
    shape = -(-len(matrix.codes) // TILE_ROWS), columns // GROUP, tile_bytes

    def tiles_from(first: int) -> np.ndarray:
        def with_copies(values: np.ndarray) -> np.ndarray:
            rows = values[first : first + ROW_BLOCK]
            return np.concatenate([rows, rows[:, copied]], 1)

        minimums = None if matrix.minimums is None else with_copies(matrix.minimums)
        codes, scales = with_copies(matrix.codes), with_copies(matrix.scales)
        return tiles_of(name, matrix._replace(codes=codes, scales=scales, minimums=minimums))

    def make() -> np.ndarray:
        tiles = np.empty(shape, np.uint8)
        for first in range(0, len(matrix.codes), ROW_BLOCK):
            tiles[first // TILE_ROWS :][: ROW_BLOCK // TILE_ROWS] = tiles_from(first)
        return tiles

    return Deferred(shape, np.dtype(np.uint8), make)


def tiles_of(name: str, matrix: QuantizedMatrix) -> np.ndarray:
    """Return a matrix in the layout of runtime/kernels/matmul.h, uint8 [tiles, columns / 32, bytes of a tile].

    A tile has 16 rows by 32 columns, with its codes, float16 scales, and float16 minimums if the matrix has any. Rows
    are padded with zeros.
    """
    codes = np.stack([matrix.codes & 15, matrix.codes >> 4], -1) if matrix.bits == 4 else matrix.codes
    codes = codes.reshape(len(codes), -1, GROUP)
    quads = [tiled(codes[..., at : at + 4]) for at in range(0, GROUP, 4)]
    parts = quads if matrix.bits == 8 else in_few_bits(np.concatenate(quads, -1), matrix.bits)
    factors = [matrix.scales, *([] if matrix.minimums is None else [matrix.minimums])]
    if matrix.group_size < GROUP:
        factors = [values[:, first::2] for values in factors for first in (0, 1)]
    parts += [tiled(halves(name, values)[..., None]) for values in factors]
    return np.ascontiguousarray(np.concatenate(parts, -1))


def floats_of(tiles: np.ndarray, rows: int) -> np.ndarray:
    """Return the weights, float32 [rows, columns], of a matrix of 8 bits without minimums in tiles."""
    count, groups, _ = tiles.shape
    codes = tiles[..., : GROUP * TILE_ROWS].reshape(count, groups, GROUP // 4, TILE_ROWS, 4).astype(np.float32)
    scales = tiles[..., GROUP * TILE_ROWS :].copy().view(np.float16).astype(np.float32)  # [tiles, groups, 16]
    values = (codes - 2**7) * scales[:, :, None, :, None]
    return values.transpose(0, 3, 1, 2, 4).reshape(count * TILE_ROWS, groups * GROUP)[:rows]


def in_few_bits(codes: np.ndarray, bits: int) -> list[np.ndarray]:
    """Pack codes [tiles, groups, 32 columns * 16 rows] in 4, 5 or 6 bits: two nibbles in each byte, then the upper
    bits."""
    low, upper, half = codes & 15, codes >> 4, codes.shape[-1] // 2
    nibbles = low[..., :half] | low[..., half:] << 4
    if bits == 4:
        return [nibbles]
    if bits == 5:
        return [nibbles, np.packbits(upper, axis=-1, bitorder="little")]
    pairs = upper.reshape(*upper.shape[:-1], 2, 4, -1)  # halves of the columns; columns 0 to 3, 4 to 7, ... of one
    bytes_ = pairs[..., 0, :] | pairs[..., 1, :] << 2 | pairs[..., 2, :] << 4 | pairs[..., 3, :] << 6
    return [nibbles, bytes_.reshape(*upper.shape[:-1], -1)]


def tiled(values: np.ndarray) -> np.ndarray:
    """Return [rows, groups, n] of any type as bytes [tiles, groups, 16 * n * bytes of one]."""
    rows, groups, _ = values.shape
    filled = np.pad(values, ((0, -rows % TILE_ROWS), (0, 0), (0, 0)))
    by_tile = filled.reshape(-1, TILE_ROWS, groups, values.shape[2]).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(by_tile).view(np.uint8).reshape(len(by_tile), groups, -1)
