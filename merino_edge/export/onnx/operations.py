"""The operations of a decoder that both dialects write alike."""

from merino_edge.export.onnx.graph import Graph


class Operations(Graph):
    def linear(self, x: str, weight: str, bias: str | None = None) -> str:
        return self.packed_linear(x, [weight], [bias] if bias else None)

    def packed_linear(self, x: str, weights: list[str], biases: list[str] | None = None) -> str:
        if self.form.grouped:
            parts = [self._matmul(x, run) for run in self.runs(weights)]
            matmul = self.node("Concat", parts, axis=-1) if len(parts) > 1 else parts[0]
        else:
            matmul = self.node("MatMul", [x, self.matrix(weights)])
        return self.node("Add", [matmul, self.vector(biases)]) if biases else matmul

    def _matmul(self, x: str, weights: list[str]) -> str:
        """x @ W of matrices that are joined, all of the same bits."""
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
        return self.node("Pad", [x, self.integers(0, 0, 0, 0, 0, following - width)])
