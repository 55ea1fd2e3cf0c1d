"""Dialect `fused`: ONNX Runtime's contrib operators, for ONNX Runtime 1.18 and later.

The attention operator writes new keys and values in place: past and present of a layer are one buffer, which the
runtime binds to both, so that the cache is never copied. Inputs and outputs are described in docs/formats.md.
"""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from merino_edge.export.onnx.columns import widened, widened_matrix
from merino_edge.export.onnx.external_data import PAGE
from merino_edge.export.onnx.graph import Port, ports
from merino_edge.export.onnx.operations import Operations
from merino_edge.export.quantize.groups import Quantized, packed_points, quantize_groups, repacked
from merino_edge.families.graph_ops import Attention, KvLayer, Norm, Weights
from merino_edge.families.operators import FUSED_HEAD_MULTIPLE, GROUP_SIZES, HEAD_SLICE_BYTES
from merino_edge.families.weights import BlockSource
from merino_runtime.errors import MerinoError

CONTRIB = "com.microsoft"
ACCURACY = 4  # MatMulNBits quantizes activations to int8 and multiplies in int8
CACHE_LENGTHS = {"past_key_values": "past_sequence_length", "present": "total_sequence_length"}
BATCH = "batch_size"


def check_heads(layer: KvLayer, attention: Attention) -> None:
    """Raises MerinoError for heads that ONNX Runtime's attention refuses when it runs."""
    multiple = FUSED_HEAD_MULTIPLE * (2 if attention.rotary else 1)
    if layer.head_size % multiple:
        raise MerinoError(
            f"heads of {layer.head_size} channels are not possible in dialect fused, since ONNX Runtime's attention"
            f" takes multiples of {multiple}{' with rotary positions' if attention.rotary else ''}: export with"
            " --dialect portable"
        )


