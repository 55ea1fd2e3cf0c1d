"""The measured law of shape: loss as a function of a decoder's geometry.

    ln loss = c - alpha ln N + kappa (a - a*)^2 + terms,   a = ln(E / D),   E = sqrt(N / 12 D)

N: weights of the layers; D: number of layers; E: width of a decoder of FFN ratio 4 with N weights (12 E^2 per layer);
terms: those of the axes. The score is exp(-ln loss / alpha): the weights of a decoder of the best shape, in float32 and
with the best vocabulary, that has the same loss. Twice the score means 2^-alpha times the loss.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

LAYER_WEIGHTS = 12  # per width^2: four matrices of attention, two of an FFN of ratio 4


class Constant(NamedTuple):
    """A measured constant. low, high: what it may be, by its source; None if nothing is published."""

    value: float
    low: float | None
    high: float | None
    source: str


GEMSTONES = (
    "least squares over 22 decoders of 22 M to 1.8 B weights without embedding, 100 B tokens each (Gemstones, McLeish"
    " et al. 2025, arXiv 2502.06857); interval by bootstrap (bench/results/shapes.json)"
)
CONSTANTS = {
    "alpha": Constant(
        0.0625, 0.016, 0.073,
        "value as kappa's; it depends on the tokens: 0.016 at 0.5 B, 0.05 at 4 B (Porian et al. 2024, arXiv"
        " 2406.19146), 0.040 at 10 B, 0.068 at 350 B, and 0.073 for the Gemstones below 200 M weights",
    ),
    "kappa": Constant(0.0036, 0.0026, 0.0058, GEMSTONES),
    "aspect": Constant(3.76, 3.50, 4.14, GEMSTONES),
    "sharing": Constant(
        0.19, 0.06, 0.46,
        "eight pairs of 0.02 to 0.14 M weights, two seeds (docs/decisions/shape-training.md), whose shared layers"
        " have wider FFNs: 0.29 without that; 0.06 at six uses; 0.46 in 116 runs of 14 to 450 M weights with another"
        " form of sharing (arXiv 2604.21106)",
    ),
}  # fmt: skip

Constants = Mapping[str, float]  # by name, of the law and of all axes


def ln_loss(weights: Any, layers: Any, terms: Any, constants: Constants) -> Any:
    """Logarithm of the loss, but for the law's c. Numbers or arrays. For fixed `layers` it falls with `weights`: it
    would rise only beyond a* + alpha / kappa, an aspect ratio e^17 times the best one.

    `weights`: of all layers; `terms`: the sum of the axes' terms.
    """
    aspect = 0.5 * np.log(weights / (LAYER_WEIGHTS * layers)) - np.log(layers)
    shape = constants["kappa"] * (aspect - constants["aspect"]) ** 2
    return -constants["alpha"] * np.log(weights) + shape + terms


def effective_weights(ln_losses: Any, constants: Constants) -> Any:
    """The score of a decoder of this `ln_loss`."""
    return np.exp(-ln_losses / constants["alpha"])


def worth(depth: int, shared: bool, constants: Constants) -> float:
    """Effective number of layers of a block of depth L: L, or L^sharing if its layers share weights."""
    return float(depth ** constants["sharing"]) if shared else float(depth)
