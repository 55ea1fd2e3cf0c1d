"""Axis of causal taps before each mixer and each FFN.

Closed: training has not shown yet that it lowers the loss at equal decode latency (bench/experiments/axes.py).
"""

from merino_edge.design.law import Constant, Constants
from merino_edge.families.designed import TAPPED
from merino_edge.families.operators import Operator, taps

TAPS = (False,)
CONSTANTS = {
    "taps": Constant(0.0, None, None, "ln loss of four causal taps (Canon, arXiv 2512.17351): not measured yet"),
}


def operators(width: int) -> list[Operator]:
    """Those of one place."""
    return [taps(width, TAPPED, also_live=width)]


def places(tapped: bool, depth: int) -> int:
    """Places of so many layers, of which the last one's FFN has none."""
    return (2 * depth - 1) * tapped


def term(tapped: bool, constants: Constants) -> float:
    return constants["taps"] * tapped
