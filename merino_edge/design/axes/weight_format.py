"""Axis of the weight format: fewer bits cost loss."""

import math

from merino_edge.design.law import Constant, Constants

# Perplexity of the embedded model in each format, 20,000 held-out tokens, the board's runtime.
PERPLEXITY = {"fp32": 9.727, "int8": 9.731, "int4": 9.926}
SOURCE = "ln of the loss of the embedded model, perplexity {} instead of 9.727 in float32, of one model"
CONSTANTS = {
    name: Constant(
        round(math.log(math.log(PERPLEXITY[name]) / math.log(PERPLEXITY["fp32"])), 5), None, None,
        SOURCE.format(PERPLEXITY[name]),
    )
    for name in ("int8", "int4")
}  # fmt: skip


def term(precision: str, constants: Constants) -> float:
    return constants.get(precision, 0.0)
