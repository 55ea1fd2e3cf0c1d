"""Dialect `fused` for Arm cores without the dotprod instruction (Cortex-A53, A57, A72).

There MatMulNBits dequantises a matrix of 8 bits at each call, at 16 instructions per weight; MatMulInteger takes 0.4.
So matmuls of 8 bits, and the head's in int4, use MatMulInteger. Those of 4 bits: `own_kernels`. Figures and choices:
docs/decisions/formats-by-core.md.
"""

import numpy as np

from merino_edge.export.onnx.fused import CONTRIB, Fused
from merino_edge.export.onnx.signed import SignedCodes
from merino_edge.families.graph_ops import Weights
from merino_edge.families.weights import BlockSource

LEAST_LARGEST = 1e-30  # in place of the largest value of a row of zeros


class FusedNoDotprod(SignedCodes, Fused):
    """Activations are quantised to int8 once for all matrices that read them.

    DynamicQuantizeLinear has one scale for all rows: in a prefill, a row with an outlier leaves few codes to the
    others. A gated FFN's elementwise product has the largest outliers, so there each row has its own scale, at the cost
    of five small operators. Other inputs come from norms, which make rows alike.
    """

    def __init__(self, weights: Weights, context: int, precision: str, blocks: BlockSource | None = None):
        super().__init__(weights, context, precision, blocks)
        self._rounded: dict[str, tuple[str, str | None]] = {}  # by input: codes, and the rows' largest value
        self._uneven: set[str] = set()  # inputs whose rows have a scale each

    @property
    def takes_batch(self) -> bool:
        """With one scale for all rows, a sequence's logits would depend on the others."""
        return False

    def _rows(self, table: str, ids: str) -> str:
        return self._signed_rows(table, ids)

    def _integer_matmul(self, x: str, codes: str, scales: str) -> str:
        """x @ codes * scales; codes [in, out], scales [out]."""
        if x not in self._rounded:
            self._rounded[x] = self._rounded_rows(x) if x in self._uneven else (self._whole(x), None)
        whole, largest = self._rounded[x]
        inputs = [whole, codes, f"{whole}.1", scales, f"{whole}.2"]
        matmul = self.node("MatMulIntegerToFloat", inputs, domain=CONTRIB)
        return self.node("Mul", [matmul, largest]) if largest else matmul

    def _whole(self, x: str) -> str:
        return self.node("DynamicQuantizeLinear", [x], outputs=3)

    def _rounded_rows(self, x: str) -> tuple[str, str]:
        """x [1, T, in], each row over its largest value, as codes with one scale; the largest [1, T, 1]."""
        least = self.constant("least_largest", np.array(LEAST_LARGEST, np.float32))
        largest = self.node("ReduceMax", [self.node("Abs", [x])], axes=[-1])
        largest = self.node("Max", [largest, least])
        return self._whole(self.node("Div", [x, largest])), largest

    def gated(self, x: str, kind: str) -> str:
        return self._noted(super().gated(x, kind))

    def _noted(self, x: str) -> str:
        self._uneven.add(x)
        return x

    def head(self, x: str, table: str) -> None:
        self.logits(self._integer_matmul(x, *self._whole_table(table)), self.weights[table].shape[0])
