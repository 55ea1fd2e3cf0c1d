"""Dialect `fused` with this project's own operators (runtime/kernels).

GroupAttention computes all query heads that share a KV head at once. MatMul4 and MatMul8 multiply int4 and int8 weights
on no-dotprod Arm cores, with 0.34 and 0.41 instructions per weight where MatMulNBits takes 2.8 and 16. On x86 cores
with AVX-512 VNNI they read weights at the speed of memory. Figures and choices: docs/decisions/kernels.md.
"""

from collections.abc import Sequence

import numpy as np

from merino_edge.export.onnx.columns import widened_matrix
from merino_edge.export.onnx.fused import Fused, check_heads
from merino_edge.export.onnx.graph import KERNELS_DOMAIN, ports
from merino_edge.export.onnx.operations import Operations
from merino_edge.export.onnx.portable import Portable
from merino_edge.export.quantize.gptq import gptq
from merino_edge.export.quantize.groups import Quantized, dequantize, group_sizes, quantize_groups, repacked
from merino_edge.export.quantize.outliers import Outliers, groups_of, input_order
from merino_edge.families.graph_ops import Attention, KvLayer, Weights
from merino_edge.families.operators import by_groups
from merino_edge.families.weights import BlockSource
from merino_runtime.errors import MerinoError

GROUP_SIZE = 32
HALF_GROUP = GROUP_SIZE // 2
TILE_ROWS = {4: 8, 5: 16, 6: 16, 8: 16}  # by bits
LARGEST_HALF = float(np.finfo(np.float16).max)


class GroupAttention(Fused):
    def attention(self, qkv: str, layer: KvLayer, attention: Attention) -> str:
        """GroupAttention where enough heads share a KV head. Over an int4 cache, onnxruntime's operator."""
        bits = self.cache_scales.bits if self.cache_scales else 32
        if not by_groups(attention.heads, layer.heads, bits):
            return super().attention(qkv, layer, attention)
        check_heads(layer, attention)
        if attention.query_norm and attention.key_norm:
            query, key, value = self._parts(qkv, layer, attention)
            normed = [
                self._normed_heads(query, attention.heads, layer, attention.query_norm),
                self._normed_heads(key, layer.heads, layer, attention.key_norm),
            ]
            qkv = self.node("Concat", [*normed, value], axis=-1)
        none = self.constant("no_angles", np.zeros(1, np.float32))
        angles = self.rotary_constants(attention.rotary, layer.head_size) if attention.rotary else (none, none)
        windowed = attention.window and attention.window < self.context
        mixed = f"attention.{layer.index}"
        self.node_into(
            "GroupAttention8" if bits == 8 else "GroupAttention",
            [qkv, *ports("past_key_values", layer), self.last_index, *angles, *filter(None, self._scales(layer))],
            [mixed, *ports("present", layer)],
            domain=KERNELS_DOMAIN,
            heads=attention.heads,
            kv_heads=layer.heads,
            window=attention.window if windowed else 0,
            rotary=int(attention.rotary is not None),
            scale=float(attention.scale),
        )
        return mixed


