"""The operations of a decoder (`families/graph_ops`) that both dialects write alike."""

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import TensorProto

from merino_edge.export.dialects.graph import Graph
from merino_edge.export.dialects.matmuls import matmul, quantized_head, table_rows
from merino_edge.families.designed import ID_PARTS, MULTIPLIERS, PRIME, Ngrams
from merino_edge.families.graph_ops import Delta, KvLayer, Norm
from merino_runtime.bundle.schema import EMBEDDING


class Operations(Graph):
    last_index = total_length = ""  # int32 [B] and int32; set by dialect fused, whose attention reads them

    def embed(self, table: str, below: int | None = None) -> str:
        ids = "input_ids"
        if below is not None:
            ids = self.node("Where", [self.node("Less", [ids, self.integer(below)]), ids, self.integer(0)])
        return table_rows(self, ids, table)

    def linear(self, x: str, weight: str, bias: str | None = None) -> str:
        return self.packed_linear(x, [weight], [bias] if bias else None)

    def packed_linear(self, x: str, weights: list[str], biases: list[str] | None = None) -> str:
        parts = [matmul(self, x, joined) for joined in self.joined_names(weights)]
        result = self.adapted(x, weights, self.concat(parts))
        return self.node("Add", [result, self.vector(biases)]) if biases else result

    def adapted(self, x: str, names: list[str], y: str) -> str:
        """Add to y [B, T, sum of out] what each sequence's adapter adds to the matrices of one input x [B, T, in].

        Their factors are joined: `down` along its ranks, `up` as blocks on a diagonal, so that two matmuls suffice.
        """
        found = {name: self.adapters[name] for name in names if name in self.adapters}
        if not found:
            return y
        ranks = {name: factors.up.shape[1] for name, factors in found.items()}
        count = len(next(iter(found.values())).up)
        up = np.zeros((count, sum(ranks.values()), sum(len(self.weights[name]) for name in names)), self.real)
        row = column = 0
        for name in names:
            if name in found:
                up[:, row : row + ranks[name], column : column + len(self.weights[name])] = found[name].up
                row += ranks[name]
            column += len(self.weights[name])
        down = np.concatenate([factors.down for factors in found.values()], axis=2).astype(self.real, copy=False)
        joined, index = "+".join(names), self.adapter()
        for part, value in (("down", down), ("up", up)):
            stored = self.stored(f"{joined}.{part}", value, value[0].nbytes)
            x = self.node("MatMul", [x, self.node("Gather", [stored, index])])
        return self.add(y, x)

    def joined_names(self, names: list[str]) -> list[str]:
        """Return the names under which the matrices of one input are stored: those of different bits are not joined."""
        owners = self.once("owners", lambda: {one: joined for joined in self.matrices for one in joined.split("+")})
        return list(dict.fromkeys(owners.get(name, "+".join(names)) for name in names))

    def last(self, x: str) -> str:
        return x if self.all_logits or self.form.embeddings else self.last_row(x)

    def last_row(self, x: str) -> str:
        raise NotImplementedError

    def head(self, x: str, table: str, bias: str | None = None, softcap: float | None = None) -> None:
        if self.form.embeddings:
            total = self.node("ReduceSum", [x, self.integers(1)], keepdims=0)
            self.output(EMBEDDING, "float32", [1, self.weights[table].shape[1]])
            self.node_into("Cast", [total], [EMBEDDING], to=TensorProto.FLOAT)
            x = x if self.all_logits else self.last_row(x)
        logits = quantized_head(self, x, table) if table in self.matrices else self.float_head(x, table)
        if bias:
            logits = self.add(logits, self.vector([bias]))
        self.logits(self.capped(logits, softcap) if softcap else logits, self.weights[table].shape[0])

    def capped(self, x: str, softcap: float) -> str:
        """Return softcap * tanh(x / softcap)."""
        return self.scale(self.node("Tanh", [self.scale(x, 1 / softcap)]), softcap)

    def norm_weight(self, norm: Norm) -> str:
        """Store the factors of a norm; ones for a norm without a weight."""
        if norm.weight:
            return self.weight(norm.weight)
        return self.constant(f"ones_{norm.width}", np.ones(norm.width, self.real))

    def float_head(self, x: str, table: str) -> str:
        raise NotImplementedError

    def norm(self, x: str, norm: Norm) -> str:
        raise NotImplementedError

    def activation(self, x: str, kind: str) -> str:
        raise NotImplementedError

    def gated(self, x: str, kind: str) -> str:
        gate = self.node("Split", [x], outputs=2, axis=-1)
        return self.node("Mul", [self.activation(gate, kind), f"{gate}.1"])

    def add(self, x: str, y: str) -> str:
        return self.node("Add", [x, y])

    def scale(self, x: str, factor: float) -> str:
        return self.node("Mul", [x, self.scalar(factor)])

    def shift(self, x: str, amount: float) -> str:
        return self.node("Add", [x, self.scalar(amount)])

    def float_linear(self, x: str, weight: str) -> str:
        return self.adapted(x, [weight], self.node("MatMul", [x, self.matrix(weight)]))

    def multiply(self, x: str, y: str) -> str:
        return self.node("Mul", [x, y])

    def divide(self, x: str, y: str) -> str:
        return self.node("Div", [x, y])

    def weigh(self, x: str, weight: str) -> str:
        return self.node("Mul", [x, self.weight(weight)])

    def centered(self, x: str) -> str:
        return self.node("Sub", [x, self.node("ReduceMean", [x], axes=[-1])])

    def rms(self, x: str, least: float = 0.0) -> str:
        """Compute in float32, even in fp16: squares of activations overflow float16."""
        half = self.real == "float16"
        x = self.node("Cast", [x], to=TensorProto.FLOAT) if half else x
        square = self.node("ReduceMean", [self.node("Mul", [x, x])], axes=[-1])
        if least:
            square = self.node("Max", [square, self.constant(f"least_{least!r}", np.array(least, np.float32))])
        root = self.node("Sqrt", [square])
        return self.to_real(root) if half else root

    def split(self, x: str, sizes: list[int]) -> list[str]:
        first = self.node("Split", [x, self.integers(*sizes)], outputs=len(sizes), axis=-1)
        return [first, *(f"{first}.{index}" for index in range(1, len(sizes)))]

    def concat(self, parts: list[str]) -> str:
        return self.node("Concat", parts, axis=-1) if len(parts) > 1 else parts[0]

    def mix(self, x: str, factors: str, count: int) -> str:
        streams = self.node("Reshape", [x, self.constant(f"streams_{count}", np.array([0, 0, count, -1], np.int64))])
        by = self.node("Reshape", [factors, self.constant(f"mixed_{count}", np.array([0, 0, -1, count], np.int64))])
        mixed = self.node("MatMul", [by, streams])  # [1, T, n, width]
        return self.node("Reshape", [mixed, self.constant("joined", np.array([0, 0, -1], np.int64))])

    def resize(self, x: str, width: int, following: int) -> str:
        if following < width:
            return self.node("Slice", [x, self.integers(0), self.integers(following), self.integers(-1)])
        return self.padded(x, following - width)

    def with_earlier(self, x: str, layer: KvLayer, count: int, outside: Sequence[float] = (0.0,)) -> str:
        """Return x [B, T, width] behind the cached inputs of `count` earlier positions, [B, count + T, width], and
        write x into the cache. `outside`: the channels of positions before the text."""
        raise NotImplementedError

    def earlier(self, rows: str, back: int, count: int) -> str:
        """Return the part of rows [B, count + T, ...] that is `back` positions before the new ones; [B, T, ...]."""
        return self.node("Slice", [rows, self.integers(count - back), self.integers(-back), self.integers(1)])

    def taps(self, x: str, weight: str, layer: KvLayer) -> str:
        weights = self.real_weight(weight)  # [taps, 1, width]
        count = len(weights) - 1
        rows = self.with_earlier(x, layer, count)
        mixed = ""
        for back in range(count + 1):
            place = count - back
            factors = self.stored(f"{weight}.{place}", weights[place : place + 1])
            part = self.node("Mul", [self.earlier(rows, back, count) if back else x, factors])
            mixed = self.add(mixed, part) if mixed else part
        return mixed

    def gated_taps(self, x: str, weight: str, layer: KvLayer) -> str:
        before = self.node("Split", [x], outputs=3, axis=-1)
        mixed = self.taps(self.node("Mul", [before, f"{before}.2"]), weight, layer)
        return self.node("Mul", [f"{before}.1", mixed])

    def delta(self, x: str, delta: Delta) -> str:
        raise NotImplementedError

    def ngrams(self, tables: Mapping[str, Ngrams], layer: KvLayer, vocab: int) -> str:
        count = max(table.order for table in tables.values()) - 1
        # 1. Ids as two floats [B, T, 2], which the cache holds exactly.
        high = self.node("Div", ["input_ids", self.integers(ID_PARTS)])
        low = self.node("Sub", ["input_ids", self.node("Mul", [high, self.integers(ID_PARTS)])])
        parts = [self.node("Unsqueeze", [part, self.integers(2)]) for part in (high, low)]
        rows = self.with_earlier(
            self.to_real(self.node("Concat", parts, axis=-1)), layer, count, divmod(vocab, ID_PARTS)
        )
        # 2. And as integers [B, count + T] again.
        pairs = self.node("Cast", [rows], to=TensorProto.INT64)
        factors = self.constant("id_factors", np.array([ID_PARTS, 1], np.int64))
        ids = self.node("ReduceSum", [self.node("Mul", [pairs, factors]), self.integers(2)], keepdims=0)
        # 3. The hash of each order, and the rows.
        total, mixed, results = "", "", {}
        for back, factor in zip(range(count + 1), MULTIPLIERS, strict=False):
            back_ids = self.earlier(ids, back, count) if back else "input_ids"
            part = self.node("Mul", [back_ids, self.integer(factor)])
            mixed = self.add(mixed, part) if mixed else part
            results[back + 1] = mixed
        for name, table in tables.items():
            index = self.node("Mod", [results[table.order], self.integer(PRIME)])
            row = table_rows(self, self.node("Mod", [index, self.integer(table.rows)]), name)
            total = self.add(total, row) if total else row
        return total
