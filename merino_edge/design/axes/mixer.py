"""Axis of a layer's mixer: attention in every layer, or in every m-th one and gated short convolutions in the others.

Closed: training has not shown yet that it lowers the loss at equal decode latency (bench/experiments/axes.py).
"""

from typing import Any

from merino_edge.design.law import Constant, Constants
from merino_edge.families.designed import convolution_operators
from merino_edge.families.operators import Operator

EVERY = (1,)  # m
CONSTANTS = {
    "convolution": Constant(
        0.0, None, None,
        "ln loss if all layers but every m-th are gated convolutions, at equal weights: not measured yet. LFM2 (arXiv"
        " 2511.23404) reports no loss",
    ),
}  # fmt: skip


def attentions(every: Any, depth: Any) -> Any:
    """Number of attention layers among the first `depth`, as `Block.attends` has them. Numbers or arrays."""
    return (depth + every - 1 - (every - 1) // 2) // every


def operators(width: int, *, final: bool = False) -> list[Operator]:
    return list(convolution_operators(width, final=final))


def term(every: int, constants: Constants) -> float:
    return constants["convolution"] * (every > 1)
