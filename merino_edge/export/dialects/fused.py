"""Dialect `fused`: ONNX Runtime's contrib operators, for ONNX Runtime 1.18 and later. `fused_attention` writes its
attention. docs/formats.md describes inputs and outputs.
"""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from merino_edge.export.dialects.external_data import PAGE
from merino_edge.export.dialects.fused_attention import check_heads, group_attention, group_query_attention
from merino_edge.export.dialects.graph import KERNELS_DOMAIN, ports
from merino_edge.export.dialects.matmuls import CONTRIB, table_rows
from merino_edge.export.dialects.operations import Operations
from merino_edge.families.graph_ops import Attention, Delta, KvLayer, Norm
from merino_edge.families.operators import HEAD_SLICE_BYTES, by_groups, runs_on_kernels
from merino_runtime.bundle import Port
from merino_runtime.bundle.requirements import version_tuple

CACHE_LENGTHS = {"past_key_values": "past_sequence_length", "present": "total_sequence_length"}
BATCH = "batch_size"
# Operators that compute one row in another order than several.
ROWS_DIFFER = {"GroupQueryAttention", "MatMul", "Gemm", "Conv"}
DELTA_VERSION = "1.26"  # the oldest with LinearAttention and CausalConvWithState
UNIT_EPS = 1e-6  # added to the square of a query's or a key's length in gated DeltaNet


