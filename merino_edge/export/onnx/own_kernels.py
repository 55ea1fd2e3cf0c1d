"""Dialect `fused` with this project's own operators (runtime/kernels).

GroupAttention computes all query heads that share a KV head at once. MatMul4 multiplies int4 weights on no-dotprod
Arm cores, with 0.34 instructions per weight where MatMulNBits takes 2.8, and on x86 cores with AVX-512 VNNI. Figures
and choices: docs/decisions/kernels.md.
"""

from collections.abc import Sequence

import numpy as np

from merino_edge.export.onnx.columns import widened_matrix, with_copies
from merino_edge.export.onnx.fused import Fused, check_heads
from merino_edge.export.onnx.graph import Graph, ports
from merino_edge.export.onnx.no_dotprod import FusedNoDotprod
from merino_edge.export.onnx.operations import Operations
from merino_edge.export.onnx.portable import Portable
from merino_edge.export.quantisation.gptq import gptq
from merino_edge.export.quantisation.groups import Quantized, dequantize, group_sizes, quantize_groups, repacked
from merino_edge.families.graph_ops import Attention, KvLayer, Weights
from merino_edge.families.operators import by_groups
from merino_edge.families.weights import BlockSource
from merino_runtime.errors import MerinoError

DOMAIN = "merino"
TILE_ROWS, GROUP_SIZE, GROUP_BYTES = 8, 32, 144
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
        use_own_kernels(self)
        self.node_into(
            "GroupAttention8" if bits == 8 else "GroupAttention",
            [qkv, *ports("past_key_values", layer), self.last_index, *angles, *filter(None, self._scales(layer))],
            [mixed, *ports("present", layer)],
            domain=DOMAIN,
            heads=attention.heads,
            kv_heads=layer.heads,
            window=attention.window if windowed else 0,
            rotary=int(attention.rotary is not None),
            scale=float(attention.scale),
        )
        return mixed


class Tiles4(Operations):
    """Matrices of 4 bits for MatMul4, in tiles. Those of 8 bits, embedding and head are the dialect's own."""

    def __init__(self, weights: Weights, context: int, precision: str, blocks: BlockSource | None = None):
        super().__init__(weights, context, precision, blocks)
        self._tiles: dict[str, np.ndarray] = {}

    def forget(self) -> None:
        super().forget()
        self._tiles.clear()

    def repacked(self, names: Sequence[str], bits: int) -> Quantized | None:
        """In 4 bits only blocks of a multiple of 32 weights."""
        if bits != 4 or not self.blocks:
            return super().repacked(names, bits)
        matrix = repacked(self.blocks, names, self.weights, bits, self.exact)
        if matrix is not None and matrix.group_size % GROUP_SIZE:
            self.exact -= set(names)
            return None
        return in_halves("+".join(names), matrix) if matrix is not None else None

    def quantize(self, name: str, matrix: np.ndarray, bits: int) -> Quantized:
        if bits != 4:
            return super().quantize(name, matrix, bits)
        return in_halves(name, quantize_groups(matrix, bits, group_sizes(name, matrix.shape[1])[-1]))

    def quantize_gptq(self, name: str, matrix: np.ndarray, bits: int, hessian: np.ndarray) -> Quantized:
        if bits != 4:
            return super().quantize_gptq(name, matrix, bits, hessian)
        return in_halves(name, gptq(matrix, hessian, bits, group_sizes(name, matrix.shape[1])[-1]))

    def minimums(self, matrix: Quantized) -> np.ndarray | None:
        return minimums_of(matrix)

    def tiles(self, name: str, matrix: Quantized, minimums: np.ndarray | None) -> np.ndarray:
        return tiles4(name, matrix, minimums)

    def _matmul(self, x: str, weights: list[str]) -> str:
        if self.bits_of(weights[0]) != 4:
            return super()._matmul(x, weights)
        name, matrix = "+".join(weights), self.quantized_matrix(weights)
        minimums, outliers = self.minimums(matrix), self.outliers.get(tuple(weights), [])
        matrix = matrix._replace(rests=())  # the minimums hold them
        if outliers:
            x = with_copies(self, x, name, matrix, outliers)
            matrix = widened_matrix(matrix, outliers)
            if minimums is not None:
                minimums = np.concatenate([minimums, minimums[:, [each.group for each in outliers]]], 1)
        if name not in self._tiles:
            self._tiles[name] = self.tiles(name, matrix, minimums)
        tiles = self.stored(f"{name}.tiles", self._tiles[name])
        columns = matrix.codes.shape[1] * matrix.group_size
        use_own_kernels(self)
        return self.node(
            "MatMul4", [x, tiles], domain=DOMAIN, rows=len(matrix.codes), columns=columns,
            minimums=int(minimums is not None),
        )  # fmt: skip


