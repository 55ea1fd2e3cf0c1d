"""Dialect `fused` for Arm cores without the dotprod instruction (Cortex-A53, A57, A72).

There MatMulNBits writes a matrix of 8 bits out in float32 at each call, at 16 instructions for a weight; MatMulInteger
takes 0.4. So products of 8 bits, the head's in int4 too, are of MatMulInteger's kernels. In 4 bits MatMulNBits computes
in float32. Figures and choices: docs/decisions/formats-by-core.md.
"""

import numpy as np

from merino_edge.export.onnx.fused import CONTRIB, Fused
from merino_edge.export.onnx.signed import SignedCodes
from merino_edge.export.quantize import Quantized, quantize
from merino_edge.families.graph_ops import Weights

FLOAT_ACCURACY = 1  # MatMulNBits computes in float32
FEWEST_IN_BLOCK = 64  # each block of 4 bits costs instructions
LEAST_LARGEST = 1e-30  # in place of the largest value of a row of zeros


class FusedPlain(SignedCodes, Fused):
    """Activations are rounded to whole numbers once for all matrices of an input."""

    accuracy = FLOAT_ACCURACY

    def __init__(self, weights: Weights, context: int, precision: str):
        super().__init__(weights, context, precision)
        self._rounded: dict[str, tuple[str, str]] = {}  # by input: of DynamicQuantizeLinear, and the rows' largest

    def quantize(self, name: str, matrix: np.ndarray, bits: int) -> Quantized:
        return super().quantize(name, matrix, bits) if bits == 8 else quantize(name, matrix, bits, FEWEST_IN_BLOCK)

    def _rows(self, table: str, ids: str) -> str:
        return self._signed_rows(table, ids)

    def packed_linear(self, x: str, weights: list[str], biases: list[str] | None = None) -> str:
        if self.form.bits != 8:
            return super().packed_linear(x, weights, biases)
        codes, scales = self._codes_and_scales(weights)
        return self._integer_product(x, codes, scales, self.vector(biases) if biases else None)

    def _integer_product(self, x: str, codes: str, scales: str, bias: str | None = None) -> str:
        """x @ codes * scales + bias, with each row of x rounded by itself; codes [in, out], scales and bias [out]."""
        whole, largest = self._rounded_rows(x)
        product = self.node(
            "MatMulIntegerToFloat", [whole, codes, f"{whole}.1", scales, f"{whole}.2"], domain=CONTRIB
        )
        product = self.node("Mul", [product, largest])
        return self.node("Add", [product, bias]) if bias else product

    def _rounded_rows(self, x: str) -> tuple[str, str]:
        """x [1, T, in], each row over its largest value, in whole numbers with one scale; the largest [1, T, 1].

        DynamicQuantizeLinear has one scale for all rows: of a prompt, a row with an outlier would leave few whole
        numbers to the others.
        """
        if x not in self._rounded:
            least = self.constant("least_largest", np.array(LEAST_LARGEST, np.float32))
            largest = self.node("ReduceMax", [self.node("Abs", [x])], axes=[-1])
            largest = self.node("Max", [largest, least])
            scaled = self.node("Div", [x, largest])
            self._rounded[x] = self.node("DynamicQuantizeLinear", [scaled], outputs=3), largest
        return self._rounded[x]

    def head(self, x: str, table: str) -> None:
        """Of one row, so it is rounded as it is."""
        self.output("logits", "float32", 1, 1, self.weights[table].shape[0])
        codes, scales = self._whole_table(table)
        whole = self.node("DynamicQuantizeLinear", [x], outputs=3)
        inputs = [whole, codes, f"{whole}.1", scales, f"{whole}.2"]
        self.logits(self.node("MatMulIntegerToFloat", inputs, domain=CONTRIB))
