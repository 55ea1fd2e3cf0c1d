"""Matrices in int8 codes around zero with one scale per row, as MatMulInteger takes them in dialect `portable`.

No code is -128: two multiplications by it overflow the 16 bits in which no-dotprod Arm cores accumulate.
"""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from merino_edge.export.onnx.operations import Operations
from merino_edge.export.quantize.gptq import gptq
from merino_edge.export.quantize.groups import Quantized, quantize_groups
from merino_edge.families.graph_ops import Weights
from merino_edge.families.weights import BlockSource


class SignedCodes(Operations):
    """A tied embedding is stored once, [vocab, width]: the graph gathers its rows, and the backend transposes it for
    the head when it opens the graph."""

    def __init__(self, weights: Weights, context: int, precision: str, blocks: BlockSource | None = None):
        super().__init__(weights, context, precision, blocks)
        self._signed_codes: dict[str, np.ndarray] = {}

    def forget(self) -> None:
        super().forget()
        self._signed_codes.clear()

    def repacked(self, names: Sequence[str], bits: int) -> Quantized | None:  # noqa: ARG002 - as in Graph
        """None: a source's blocks have a scale each."""
        return None

    def quantize(self, name: str, matrix: np.ndarray, bits: int) -> Quantized:  # noqa: ARG002 - as in Graph
        """Each row is one group, since MatMulInteger has one scale per row."""
        return quantize_groups(matrix, bits, matrix.shape[1], both_signs=True)

    def quantize_gptq(self, name: str, matrix: np.ndarray, bits: int, hessian: np.ndarray) -> Quantized:  # noqa: ARG002
        return gptq(matrix, hessian, bits, matrix.shape[1], both_signs=True)

    def _matmul(self, x: str, weights: list[str]) -> str:
        return self._integer_matmul(x, *self._codes_and_scales(weights))

    def _integer_matmul(self, x: str, codes: str, scales: str) -> str:
        """x @ codes * scales with x quantized to uint8 over its range; codes [in, out], scales [out]."""
        quantized = self.node("DynamicQuantizeLinear", [x], outputs=3)
        matmul = self.node("MatMulInteger", [quantized, codes, f"{quantized}.2"])
        scale = self.node("Mul", [f"{quantized}.1", scales])
        return self.node("Mul", [self.node("Cast", [matmul], to=TensorProto.FLOAT), scale])

    def _codes_and_scales(self, names: Sequence[str]) -> tuple[str, str]:
        """Codes [columns, sum of rows] and scales [sum of rows] of joined matrices."""
        joined = "+".join(names)
        matrix = self.quantized_matrix(names)
        codes = self.stored(f"{joined}.codes", self._signed(joined, matrix, transposed=True))
        return codes, self.stored(f"{joined}.scales", matrix.scales[:, 0])

    def _signed(self, name: str, matrix: Quantized, *, transposed: bool) -> np.ndarray:
        """Codes as int8: [rows, columns], or [columns, rows] where `transposed`; the same array at each call."""
        if name not in self._signed_codes:
            codes = self.signed(matrix.codes[:, 0])
            self._signed_codes[name] = self.transposed(codes) if transposed else codes
        return self._signed_codes[name]

    def signed(self, codes: np.ndarray) -> np.ndarray:
        """Codes around 128 (uint8) as codes around 0 (int8)."""
        return (codes.astype(np.int16) - 128).astype(np.int8)

    def _signed_rows(self, table: str, ids: str) -> str:
        """Rows of an embedding in float32; [1, T, columns]."""
        codes, scales = self._table(table)
        row = self.node("Cast", [self.node("Gather", [codes, ids])], to=TensorProto.FLOAT)
        return self.node("Mul", [row, self.node("Gather", [scales, ids])])

    def _table(self, name: str) -> tuple[str, str]:
        """Codes [rows, columns] and scales [rows, 1] of an embedding, of which a decode step reads one row."""
        table = self.quantized_table(name)
        codes, scales = self._signed(name, table, transposed=False), table.scales
        return (
            self.stored(f"{name}.codes", codes, codes[0].nbytes),
            self.stored(f"{name}.scales", scales, scales[0].nbytes),
        )

    def _whole_table(self, name: str) -> tuple[str, str]:
        """The embedding as a head: codes [columns, rows] and scales [rows], transposed in the graph."""
        codes, scales = self._table(name)
        self.decode_weight_bytes += self.quantized_table(name).nbytes
        return self.node("Transpose", [codes], perm=[1, 0]), self.node("Squeeze", [scales, self.integers(1)])
