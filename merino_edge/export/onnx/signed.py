"""Matrices in int8 codes around zero with one scale per row, as MatMulInteger takes them, for both dialects.

No code is -128: the sum of two products of it overflows the 16 bits that no-dotprod Arm cores accumulate in.
"""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from merino_edge.export.onnx.graph import Graph
from merino_edge.export.quantisation.gptq import gptq
from merino_edge.export.quantisation.groups import Quantized, quantize_groups
from merino_edge.families.graph_ops import Weights
from merino_edge.families.weights import BlockSource


class SignedCodes(Graph):
    """A table is stored once, [vocab, width]: the embedding gathers rows of it, and the backend transposes it for the
    head when it opens the graph."""

    def __init__(self, weights: Weights, context: int, precision: str, blocks: BlockSource | None = None):
        super().__init__(weights, context, precision, blocks)
        self._signed_codes: dict[str, np.ndarray] = {}

    def forget(self) -> None:
        super().forget()
        self._signed_codes.clear()

    def quantize(self, name: str, matrix: np.ndarray, bits: int) -> Quantized:  # noqa: ARG002 - as in Graph
        """Each row is one group, since MatMulInteger has one scale per row."""
        return quantize_groups(matrix, bits, matrix.shape[1], both_signs=True)

    def quantize_gptq(self, name: str, matrix: np.ndarray, bits: int, hessian: np.ndarray) -> Quantized:  # noqa: ARG002
        return gptq(matrix, hessian, bits, matrix.shape[1], both_signs=True)

    def _codes_and_scales(self, names: Sequence[str]) -> tuple[str, str]:
        """Codes [columns, sum of rows] and scales [sum of rows] of matrices that are joined."""
        joined = "+".join(names)
        found = self.quantized_matrix(names)
        codes = self.stored(f"{joined}.codes", self._signed(joined, found, transposed=True))
        return codes, self.stored(f"{joined}.scales", found.scales[:, 0])

    def _signed(self, name: str, found: Quantized, *, transposed: bool) -> np.ndarray:
        """Codes as int8: [rows, columns], or [columns, rows] where `transposed`; the same array at each call."""
        if name not in self._signed_codes:
            codes = self.signed(found.codes[:, 0])
            self._signed_codes[name] = self.transposed(codes) if transposed else codes
        return self._signed_codes[name]

    def signed(self, codes: np.ndarray) -> np.ndarray:
        """Codes around 128 (uint8) as codes around 0 (int8)."""
        return (codes.astype(np.int16) - 128).astype(np.int8)

    def _signed_rows(self, table: str, ids: str) -> str:
        """Rows of a table in float32; [1, T, columns]."""
        codes, scales = self._table(table)
        row = self.node("Cast", [self.node("Gather", [codes, ids])], to=TensorProto.FLOAT)
        return self.node("Mul", [row, self.node("Gather", [scales, ids])])

    def _table(self, name: str) -> tuple[str, str]:
        """Codes [rows, columns] and scales [rows, 1] of an embedding, of which a decode step reads one row."""
        found = self.quantized_table(name)
        codes, scales = self._signed(name, found, transposed=False), found.scales
        return (
            self.stored(f"{name}.codes", codes, codes[0].nbytes),
            self.stored(f"{name}.scales", scales, scales[0].nbytes),
        )

    def _whole_table(self, name: str) -> tuple[str, str]:
        """The same table as a head's codes [columns, rows] and scales [rows], transposed in the graph: stored once."""
        codes, scales = self._table(name)
        self.decode_weight_bytes += self.quantized_table(name).nbytes
        return self.node("Transpose", [codes], perm=[1, 0]), self.node("Squeeze", [scales, self.integers(1)])
