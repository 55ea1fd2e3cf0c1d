"""Axes of the FFN: its width relative to the layer's, and whether it is gated."""

from merino_edge.design.law import Constant, Constants
from merino_edge.families.designed import ffn_operators
from merino_edge.families.operators import GROUP, Operator

# The law counts weights and was not fitted above 4.
RATIOS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
GATED = (True, False)
CONSTANTS = {
    "gate": Constant(
        -0.026, -0.028, 0.0,
        "ln loss of GEGLU and SwiGLU relative to GELU at equal weights, 1.679 to 1.633 and 1.636 (Shazeer 2020, arXiv"
        " 2002.05202); 0 with a squared ReLU, which loses as little without a gate (nanochat)",
    ),
}  # fmt: skip


def fits(width: int, ratio: float) -> bool:
    """Whether the rows of the FFN's matrices can be cut into quantization groups."""
    return width * ratio % GROUP == 0


def operators(width: int, ratio: float, gated: bool, *, final: bool = False) -> list[Operator]:
    return list(ffn_operators(width, round(width * ratio), gated=gated, final=final))


def term(gated: bool, constants: Constants) -> float:
    return constants["gate"] if gated else 0.0
