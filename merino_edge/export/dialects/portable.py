"""Dialect `portable`: plain ONNX of opset 13, which ONNX Runtime 1.10 and TensorRT 8.2 take.

The cache is an input of fixed shape with a mask of its filled slots. The graph returns the new keys and values alone,
and the host writes them at their position. Masks are -1e4 instead of minus infinity, so that float16 can hold them.
LayerNormalization, Gelu, Trilu, Mod and OneHot are not used, because those runtimes lack them. Inputs and outputs:
docs/formats.md.
"""

import math
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from merino_edge.export.dialects.graph import ports
from merino_edge.export.dialects.matmuls import table_rows
from merino_edge.export.dialects.operations import Operations
from merino_edge.families.graph_ops import Attention, KvLayer, Norm
from merino_edge.families.rotary import Rotary

MASKED = -1e4
END = np.iinfo(np.int64).max


class Portable(Operations):
    opsets = {"": 13}
    positions = cached_mask = new_mask = ""  # set by begin_decoder
    query_positions = key_positions = ""  # [1, T, 1] and [1, 1, T]

    def begin_decoder(self, kv_layers: Sequence[KvLayer]) -> None:
        """Add a decoder's inputs, its outputs except the logits, and the nodes that compute both masks."""
        self.input("input_ids", "int64", [1, "sequence"])
        filled = self.input("attention_mask", "int64", [1, self.context])
        self.positions = self.input("position_ids", "int64", [1, "sequence"])
        self.cache_ports(kv_layers, "sequence")
        self.cached_mask = self._mask(self.node("Equal", [filled, self.integers(0)]), 1, 2)  # [1, 1, 1, context]
        position = self.node("Cast", [self.positions], to=TensorProto.FLOAT)  # [1, T]
        query, key = (self.node("Unsqueeze", [position, self.integers(axis)]) for axis in (2, 1))
        self.query_positions, self.key_positions = query, key
        self.new_mask = self._mask(self.node("Less", [query, key]), 1)  # [1, 1, T, T]

    def _mask(self, hidden: str, *axes: int) -> str:
        """Return MASKED if `hidden` is true, 0 elsewhere, with new axes at `axes`."""
        mask = self.node("Mul", [self.to_real(hidden), self.scalar(MASKED)])
        return self.node("Unsqueeze", [mask, self.integers(*axes)])

    def _masks(self, window: int | None, slopes: tuple[float, ...] | None) -> tuple[str, str]:
        """Return the masks of cached slots [1, 1 or heads, 1 or T, context] and of new positions [1, 1 or heads, T, T].
        Slot n holds position n. `slopes`: of each head, what is added per position of the key."""
        if slopes:

            def sloped() -> list[str]:
                factors = self.constant("slopes", np.array(slopes, self.real)[None, :, None, None])
                keys = self.node("Unsqueeze", [self.to_real(self.key_positions), self.integers(1)])
                slots = self.constant("real_slots", np.arange(self.context, dtype=self.real)[None, None, None])
                masks = zip(self._masks(window, None), (slots, keys), strict=True)
                return [self.add(mask, self.node("Mul", [positions, factors])) for mask, positions in masks]

            cached, new = self.once(("slopes", window), sloped)
            return cached, new
        if window is None or window >= self.context:
            return self.cached_mask, self.new_mask

        def make() -> list[str]:
            slots = self.constant("slots", np.arange(self.context, dtype=np.float32)[None, None])
            last = self.constant(f"window_{window}", np.array(window - 1, np.float32))  # earlier positions are masked
            return [
                self.add(mask, self._mask(self.node("Less", [last, self.node("Sub", [self.query_positions, keys])]), 1))
                for mask, keys in ((self.cached_mask, slots), (self.new_mask, self.key_positions))
            ]

        cached, new = self.once(("window", window), make)
        return cached, new

    def embed_positions(self, table: str, offset: int) -> str:
        return table_rows(self, self.node("Add", [self.positions, self.integer(offset)]), table)

    def norm(self, x: str, norm: Norm) -> str:
        """Normalize x in float32, even in fp16: squares of activations overflow float16."""
        half = self.real == "float16"
        x = self.node("Cast", [x], to=TensorProto.FLOAT) if half else x
        if norm.bias is not None:
            x = self.node("Sub", [x, self.node("ReduceMean", [x], axes=[-1])])
        square = self.node("ReduceMean", [self.node("Mul", [x, x])], axes=[-1])
        eps = self.constant(f"eps_{norm.eps!r}", np.array(norm.eps, np.float32))
        root = self.node("Sqrt", [self.node("Add", [square, eps])])
        normed = self.node("Mul", [self.node("Div", [x, root]), self._factors(norm)])
        if norm.bias is not None:
            normed = self.add(normed, self.stored(norm.bias, self.weights[norm.bias]))
        return self.to_real(normed) if half else normed

    def _factors(self, norm: Norm) -> str:
        """Store the factors of a norm in float32; ones for a norm without a weight."""
        if norm.weight:
            return self.stored(norm.weight, self.weights[norm.weight])
        return self.constant(f"ones_{norm.width}", np.ones(norm.width, np.float32))

    def add_norm(self, x: str, residual: str, norm: Norm) -> tuple[str, str]:
        total = self.add(x, residual)
        return self.norm(total, norm), total

    def activation(self, x: str, kind: str) -> str:
        if kind in ("relu", "tanh"):
            return self.node(kind.capitalize(), [x])
        if kind == "silu":
            return self.node("Mul", [x, self.node("Sigmoid", [x])])
        if kind == "gelu_erf":
            error = self.node("Erf", [self.scale(x, math.sqrt(0.5))])
            return self.node("Mul", [self.scale(x, 0.5), self.add(error, self.scalar(1.0))])
        cube = self.node("Mul", [self.node("Mul", [x, x]), x])
        inner = self.add(x, self.node("Mul", [cube, self.scalar(0.044715)]))
        tanh = self.node("Tanh", [self.node("Mul", [inner, self.scalar(math.sqrt(2 / math.pi))])])
        half = self.node("Mul", [x, self.scalar(0.5)])
        return self.node("Mul", [half, self.add(tanh, self.scalar(1.0))])

    def attention(self, qkv: str, layer: KvLayer, attention: Attention) -> str:
        query, *own = self._heads(qkv, layer, attention)  # [1, heads, T, head_size]; key and value unless shared
        key = own[0] if own else ""
        if not attention.norm_whole and not attention.norm_rotated:
            query, key = self._normed(query, key, attention)
        if attention.rotary:
            query = self._rotate(query, layer, attention.rotary)
            key = self._rotate(key, layer, attention.rotary) if key else ""
        if attention.norm_rotated:
            query, key = self._normed(query, key, attention)
        if not own:
            return self._attended(query, *ports("present", layer), layer, attention)
        value = self.norm(own[1], attention.value_norm) if attention.value_norm else own[1]
        for name, new in zip(ports("present", layer), (key, value), strict=True):
            self.node_into("Identity", [new], [name])
        return self._attended(query, key, value, layer, attention)

    def _attended(self, query: str, key: str, value: str, layer: KvLayer, attention: Attention) -> str:
        """Return [1, T, heads * head_size] of queries over cached and new keys and values, [1, heads, T, head_size]."""
        query = self.node("Mul", [query, self.scalar(attention.scale)])
        query = self._as_heads(query, layer.heads, layer, attention)
        past_key, past_value = ports("past_key_values", layer)
        cached_mask, new_mask = self._masks(attention.window, attention.slopes)
        cached = self.add(self._scores(query, past_key, layer, attention), cached_mask)  # [1, heads, T, context]
        fresh = self.add(self._scores(query, key, layer, attention), new_mask)  # [1, heads, T, T]
        weights = self.node("Softmax", [self.node("Concat", [cached, fresh], axis=-1)], axis=-1)
        from_cache = self._mixed(self._part(weights, 0, self.context), past_value, layer, attention)
        from_new = self._mixed(self._part(weights, self.context, END), value, layer, attention)
        mixed = self.node("Transpose", [self.add(from_cache, from_new)], perm=[0, 2, 1, 3])
        return self.node("Reshape", [mixed, self.integers(1, -1, attention.heads * layer.head_size)])

    def _normed(self, query: str, key: str, attention: Attention) -> tuple[str, str]:
        """Apply the norms of queries and keys, if there are any."""
        if not attention.query_norm or not attention.key_norm:
            return query, key
        return self.norm(query, attention.query_norm), self.norm(key, attention.key_norm) if key else ""

    def with_earlier(self, x: str, layer: KvLayer, count: int, outside: Sequence[float] = (0.0,)) -> str:
        halves = self.node("Split", [x], outputs=2, axis=-1)
        for name, half in zip(ports("present", layer), (halves, f"{halves}.1"), strict=True):
            self.node_into("Unsqueeze", [half, self.integers(1)], [name])

        def make() -> list[str]:
            first = self.node("Slice", [self.positions, self.integers(0), self.integers(1), self.integers(1)])  # [1, 1]
            first = self.node("Squeeze", [first, self.integers(0)])
            slots = self.node("Add", [first, self.integers(*range(-count, 0))])
            inside = self.node("Less", [self.constant("before_first", np.array([-1], np.int64)), slots])
            slots = self.node("Max", [slots, self.integers(0)])
            return [slots, self.node("Unsqueeze", [inside, self.integers(1)])]  # [count], [count, 1]

        slots, inside = self.once(("earlier", count), make)
        past = [self.node("Gather", [name, slots], axis=2) for name in ports("past_key_values", layer)]
        rows = self.node("Squeeze", [self.node("Concat", past, axis=-1), self.integers(1)])  # [1, count, width]
        empty = self.constant(f"outside_{outside}", np.array(outside, self.real))
        return self.node("Concat", [self.node("Where", [inside, rows, empty]), x], axis=1)

    def _heads(self, qkv: str, layer: KvLayer, attention: Attention) -> list[str]:
        """Split packed heads into query [1, heads, T, head_size], and key and value [1, layer.heads, T, head_size], if
        the attention has its own."""
        counts = [attention.heads] if attention.shared else [attention.heads, layer.heads, layer.heads]
        if attention.shared:
            parts = [qkv]
        elif attention.heads == layer.heads:
            first = self.node("Split", [qkv], outputs=3, axis=-1)
            parts = [first, f"{first}.1", f"{first}.2"]
        else:
            parts = self.split(qkv, [count * layer.head_size for count in counts])
        if attention.norm_whole:
            parts[:2] = self._normed(parts[0], parts[1], attention)
        shaped = zip(parts, [self.integers(1, -1, count, layer.head_size) for count in counts], strict=True)
        return [self.node("Transpose", [self.node("Reshape", part)], perm=[0, 2, 1, 3]) for part in shaped]

    def _as_heads(self, x: str, count: int, layer: KvLayer, attention: Attention) -> str:
        """Reshape x [1, heads, T, n] to [1, KV heads, heads / KV heads * T, n], or back. Query heads of one KV head are
        joined, so that keys and values are not repeated."""
        if attention.heads == layer.heads:
            return x
        return self.node("Reshape", [x, self.integers(1, count, -1, 0)])

    def _rotate(self, x: str, layer: KvLayer, rotary: Rotary) -> str:
        """Apply the rotary position embedding to x [1, heads, T, head_size]: element i is paired with i + head_size /
        2."""

        def make() -> list[str]:
            rows = [
                self.node("Gather", [name, self.positions])  # [1, T, head_size / 2]
                for name in self.rotary_constants(rotary, layer.head_size)
            ]
            return [self.node("Unsqueeze", [row, self.integers(1)]) for row in rows]

        cos, sin = self.once(("rotated", rotary, layer.head_size), make)
        left = self.node("Split", [x], outputs=2, axis=-1)
        right = f"{left}.1"
        turned_left = self.node("Sub", [self.node("Mul", [left, cos]), self.node("Mul", [right, sin])])
        turned_right = self.add(self.node("Mul", [right, cos]), self.node("Mul", [left, sin]))
        return self.node("Concat", [turned_left, turned_right], axis=-1)

    def _scores(self, query: str, key: str, layer: KvLayer, attention: Attention) -> str:
        """Return the scores [1, heads, T, n] of grouped queries and keys [1, layer.heads, n, head_size]."""
        scores = self.node("MatMul", [query, self.node("Transpose", [key], perm=[0, 1, 3, 2])])
        scores = self.capped(scores, attention.softcap) if attention.softcap else scores
        return self._as_heads(scores, attention.heads, layer, attention)

    def _mixed(self, weights: str, value: str, layer: KvLayer, attention: Attention) -> str:
        """Multiply weights [1, heads, T, n] by values [1, layer.heads, n, head_size]; the result is [1, heads, T,
        head_size]."""
        mixed = self.node("MatMul", [self._as_heads(weights, layer.heads, layer, attention), value])
        return self._as_heads(mixed, attention.heads, layer, attention)

    def _part(self, weights: str, start: int, end: int) -> str:
        return self.node("Slice", [weights, self.integers(start), self.integers(end), self.integers(3)])

    def last_row(self, x: str) -> str:
        return self.node("Slice", [x, self.integers(-1), self.integers(END), self.integers(1)])

    def float_head(self, x: str, table: str) -> str:
        """Return logits [1, T, vocab] of x [1, T, width], T = 1 without `all_logits`, for a table [vocab, width], the
        embedding's own constant.

        It is one matmul over one constant. TensorRT's parser refuses constants that overlap in the data file and differ
        in size. Version 8.2 copies each constant, so a second one would double the table's memory.
        """
        axis = self.integers(0 if self.all_logits else 1)
        row = self.node("Squeeze", [x, axis])  # [T, width]
        logits = self.node("Gemm", [row, self.weight(table)], transB=1)  # [T, vocab]
        return self.node("Unsqueeze", [logits, axis])