class Fused(Operations):
    opsets = {"": 17, CONTRIB: 1}

    def begin_decoder(self, kv_layers: Sequence[KvLayer]) -> None:
        """Add a decoder's inputs, its outputs except the logits, and the nodes that count the filled positions in the
        mask."""
        self.batched = bool(self.matrices) or not self.all_logits
        self.input("input_ids", "int64", [1, "sequence"])
        mask = self.input("attention_mask", "int64", [1, "total"])
        self.cache_ports(kv_layers, self.context)
        last = self.node("Sub", [self.node("ReduceSum", [mask, self.integers(1)], keepdims=0), self.integers(1)])
        total = self.node("Gather", [self.node("Shape", [mask]), self.integer(1)])
        self.last_index = self.node("Cast", [last], to=TensorProto.INT32)
        self.total_length = self.node("Cast", [total], to=TensorProto.INT32)

    def declared(self, port: Port) -> tuple[int | str, ...]:
        """Return the shape with symbolic lengths of batch and cache.

        A server decodes several sequences in one run. Other programs bind a buffer of another length, or first an empty
        one and then the graph's output. The runtime binds buffers of the shape in bundle.json.
        """
        shape = list(port.shape)
        if self.batched and shape[:1] == [1]:
            shape[0] = BATCH
        kind = port.name.partition(".")[0]
        if kind in CACHE_LENGTHS:
            shape[2] = CACHE_LENGTHS[kind]
        return tuple(shape)

    def embed_positions(self, table: str, offset: int) -> str:
        positions = self.input("position_ids", "int64", [1, "sequence"])
        return table_rows(self, self.node("Add", [positions, self.integer(offset)]), table)

    def norm(self, x: str, norm: Norm) -> str:
        if norm.bias is None:
            return self.node("SimplifiedLayerNormalization", [x, self.norm_weight(norm)], axis=-1, epsilon=norm.eps)
        inputs = [x, self.weight(norm.weight), self.weight(norm.bias)]
        return self.node("LayerNormalization", inputs, axis=-1, epsilon=norm.eps)

    def add_norm(self, x: str, residual: str, norm: Norm) -> tuple[str, str]:
        kind = "SkipSimplifiedLayerNormalization" if norm.bias is None else "SkipLayerNormalization"
        inputs = [x, residual, self.weight(norm.weight), *([self.weight(norm.bias)] if norm.bias else [])]
        normed = self.node(kind, inputs, domain=CONTRIB, outputs=4, epsilon=norm.eps)
        return normed, f"{normed}.3"

    def activation(self, x: str, kind: str) -> str:
        if kind in ("relu", "tanh"):
            return self.node(kind.capitalize(), [x])
        if kind == "silu":
            return self.node("QuickGelu", [x], domain=CONTRIB, alpha=1.0)  # x * sigmoid(alpha * x)
        return self.node({"gelu": "FastGelu", "gelu_erf": "Gelu"}[kind], [x], domain=CONTRIB)

    def attention(self, qkv: str, layer: KvLayer, attention: Attention) -> str:
        check_heads(layer, attention)
        bits = self.cache_scales.bits if self.cache_scales else 32
        own = self.by_kernels and attention.in_kernels and by_groups(attention.heads, layer.heads, bits)
        write = group_attention if own else group_query_attention
        if not attention.gated:
            return write(self, qkv, layer, attention)
        queries, cached = (heads * layer.head_size for heads in (attention.heads, 2 * layer.heads))
        parts = self.node("Split", [qkv, self.integers(queries, queries, cached)], outputs=3, axis=-1)
        mixed = write(self, self.node("Concat", [parts, f"{parts}.2"], axis=-1), layer, attention)
        return self.node("Mul", [mixed, self.node("Sigmoid", [f"{parts}.1"])])

    def delta(self, x: str, delta: Delta) -> str:
        sizes, size = delta.sizes, delta.key_size
        keys, values, heads = sizes.key_heads * size, sizes.values, sizes.value_heads
        count = self.weights[delta.taps].shape[-1] - 1
        self.batched, self.oldest = False, max(self.oldest, DELTA_VERSION, key=version_tuple)
        # 1. The convolution of queries, keys and values.
        parts = self.node("Split", [x, self.integers(sizes.inputs, values, heads, heads)], outputs=4, axis=-1)
        past, present = self.state_ports(delta.index, "inputs", sizes.inputs, count)
        rows, mixed = self.node("Transpose", [parts], perm=[0, 2, 1]), f"convolution.{delta.index}"
        inputs = [rows, self.stored(delta.taps, self.real_weight(delta.taps)), "", past]
        self.node_into("CausalConvWithState", inputs, [mixed, present], domain=CONTRIB, activation="silu")
        mixed = self.node("Transpose", [mixed], perm=[0, 2, 1])
        query = self.node("Split", [mixed, self.integers(keys, keys, values)], outputs=3, axis=-1)

        # 2. Queries and keys of length 1. The norm divides by the root of the mean square, not of the sum.
        def unit(part: str, factor: float) -> str:
            weight = self.constant(f"units_{size}_{factor!r}", np.full(size, factor, np.float32))
            split = self.node("Reshape", [part, self.integers(0, -1, sizes.key_heads, size)])
            normed = self.node("SimplifiedLayerNormalization", [split, weight], axis=-1, epsilon=UNIT_EPS / size)
            if heads != sizes.key_heads:
                shared = np.repeat(np.arange(sizes.key_heads), heads // sizes.key_heads)
                normed = self.node("Gather", [normed, self.constant(f"heads_{heads}", shared)], axis=2)
            return self.node("Reshape", [normed, self.integers(0, -1, heads * size)])

        units = unit(query, 1 / size), unit(f"{query}.1", size**-0.5)
        # 3. The recurrence, with decays and rates of update.
        step = self.node("Softplus", [self.node("Add", [f"{parts}.3", self.weight(delta.step)])])
        decay, rate = self.node("Mul", [step, self.weight(delta.decay)]), self.node("Sigmoid", [f"{parts}.2"])
        past, present = self.state_ports(delta.index, "state", heads, size, delta.value_size)
        result = f"delta.{delta.index}"
        self.node_into(
            "LinearAttention", [*units, f"{query}.2", past, decay, rate], [result, present],
            domain=CONTRIB, q_num_heads=heads, kv_num_heads=heads, scale=1.0, update_rule="gated_delta",
        )  # fmt: skip
        # 4. The norm of each head, and the gate.
        split = self.node("Reshape", [result, self.integers(0, -1, heads, delta.value_size)])
        normed = self.node("Reshape", [self.norm(split, delta.norm), self.integers(0, -1, values)])
        return self.node("Mul", [normed, self.activation(f"{parts}.1", "silu")])

    def state_ports(self, index: int, kind: str, *shape: int) -> tuple[str, str]:
        """Add an input and an output [1, *shape] of a recurrent state."""
        past, present = (f"{time}_states.{index}.{kind}" for time in ("past", "present"))
        self.input(past, self.real, [1, *shape])
        self.output(present, self.real, [1, *shape])
        return past, present

    @property
    def by_kernels(self) -> bool:
        """Return whether attention and taps are this project's operators."""
        return runs_on_kernels(self.form.dialect, self.form.precision)

    def taps(self, x: str, weight: str, layer: KvLayer) -> str:
        if self.by_kernels:
            return self.own_taps(x, weight, layer, gated=0)
        weights = np.ascontiguousarray(self.real_weight(weight))  # [taps, 1, width]
        windows, inside = self._windows(len(weights))
        earlier = [self.node("GatherND", [part, windows], batch_dims=1) for part in self._written(x, layer)]
        rows = self.node("Concat", earlier, axis=-1)  # [B, T, taps, 1, width]
        rows = self.node("Where", [inside, rows, self.scalar(0.0)])
        products = self.node("Mul", [rows, self.stored(weight, weights)])
        return self.node("ReduceSum", [products, self.integers(2, 3)], keepdims=0)

    def gated_taps(self, x: str, weight: str, layer: KvLayer) -> str:
        return self.own_taps(x, weight, layer, gated=1) if self.by_kernels else super().gated_taps(x, weight, layer)

    def own_taps(self, x: str, weight: str, layer: KvLayer, gated: int) -> str:
        mixed = f"taps.{layer.index}"
        weights = self.stored(weight, np.ascontiguousarray(self.real_weight(weight)))
        inputs = [x, *ports("past_key_values", layer), self.last_index, weights]
        outputs = [mixed, *ports("present", layer)]
        self.node_into("Taps", inputs, outputs, domain=KERNELS_DOMAIN, gated=gated)
        return mixed

    def with_earlier(self, x: str, layer: KvLayer, count: int, outside: Sequence[float] = (0.0,)) -> str:
        """ScatterND writes in place, as attention does: its input and its output are one buffer."""
        read, inside = self._slots_before(count)
        self._written(x, layer)
        pasts = ports("past_key_values", layer)
        earlier = [self.node("GatherND", [past, read], batch_dims=1) for past in pasts]  # [B, count, width / 2]
        empty = self.constant(f"outside_{outside}", np.array(outside, self.real))
        rows = self.node("Where", [inside, self.node("Concat", earlier, axis=-1), empty])
        return self.node("Concat", [rows, x], axis=1)

    def _written(self, x: str, layer: KvLayer) -> tuple[str, str]:
        """Write x into the cache; return the outputs that hold its halves."""
        halves, presents = self.node("Split", [x], outputs=2, axis=-1), ports("present", layer)
        written = self._new_slots()[0]
        for past, present, half in zip(ports("past_key_values", layer), presents, (halves, f"{halves}.1"), strict=True):
            self.node_into("ScatterND", [past, written, half], [present])
        return presents

    def _new_slots(self) -> list[str]:
        """Return the indices of the new positions' rows in a cache [B, 1, context, n], [B, T, 3]; and the new positions
        [B, T]."""

        def make() -> list[str]:
            length = self.node("Shape", ["input_ids"])
            sequences, tokens = (self.node("Gather", [length, self.integer(axis)]) for axis in (0, 1))
            last = self.node("Cast", [self.last_index], to=TensorProto.INT64)
            one, zero = self.integer(1), self.integer(0)
            new = self.node("Range", [self.node("Sub", [one, tokens]), one, one])
            slots = self.add(self.node("Unsqueeze", [last, self.integers(1)]), new)  # [B, T]
            numbers = self.node("Unsqueeze", [self.node("Range", [zero, sequences, one]), self.integers(1, 2)])
            return [self.add(self._indices(slots, 2), self.padded(numbers, 2)), slots]

        return self.once("new slots", make)

    def _indices(self, slots: str, zeros: int, axes: int = 2) -> str:
        """Return slots [.., n] of `axes` axes as indices [.., n, zeros + 1], with zeros before each."""
        slots = self.node("Unsqueeze", [slots, self.integers(axes)])
        return self.node("Pad", [slots, self.integers(*[0] * axes, zeros, *[0] * (axes + 1))])

    def _slots_before(self, count: int) -> list[str]:
        """Return the indices, without B, of the rows of `count` positions before the new ones, [B, count, 2]; and
        whether these are of the text, [B, count, 1]."""

        def make() -> list[str]:
            first = self.node("Gather", [self._new_slots()[1], self.integers(0)], axis=1)  # [B, 1]
            slots = self.add(first, self.integers(*range(-count, 0)))  # [B, count]
            inside = self.node("Less", [self.integer(-1), self.node("Unsqueeze", [slots, self.integers(2)])])
            return [self._indices(self.node("Max", [slots, self.integer(0)]), 1), inside]

        return self.once(("slots before", count), make)

    def _windows(self, count: int) -> list[str]:
        """Return the indices, without B, of each new position and the `count` - 1 before it, [B, T, count, 1, 2]; and
        whether these are of the text, [B, T, count, 1, 1]."""

        def make() -> list[str]:
            offsets = self.constant(f"offsets_{count}", np.arange(1 - count, 1)[:, None])  # [count, 1]
            slots = self.add(self.node("Unsqueeze", [self._new_slots()[1], self.integers(2, 3)]), offsets)
            inside = self.node("Less", [self.integer(-1), self.node("Unsqueeze", [slots, self.integers(4)])])
            return [self._indices(self.node("Max", [slots, self.integer(0)]), 1, 4), inside]

        return self.once(("windows", count), make)

    def last_row(self, x: str) -> str:
        if not self.verifies:
            return self.node("Gather", [x, self.integers(-1)], axis=1)
        # Positions become sequences of one position, as the head expects them.
        rows = self.node("Slice", [x, self.first_logits(), self.integers(np.iinfo(np.int64).max), self.integers(1)])
        return self.node("Reshape", [rows, self.integers(-1, 1, 0)])

    @property
    def verifies(self) -> bool:
        """Whether a run over several positions returns the logits that a run for each of them returns: to the bit with
        this project's kernels, to the last digits in float32. Where ONNX Runtime's operators round activations or
        cached entries, the last digits decide how these are rounded, and other tokens may follow."""
        if self.form.precision == "fp32" and not self.cache_scales:
            return True
        return self.real == "float32" and ROWS_DIFFER.isdisjoint(node.op_type for node in self._nodes)

    def float_head(self, x: str, table: str) -> str:
        """Return logits [B, 1, vocab] of x [B, 1, width], or with `all_logits` [1, T, vocab] of x [1, T, width], for a
        table [vocab, width] that is not quantized.

        ONNX Runtime packs a copy of each matrix for its kernels, and frees the original if no other operator reads it.
        The embedding reads the whole table. So the head has its own constants over the same bytes of the file. They are
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
            part = self.constant(f"{table}.{start}", rows[start : start + count])
            logits = self.node("Gemm", [row, part], transB=1)  # [B or T, count]
            parts.append(self.node("Unsqueeze", [logits, axis]))
        return self.node("Concat", parts, axis=2) if len(parts) > 1 else parts[0]
