"""Matrices in tiles, for this project's operators (runtime/kernels).

MatMul4 and MatMul8 multiply int4 and int8 weights on no-dotprod Arm cores, with 0.34 and 0.41 instructions per weight;
MatMulNBits takes 2.8 and 16. On x86 cores with AVX-512 VNNI they read weights at the speed of memory. Figures and
choices: docs/decisions/kernels.md.
"""

import numpy as np

from merino_edge.export.dialects.external_data import Deferred
from merino_edge.export.dialects.graph import KERNELS_DOMAIN, Graph
from merino_edge.export.quantize.matrix import TILE_GROUP, QuantizedMatrix, dequantize, halves
from merino_edge.export.quantize.outliers import groups_of, input_order

TILE_ROWS = 16


def tile_node(graph: Graph, kind: str, x: str, name: str, rows: int = 0) -> str:
    """Add a MatMul of x with a matrix in tiles, or the Rows of it by the ids x.

    `rows`: the number of rows that a decode step reads; 0: all. A tied embedding is stored once: Rows8 reads a few of
    its rows, the head reads all.
    """
    matrix = graph.matrices[name]
    minimums = graph.once(("minimums", name), lambda: minimums_of(matrix))
    tiles = deferred_tiles(name, matrix, minimums)
    count = len(matrix.codes)
    stored = graph.stored(f"{name}.tiles", tiles, tiles.nbytes * (rows or count) // count)
    inputs = [stored, x] if kind == "Rows" else [x, stored]
    if matrix.outliers:
        order = input_order(matrix.columns, matrix.columns, matrix.outliers).astype(np.int32)
        inputs.append(graph.constant(f"{name}.order", order))
    columns = tiles.shape[1] * TILE_GROUP
    return graph.node(
        f"{kind}{matrix.bits}", inputs, domain=KERNELS_DOMAIN,
        rows=count, columns=columns, minimums=int(minimums is not None),
    )  # fmt: skip


def deferred_tiles(name: str, matrix: QuantizedMatrix, minimums: np.ndarray | None) -> Deferred:
    """Return the tiles of a matrix and of the copies of its groups with outliers. `minimums` include its rests."""
    copied = groups_of(matrix.outliers, matrix.group_size)
    groups = matrix.scales.shape[1] + len(copied)
    columns = groups * matrix.group_size
    halves_of_group = TILE_GROUP // min(TILE_GROUP, matrix.group_size) * (1 + (minimums is not None))
    tile_bytes = TILE_ROWS * (TILE_GROUP * matrix.bits // 8 + 2 * halves_of_group)
    shape = -(-len(matrix.codes) // TILE_ROWS), columns // TILE_GROUP, tile_bytes

    def make() -> np.ndarray:
        if not copied:
            return tiles_of(name, matrix, minimums)
        codes, scales = (np.concatenate([part, part[:, copied]], 1) for part in (matrix.codes, matrix.scales))
        wide = None if minimums is None else np.concatenate([minimums, minimums[:, copied]], 1)
        return tiles_of(name, matrix._replace(codes=codes, scales=scales), wide)

    return Deferred(shape, np.dtype(np.uint8), make)


def tiles_of(name: str, matrix: QuantizedMatrix, minimums: np.ndarray | None = None) -> np.ndarray:
    """Return a matrix in the layout of runtime/kernels/matmul.h, uint8 [tiles, columns / 32, bytes of a tile].

    A tile has 16 rows by 32 columns, with its codes, float16 scales, and float16 minimums if the
    matrix has any. minimums: float32 [rows, groups]. Rows are padded with zeros.
    """
    codes = np.stack([matrix.codes & 15, matrix.codes >> 4], -1) if matrix.bits == 4 else matrix.codes
    codes = codes.reshape(len(codes), -1, TILE_GROUP)
    quads = [tiled(codes[..., at : at + 4]) for at in range(0, TILE_GROUP, 4)]
    parts = quads if matrix.bits == 8 else in_few_bits(np.concatenate(quads, -1), matrix.bits)
    factors = [matrix.scales, *([] if minimums is None else [minimums])]
    if matrix.group_size < TILE_GROUP:
        of_32 = [values[:, first::2] for values in factors for first in (0, 1)]
    else:
        of_32 = [np.repeat(values, matrix.group_size // TILE_GROUP, 1) for values in factors]
    parts += [tiled(halves(name, values)[..., None]) for values in of_32]
    return np.ascontiguousarray(np.concatenate(parts, -1))


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


def minimums_of(matrix: QuantizedMatrix) -> np.ndarray | None:
    """Return the GGUF minimums of the groups, float32 [rows, groups]; None if all are 0. weight = (code - middle) *
    scale + minimum, where the middle is the code for zero without zero points."""
    if matrix.zero_points is None and not matrix.rests:
        return None
    first = dequantize(matrix).reshape(*matrix.scales.shape, -1)[..., 0]
    code = matrix.codes[..., 0] & 15 if matrix.bits == 4 else matrix.codes[..., 0]
    minimums = first - (code.astype(np.float32) - 2 ** (matrix.bits - 1)) * matrix.scales
    return minimums if minimums.any() else None


def tiled(values: np.ndarray) -> np.ndarray:
    """Return [rows, groups, n] of any type as bytes [tiles, groups, 16 * n * bytes of one]."""
    rows, groups, _ = values.shape
    filled = np.pad(values, ((0, -rows % TILE_ROWS), (0, 0), (0, 0)))
    by_tile = filled.reshape(-1, TILE_ROWS, groups, values.shape[2]).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(by_tile).view(np.uint8).reshape(len(by_tile), groups, -1)