class OwnKernels(Tiles4, GroupAttention, FusedNoDotprod):
    """Dialect `fused` in int4 for no-dotprod Arm cores."""


class FusedTiles(Tiles4, GroupAttention):
    """Dialect `fused` in int4 for x86 cores with AVX-512 VNNI."""


class PortableTiles(Tiles4, Portable):
    """Dialect `portable` in int4, for ONNX Runtime from 1.10 on."""


def use_own_kernels(graph: Graph) -> None:
    graph.own_kernels, graph.opsets = True, {**graph.opsets, DOMAIN: 1}


def in_halves(name: str, matrix: Quantized) -> Quantized:
    """The matrix with scales rounded to float16."""
    return matrix._replace(scales=halves(name, matrix.scales).astype(np.float32))


def tiles4(name: str, matrix: Quantized, minimums: np.ndarray | None = None) -> np.ndarray:
    """A matrix in the layout of runtime/kernels/matmul.h: tiles of eight rows by 32 columns, each with its codes,
    float16 scales, and float16 minimums where the matrix has any.

    uint8 [tiles, columns / 32, 144], or 160 with minimums float32 [rows, groups]; rows are padded with zeros.
    """
    assert matrix.bits == 4, matrix.bits
    codes = np.stack([matrix.codes & 15, matrix.codes >> 4], -1).reshape(len(matrix.codes), -1, GROUP_SIZE)
    low, high = codes[..., : GROUP_SIZE // 2], codes[..., GROUP_SIZE // 2 :]
    factors = [matrix.scales, *([] if minimums is None else [minimums])]
    of_32 = [np.repeat(values, matrix.group_size // GROUP_SIZE, 1) for values in factors]
    parts = [tiled(low | high << 4), *(tiled(halves(name, values)[..., None]) for values in of_32)]
    return np.ascontiguousarray(np.concatenate(parts, -1))


def minimums_of(matrix: Quantized) -> np.ndarray | None:
    """GGUF minimums of the groups, float32 [rows, groups]: weight = (code - 8) * scale + minimum. None: all are 0."""
    first = dequantize(matrix).reshape(*matrix.scales.shape, -1)[..., 0]
    minimums = first - ((matrix.codes[..., 0] & 15).astype(np.float32) - 8) * matrix.scales
    return minimums if minimums.any() else None


def halves(name: str, values: np.ndarray) -> np.ndarray:
    """The values in float16. Raises MerinoError for values beyond its range."""
    if np.abs(values).max(initial=0) > LARGEST_HALF:
        raise MerinoError(
            f"{name} has groups whose scale is above {LARGEST_HALF:.0f}, which float16 cannot hold: export with"
            " --precision int8"
        )
    return values.astype(np.float16)


def tiled(values: np.ndarray) -> np.ndarray:
    """[rows, groups, n] of any type as bytes [tiles, groups, 8 * n * bytes of one]."""
    rows, groups, _ = values.shape
    filled = np.pad(values, ((0, -rows % TILE_ROWS), (0, 0), (0, 0)))
    by_tile = filled.reshape(-1, TILE_ROWS, groups, values.shape[2]).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(by_tile).view(np.uint8).reshape(len(by_tile), groups, -1)