class Fused(Operations):
    opsets = {"": 17, CONTRIB: 1}

    def __init__(self, weights: Weights, context: int, precision: str, blocks: BlockSource | None = None):
        super().__init__(weights, context, precision, blocks)
        self.last_index = self.total_length = ""  # set by begin_decoder or begin_attention
        self._wide: dict[str, list[np.ndarray]] = {}  # by name of a matrix: codes, scales, zero points

    def forget(self) -> None:
        super().forget()
        self._wide.clear()

    def repacked(self, names: Sequence[str], bits: int) -> Quantized | None:
        return repacked(self.blocks, names, self.weights, bits, self.exact) if self.blocks else None

    def quantize(self, name: str, matrix: np.ndarray, bits: int) -> Quantized:
        """In groups no larger than a GGUF's blocks: in larger groups, weights of several blocks would share a scale."""
        stored = [self.blocks.blocks(each) for each in name.split("+")] if self.blocks else []
        sizes = [blocks.block for blocks in stored if blocks]
        if not sizes:
            return super().quantize(name, matrix, bits)
        return quantize_groups(matrix, bits, max(GROUP_SIZES[-1], min(sizes)))

    def begin_decoder(self, kv_layers: Sequence[KvLayer]) -> None:
        """Add a decoder's inputs, its outputs except the logits, and the nodes that count the filled positions in the
        mask."""
        self.input("input_ids", "int64", 1, "sequence")
        mask = self.input("attention_mask", "int64", 1, "total")
        self.cache_ports(kv_layers, self.context)
        last = self.node("Sub", [self.node("ReduceSum", [mask, self.integers(1)], keepdims=0), self.integers(1)])
        total = self.node("Gather", [self.node("Shape", [mask]), self.integer(1)])
        self.last_index = self.node("Cast", [last], to=TensorProto.INT32)  # [B]
        self.total_length = self.node("Cast", [total], to=TensorProto.INT32)  # scalar

    def begin_attention(self, kv_layers: Sequence[KvLayer]) -> None:
        """Add the inputs and outputs of attention layers without a decoder: the cache, and the lengths that
        `begin_decoder` derives."""
        self.last_index = self.input("last", "int32", 1)
        self.total_length = self.input("total", "int32")
        self.cache_ports(kv_layers, self.context)

    def declared(self, port: Port) -> tuple[int | str, ...]:
        """The lengths of batch and cache are symbolic in the file: a server decodes several sequences in one run, and
        other programs bind a buffer of another length, or first an empty one and then the graph's output. The runtime
        binds buffers of the shape in bundle.json."""
        shape = list(port.shape)
        if self.takes_batch and shape[:1] == [1]:
            shape[0] = BATCH
        kind = port.name.partition(".")[0]
        if kind in CACHE_LENGTHS:
            shape[2] = CACHE_LENGTHS[kind]
        return tuple(shape)

    @property
    def takes_batch(self) -> bool:
        """Whether several sequences can be decoded in one run, and none changes the result of another."""
        return self.form.grouped or not self.all_logits

    def embed(self, table: str) -> str:
        return self._rows(table, "input_ids")

    def embed_positions(self, table: str, offset: int) -> str:
        positions = self.input("position_ids", "int64", 1, "sequence")
        return self._rows(table, self.node("Add", [positions, self.integer(offset)]))

    def _rows(self, table: str, ids: str) -> str:
        if not self.form.grouped:
            return self.node("Gather", [self.table(table), ids])
        matrix = self.quantized_table(table)
        codes, scales = matrix.codes.reshape(len(matrix.codes), -1), matrix.scales
        return self.node(
            "GatherBlockQuantized",
            [
                self.stored(f"{table}.rows", codes, codes[0].nbytes),
                ids,
                self.stored(f"{table}.row_scales", scales, scales[0].nbytes),
            ],
            domain=CONTRIB,
            bits=matrix.bits,
            block_size=matrix.group_size,
            gather_axis=0,
            quantize_axis=1,
        )

    def _matmul(self, x: str, weights: list[str]) -> str:
        return self._grouped_matmul(x, "+".join(weights), self.quantized_matrix(weights))

    def _grouped_matmul(self, x: str, name: str, matrix: Quantized) -> str:
        """x @ W with W in groups [out, in]; activations are quantized to int8 as well (see ACCURACY).

        MatMulNBits also takes minimums as float zero points, but then multiplies in float32, fifty times slower.
        """
        outliers = self.outliers.get(tuple(name.split("+")), [])
        x = widened(self, x, name, matrix, outliers)
        if name not in self._wide:
            wide = widened_matrix(matrix, outliers)
            points = [] if wide.zero_points is None else [packed_points(wide.zero_points)]
            self._wide[name] = [wide.codes, wide.scales.reshape(-1), *points]
        parts = zip(("codes", "scales", "zero_points"), self._wide[name], strict=False)
        return self.node(
            "MatMulNBits",
            [x, *(self.stored(f"{name}.{part}", value) for part, value in parts)],
            domain=CONTRIB,
            K=self._wide[name][0].shape[1] * matrix.group_size,
            N=len(matrix.codes),
            bits=matrix.bits,
            block_size=matrix.group_size,
            accuracy_level=ACCURACY,
        )

    def norm(self, x: str, norm: Norm) -> str:
        if norm.bias is None:
            return self.node("SimplifiedLayerNormalization", [x, self.weight(norm.weight)], axis=-1, epsilon=norm.eps)
        inputs = [x, self.weight(norm.weight), self.weight(norm.bias)]
        return self.node("LayerNormalization", inputs, axis=-1, epsilon=norm.eps)

    def add_norm(self, x: str, residual: str, norm: Norm) -> tuple[str, str]:
        kind = "SkipSimplifiedLayerNormalization" if norm.bias is None else "SkipLayerNormalization"
        inputs = [x, residual, self.weight(norm.weight), *([self.weight(norm.bias)] if norm.bias else [])]
        normed = self.node(kind, inputs, domain=CONTRIB, outputs=4, epsilon=norm.eps)
        return normed, f"{normed}.3"

    def activation(self, x: str, kind: str) -> str:
        if kind == "relu":
            return self.node("Relu", [x])
        if kind == "silu":
            return self.node("QuickGelu", [x], domain=CONTRIB, alpha=1.0)  # x * sigmoid(alpha * x)
        return self.node({"gelu": "FastGelu", "gelu_erf": "Gelu"}[kind], [x], domain=CONTRIB)

    def attention(self, qkv: str, layer: KvLayer, attention: Attention) -> str:
        check_heads(layer, attention)
        parts = [qkv, "", ""]
        if attention.query_norm and attention.key_norm:
            query, key, value = self._parts(qkv, layer, attention)
            parts = [
                self._normed_heads(query, attention.heads, layer, attention.query_norm),
                self._normed_heads(key, layer.heads, layer, attention.key_norm),
                value,
            ]
        tables = self.rotary_constants(attention.rotary, layer.head_size) if attention.rotary else ("", "")
        options: dict[str, int | float] = {}
        if attention.scale != layer.head_size**-0.5:
            options["scale"] = attention.scale
        if attention.window and attention.window < self.context:
            options["local_window_size"] = attention.window
            self.windowed = True
        inputs = [*parts, *ports("past_key_values", layer), self.last_index, self.total_length, *tables]
        mixed = f"attention.{layer.index}"
        self.node_into(
            "GroupQueryAttention",
            [*inputs, *self._scales(layer)],
            [mixed, *ports("present", layer)],
            domain=CONTRIB,
            num_heads=attention.heads,
            kv_num_heads=layer.heads,
            do_rotary=int(attention.rotary is not None),
            **options,
            **self._cache_options(),
        )
        return mixed

    def _scales(self, layer: KvLayer) -> list[str]:
        """The inputs behind the rotary tables: three that are not used, and the scales of keys and values."""
        if self.cache_scales is None:
            return []
        names = [f"{name}_scale" for name in ports("cache", layer)]
        scales = self.cache_scales.layers[layer.index]
        return ["", "", "", *(self.constant(name, one[None, :, None]) for name, one in zip(names, scales, strict=True))]

    def _cache_options(self) -> dict[str, int | str]:
        if self.cache_scales is None:
            return {}
        return {
            "k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": self.cache_scales.bits
        }  # fmt: skip

    def _parts(self, qkv: str, layer: KvLayer, attention: Attention) -> tuple[str, str, str]:
        """Queries [B, T, heads * head_size], keys and values [B, T, layer.heads * head_size]."""
        sizes = [heads * layer.head_size for heads in (attention.heads, layer.heads, layer.heads)]
        query = self.node("Split", [qkv, self.integers(*sizes)], outputs=3, axis=-1)
        return query, f"{query}.1", f"{query}.2"

    def _normed_heads(self, x: str, heads: int, layer: KvLayer, norm: Norm) -> str:
        """x [B, T, heads * head_size] with each head normed separately."""
        split = self.node("Reshape", [x, self.integers(0, -1, heads, layer.head_size)])
        return self.node("Reshape", [self.norm(split, norm), self.integers(0, -1, heads * layer.head_size)])

    def last(self, x: str) -> str:
        if self.all_logits:
            return x
        return self.node("Gather", [x, self.integers(-1)], axis=1)

    def head(self, x: str, table: str) -> None:
        if self.form.grouped:
            logits = self._grouped_matmul(x, table, self.quantized_table(table))
        else:
            logits = self._sliced_head(x, table)
        self.logits(logits, self.weights[table].shape[0])

    def _sliced_head(self, x: str, table: str) -> str:
        """Logits [B, 1, vocab] of x [B, 1, width], or with `all_logits` [1, T, vocab] of x [1, T, width], against a
        table [vocab, width] that is not quantized.

        ONNX Runtime packs a copy of each matrix for its kernels, and frees the original if no other operator reads
        it. The embedding reads the whole table. So the head has its own constants over the same bytes of the file:
        slices, so that only one at a time is in memory twice.
        """
        rows = self.real_weight(table)  # [vocab, width]
        self.decode_weight_bytes += rows.nbytes
        unit = PAGE // 4  # rows that fill whole pages, whatever the width
        count = max(1, HEAD_SLICE_BYTES // rows[0].nbytes // unit) * unit
        axis = self.integers(0 if self.all_logits else 1)
        row = self.node("Squeeze", [x, axis])  # [B or T, width]
        parts = []
        for start in range(0, len(rows), count):
            piece = self.constant(f"{table}.{start}", rows[start : start + count])
            logits = self.node("Gemm", [row, piece], transB=1)  # [B or T, count]
            parts.append(self.node("Unsqueeze", [logits, axis]))
        return self.node("Concat", parts, axis=2) if len(parts) > 1 else parts[0]