class Tiles(Operations):
    """Matrices in tiles, in the formats of `tiled_bits`. Others are the dialect's own.

    Attributes:
        few_bits: whether matrices of 8 bits whose codes need no more than five, as those of a GGUF in Q5_0, are stored
            in five, and those in groups of 16, as in Q6_K, in six.
    """

    tiled_bits: tuple[int, ...] = (4,)
    few_bits = False

    def __init__(self, weights: Weights, context: int, precision: str, blocks: BlockSource | None = None):
        super().__init__(weights, context, precision, blocks)
        # By name: the tiles' bits, the tiles, and a node's attributes.
        self._tiles: dict[str, tuple[int, np.ndarray, dict[str, int]]] = {}

    def forget(self) -> None:
        super().forget()
        self._tiles.clear()

    def repacked(self, names: Sequence[str], bits: int) -> Quantized | None:
        """Only blocks that tiles can hold. Others of 8 bits are matrices of the dialect where `few_bits`: there
        MatMulNBits is fast."""
        if bits not in self.tiled_bits:
            return super().repacked(names, bits)
        matrix = repacked(self.blocks, names, self.weights, bits, self.exact) if self.blocks else None
        if matrix is not None and self._tiled(matrix):
            return in_halves("+".join(names), matrix)
        if bits == 8 and self.few_bits:
            return matrix
        self.exact -= set(names)
        return None

    def _tiled(self, matrix: Quantized) -> bool:
        in_groups = matrix.group_size % GROUP_SIZE == 0 or self.few_bits and in_six(matrix)
        return matrix.bits in self.tiled_bits and in_groups

    def stored_bits(self, name: str) -> int:
        """Matrices of one input that a file has in 5 or 6 bits are apart from those in 8."""
        bits = super().stored_bits(name)
        stored = self.blocks.bits(name) if self.blocks and bits == 8 and self.few_bits else None
        return stored if stored in (5, 6) else bits

    def copied_channels(self, matrix: Quantized) -> int:
        return max(GROUP_SIZE, matrix.group_size) if self._tiled(matrix) else matrix.group_size

    def quantize(self, name: str, matrix: np.ndarray, bits: int) -> Quantized:
        if bits not in self.tiled_bits:
            return super().quantize(name, matrix, bits)
        return in_halves(name, quantize_groups(matrix, bits, group_sizes(name, matrix.shape[1])[-1]))

    def quantize_gptq(self, name: str, matrix: np.ndarray, bits: int, hessian: np.ndarray) -> Quantized:
        if bits not in self.tiled_bits:
            return super().quantize_gptq(name, matrix, bits, hessian)
        return in_halves(name, gptq(matrix, hessian, bits, group_sizes(name, matrix.shape[1])[-1]))

    def minimums(self, matrix: Quantized) -> np.ndarray | None:
        return minimums_of(matrix)

    def tiles(self, name: str, matrix: Quantized, minimums: np.ndarray | None) -> tuple[int, np.ndarray]:
        """The bits of a code in the matrix's tiles, and the tiles."""
        bits = fewest_bits(matrix) if self.few_bits else matrix.bits
        return bits, tiles_of(name, matrix, minimums, bits)

    def _matmul(self, x: str, weights: list[str]) -> str:
        matrix = self.quantized_matrix(weights)
        if not self._tiled(matrix):
            return super()._matmul(x, weights)
        name, outliers = "+".join(weights), self.outliers.get(tuple(weights), [])
        return self._tiled_node("MatMul", x, name, matrix, outliers)

    def _tiled_node(
        self, kind: str, x: str, name: str, matrix: Quantized, outliers: Sequence[Outliers] = (), rows: int = 0
    ) -> str:
        """A MatMul of x with the tiles of a matrix, or Rows of it by the ids x. `outliers`: x's groups that the matrix
        has twice. `rows`: of those that a decode step reads; 0: all."""
        if name not in self._tiles:  # once, however often a layer is used
            self._tiles[name] = self._made_tiles(name, matrix, list(outliers))
        bits, values, attributes = self._tiles[name]
        count = attributes["rows"]
        tiles = self.stored(f"{name}.tiles", values, values.nbytes * (rows or count) // count)
        inputs = [tiles, x] if kind == "Rows" else [x, tiles]
        if outliers:
            columns = matrix.scales.shape[1] * matrix.group_size
            order = input_order(columns, columns, outliers).astype(np.int32)
            inputs.append(self.constant(f"{name}.order", order))
        return self.node(f"{kind}{bits}", inputs, domain=KERNELS_DOMAIN, **attributes)

    def _made_tiles(
        self, name: str, matrix: Quantized, outliers: list[Outliers]
    ) -> tuple[int, np.ndarray, dict[str, int]]:
        minimums = self.minimums(matrix)
        wide = widened_matrix(matrix._replace(rests=()), outliers)  # the minimums hold the rests
        if minimums is not None and outliers:
            minimums = np.concatenate([minimums, minimums[:, groups_of(outliers, wide.group_size)]], 1)
        columns = wide.codes.shape[1] * wide.group_size
        return *self.tiles(name, wide, minimums), {
            "rows": len(wide.codes), "columns": columns, "minimums": int(minimums is not None)
        }  # fmt: skip


class NoDotprodTiles(Tiles, GroupAttention):
    """Dialect `fused` in int8 and int4 for no-dotprod Arm cores, where unpacking 5 and 6 bits costs more than it saves.

    A tied embedding is stored once: Rows8 reads its rows where the head reads all.
    """

    tiled_bits = (4, 8)

    def _rows(self, table: str, ids: str) -> str:
        matrix = self.quantized_table(table)
        if not self._tiled(matrix):
            return super()._rows(table, ids)
        return self._tiled_node("Rows", ids, table, matrix, rows=1)

    def head(self, x: str, table: str) -> None:
        matrix = self.quantized_table(table)
        if self._tiled(matrix):
            self.logits(self._tiled_node("MatMul", x, table, matrix), len(matrix.codes))
        else:
            super().head(x, table)


class FusedTiles(NoDotprodTiles):
    """The same for x86 cores with AVX-512 VNNI."""

    few_bits = True


class PortableTiles(Tiles, Portable):
    """Dialect `portable` in int4, for ONNX Runtime from 1.10 on."""


def in_halves(name: str, matrix: Quantized) -> Quantized:
    """The matrix with scales rounded to float16."""
    return matrix._replace(scales=halves(name, matrix.scales).astype(np.float32))


def fewest_bits(matrix: Quantized) -> int:
    """In which tiles hold the codes of a matrix."""
    if matrix.bits == 8 and matrix.group_size == HALF_GROUP:
        return 6
    return 5 if matrix.bits == 8 and hold(5, matrix.codes) else matrix.bits


def in_six(matrix: Quantized) -> bool:
    """Whether the matrix is one of groups of 16 that tiles in 6 bits hold."""
    whole = matrix.group_size == HALF_GROUP and matrix.codes.shape[1] % 2 == 0
    return whole and matrix.bits == 8 and hold(6, matrix.codes)


def hold(bits: int, codes: np.ndarray) -> bool:
    """Whether so many bits hold these codes of 8 bits."""
    half = 2 ** (bits - 1)
    return bool(codes.min() >= 2**7 - half and codes.max() < 2**7 + half)


def tiles_of(name: str, matrix: Quantized, minimums: np.ndarray | None = None, bits: int | None = None) -> np.ndarray:
    """A matrix in the layout of runtime/kernels/matmul.h: tiles of 16 rows, in 4 bits of 8 rows, by 32 columns, each
    with its codes, float16 scales, and float16 minimums where the matrix has any. `bits`: of a code there; None: those
    of the matrix's format.

    uint8 [tiles, columns / 32, bytes of a tile]; minimums float32 [rows, groups]; rows are padded with zeros.
    """
    bits, rows = bits or matrix.bits, len(matrix.codes)
    count = TILE_ROWS[bits]
    if matrix.bits == 8:
        codes = matrix.codes.reshape(rows, -1, GROUP_SIZE) - np.uint8(2**7 - 2 ** (bits - 1))
        quads = [tiled(codes[..., at : at + 4], count) for at in range(0, GROUP_SIZE, 4)]
        parts = quads if bits == 8 else in_few_bits(np.concatenate(quads, -1), bits)
    else:
        codes = np.stack([matrix.codes & 15, matrix.codes >> 4], -1).reshape(rows, -1, GROUP_SIZE)
        parts = [tiled(codes[..., : GROUP_SIZE // 2] | codes[..., GROUP_SIZE // 2 :] << 4, count)]
    factors = [matrix.scales, *([] if minimums is None else [minimums])]
    if bits == 6:
        of_32 = [values[:, first::2] for values in factors for first in (0, 1)]
    else:
        of_32 = [np.repeat(values, matrix.group_size // GROUP_SIZE, 1) for values in factors]
    parts += [tiled(halves(name, values)[..., None], count) for values in of_32]
    return np.ascontiguousarray(np.concatenate(parts, -1))


def in_few_bits(codes: np.ndarray, bits: int) -> list[np.ndarray]:
    """Bytes of codes [tiles, groups, 32 columns * 16 rows] in 5 or 6 bits: two nibbles in each, then the upper bits."""
    low, upper, half = codes & 15, codes >> 4, codes.shape[-1] // 2
    nibbles = low[..., :half] | low[..., half:] << 4
    if bits == 5:
        return [nibbles, np.packbits(upper, axis=-1, bitorder="little")]
    pairs = upper.reshape(*upper.shape[:-1], 2, 4, -1)  # halves of the columns; columns 0 to 3, 4 to 7, ... of one
    bytes_ = pairs[..., 0, :] | pairs[..., 1, :] << 2 | pairs[..., 2, :] << 4 | pairs[..., 3, :] << 6
    return [nibbles, bytes_.reshape(*upper.shape[:-1], -1)]


def minimums_of(matrix: Quantized) -> np.ndarray | None:
    """GGUF minimums of the groups, float32 [rows, groups]: weight = (code - middle) * scale + minimum, where the middle
    is 8 or 128. None: all are 0."""
    if matrix.zero_points is None and not matrix.rests:
        return None
    first = dequantize(matrix).reshape(*matrix.scales.shape, -1)[..., 0]
    code = matrix.codes[..., 0] if matrix.bits == 8 else matrix.codes[..., 0] & 15
    minimums = first - (code.astype(np.float32) - 2 ** (matrix.bits - 1)) * matrix.scales
    return minimums if minimums.any() else None


def halves(name: str, values: np.ndarray) -> np.ndarray:
    """The values in float16. Raises MerinoError for values beyond its range."""
    if np.abs(values).max(initial=0) > LARGEST_HALF:
        raise MerinoError(
            f"{name} has groups whose scale is above {LARGEST_HALF:.0f}, which float16 cannot hold: export with"
            " --precision fp32"
        )
    return values.astype(np.float16)


def tiled(values: np.ndarray, count: int) -> np.ndarray:
    """[rows, groups, n] of any type as bytes [tiles, groups, count * n * bytes of one]; `count`: rows of a tile."""
    rows, groups, _ = values.shape
    filled = np.pad(values, ((0, -rows % count), (0, 0), (0, 0)))
    by_tile = filled.reshape(-1, count, groups, values.shape[2]).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(by_tile).view(np.uint8).reshape(len(by_tile), groups, -1)
