"""The operations of a decoder (`families/graph_ops`) that both dialects write alike."""

import numpy as np

from merino_edge.export.dialects.graph import Graph
from merino_edge.export.dialects.matmuls import matmul, quantized_head, table_rows
from merino_edge.families.graph_ops import Norm


class Operations(Graph):
    def embed(self, table: str) -> str:
        return table_rows(self, "input_ids", table)

    def linear(self, x: str, weight: str, bias: str | None = None) -> str:
        return self.packed_linear(x, [weight], [bias] if bias else None)

    def packed_linear(self, x: str, weights: list[str], biases: list[str] | None = None) -> str:
        parts = [matmul(self, x, joined) for joined in self.joined_names(weights)]
        result = self.node("Concat", parts, axis=-1) if len(parts) > 1 else parts[0]
        return self.node("Add", [result, self.vector(biases)]) if biases else result

    def joined_names(self, names: list[str]) -> list[str]:
        """Return the names under which the matrices of one input are stored: those of different bits are not joined."""
        owners = self.once("owners", lambda: {one: joined for joined in self.matrices for one in joined.split("+")})
        return list(dict.fromkeys(owners.get(name, "+".join(names)) for name in names))

    def head(self, x: str, table: str, bias: str | None = None, softcap: float | None = None) -> None:
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

    def activation(self, x: str, kind: str) -> str:
        raise NotImplementedError

    def gated(self, x: str, kind: str) -> str:
        gate = self.node("Split", [x], outputs=2, axis=-1)
        return self.node("Mul", [self.activation(gate, kind), f"{gate}.1"])

    def add(self, x: str, y: str) -> str:
        return self.node("Add", [x, y])

    def scale(self, x: str, factor: float) -> str:
        return self.node("Mul", [x, self.scalar(factor)])

    def resize(self, x: str, width: int, following: int) -> str:
        if following < width:
            return self.node("Slice", [x, self.integers(0), self.integers(following), self.integers(-1)])
        return self.padded(x, following - width)
