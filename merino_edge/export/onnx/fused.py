"""Dialect `fused`: ONNX Runtime's own operators, for ONNX Runtime 1.18 and later.

The attention operator writes new keys and values in place: past and present of a layer are one buffer, which the
runtime binds to both. Nothing of the cache is copied. See docs/formats.md for inputs and outputs.
"""

from collections.abc import Sequence

from onnx import TensorProto

from merino_edge.export.onnx.graph import Graph, ports, rotary_tables
from merino_edge.export.quantize import Quantized
from merino_edge.families.graph_ops import KvLayer, Norm, Weights

CONTRIB = "com.microsoft"
ACCURACY = 4  # MatMulNBits computes in int8 and not in float32


class Fused(Graph):
    opsets = {"": 17, CONTRIB: 1}

    def __init__(self, weights: Weights, kv_layers: Sequence[KvLayer], context: int, precision: str):
        super().__init__(weights, kv_layers, context, precision)
        self.input("input_ids", "int64", 1, "sequence")
        mask = self.input("attention_mask", "int64", 1, "total")
        for layer in kv_layers:
            for past, present in zip(ports("past_key_values", layer), ports("present", layer), strict=True):
                shape = (1, layer.heads, context, layer.head_size)
                self.input(past, self.real, *shape)
                self.output(present, self.real, *shape)
        last = self.node("Sub", [self.node("ReduceSum", [mask, self.integers(1)], keepdims=0), self.integers(1)])
        total = self.node("Gather", [self.node("Shape", [mask]), self.integer(1)])
        self._last_index = self.node("Cast", [last], to=TensorProto.INT32)  # [1]
        self._total = self.node("Cast", [total], to=TensorProto.INT32)  # scalar

    def embed(self, table: str) -> str:
        return self._rows(table, "input_ids")

    def embed_positions(self, table: str, offset: int) -> str:
        positions = self.input("position_ids", "int64", 1, "sequence")
        return self._rows(table, self.node("Add", [positions, self.integer(offset)]))

    def _rows(self, table: str, ids: str) -> str:
        if not self.form.blocked:
            return self.node("Gather", [self.table(table), ids])
        found = self.quantized_table(table)
        codes, scales = found.codes.reshape(len(found.codes), -1), found.scales
        return self.node(
            "GatherBlockQuantized",
            [
                self.stored(f"{table}.rows", codes, codes[0].nbytes),
                ids,
                self.stored(f"{table}.row_scales", scales, scales[0].nbytes),
            ],
            domain=CONTRIB,
            bits=found.bits,
            block_size=found.block,
            gather_axis=0,
            quantize_axis=1,
        )

    def linear(self, x: str, weight: str, bias: str | None = None) -> str:
        return self.packed_linear(x, [weight], [bias] if bias else None)

    def packed_linear(self, x: str, weights: list[str], biases: list[str] | None = None) -> str:
        if self.form.blocked:
            product = self._blocked_product(x, "+".join(weights), self.quantized_matrix(weights))
        else:
            product = self.node("MatMul", [x, self.matrix(weights)])
        return self.node("Add", [product, self.vector(biases)]) if biases else product

    def _blocked_product(self, x: str, name: str, found: Quantized) -> str:
        """x @ W, W dequantised block by block; activations go to int8 where the CPU multiplies int8 (ACCURACY)."""
        codes = self.stored(f"{name}.codes", found.codes)
        scales = self.stored(f"{name}.scales", found.scales.reshape(-1))
        return self.node(
            "MatMulNBits",
            [x, codes, scales],
            domain=CONTRIB,
            K=found.codes.shape[1] * found.block,
            N=len(found.codes),
            bits=found.bits,
            block_size=found.block,
            accuracy_level=ACCURACY,
        )

    def add(self, x: str, y: str) -> str:
        return self.node("Add", [x, y])

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
        if kind == "gelu":
            return self.node("FastGelu", [x], domain=CONTRIB)
        return self.node("Relu", [x])

    def attention(self, qkv: str, layer: KvLayer, rotary_theta: float | None) -> str:
        tables = ["", ""]
        if rotary_theta is not None:
            cos, sin = rotary_tables(self.context, layer.head_size, rotary_theta)
            tables = [
                self.constant(f"cos_{layer.head_size}", cos.astype(self.real)),
                self.constant(f"sin_{layer.head_size}", sin.astype(self.real)),
            ]
        mixed = f"attention.{layer.index}"
        self.node_into(
            "GroupQueryAttention",
            [qkv, "", "", *ports("past_key_values", layer), self._last_index, self._total, *tables],
            [mixed, *ports("present", layer)],
            domain=CONTRIB,
            num_heads=layer.heads,
            kv_num_heads=layer.heads,
            do_rotary=int(rotary_theta is not None),
        )
        return mixed

    def last(self, x: str) -> str:
        return self.node("Gather", [x, self.integers(-1)], axis=1)

    def head(self, x: str, table: str) -> None:
        self.output("logits", "float32", 1, 1, self.weights[table].shape[0])
        if self.form.blocked:
            self.logits(self._blocked_product(x, table, self.quantized_table(table)))
        else:
            self.logits(self.real_head(x, table))
