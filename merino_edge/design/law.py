"""The measured law of shape: loss as a function of a decoder's geometry. Each constant has its source.

    ln loss = c - alpha ln N + kappa (a - a*)^2,   a = ln(E / D),   E = sqrt(N / 12 D)

N: effective weights of the layers; D: number of layers; E: width of a uniform decoder of FFN ratio 4 with N weights
(12 E^2 per layer). The law is MeRino's product (arXiv 2403.07921) with both factors measured. As eps goes to infinity,
log(1 + s^2 / eps^2) becomes s^2 / eps^2, so a matrix's entropy is its number of weights. The effectiveness is
exp(-(kappa / alpha) (a - a*)^2), over the whole decoder. Their product N exp(...) is in effective weights: twice the
product means 2^-alpha times the loss.
"""

import math
from collections.abc import Iterable
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from merino_edge.prediction.limits import within

LAYER_WEIGHTS = 12  # per width^2: four matrices of attention, two of an FFN of ratio 4
EVEN = 0.75  # a layer's effective weights, relative to the mean layer's, are within EVEN and 1 / EVEN (own choice)


class Constant(NamedTuple):
    """A measured constant. low, high: 95 % interval, None where none is published."""

    value: float
    low: float | None
    high: float | None
    source: str


GEMSTONES = (
    "least squares over 22 decoders of 22 M to 1.8 B weights without embedding, 100 B tokens each (Gemstones, McLeish"
    " et al. 2025, arXiv 2502.06857); interval by bootstrap (bench/experiments/shapes.py)"
)
CONSTANTS = {
    "alpha": Constant(0.0625, 0.0604, 0.0652, GEMSTONES),
    "kappa": Constant(0.0036, 0.0026, 0.0058, GEMSTONES),
    "aspect": Constant(3.76, 3.50, 4.14, GEMSTONES),
    "sharing": Constant(
        0.19, 0.13, 0.25,
        "eight pairs of 0.02 to 0.14 M weights, two seeds (bench/results/shape-training-x86-2cores.json); of larger"
        " decoders 116 training runs of repeated layers give 0.46 (arXiv 2604.21106)",
    ),
    "kv_loss": Constant(
        0.0, None, None,
        "own choice between two measurements: -0.006 (-0.011 to -0.0004), eight pairs of 0.13 M weights, two seeds"
        " (bench/results/shape-training-x86-2cores.json), and 0.001, one KV head in place of eight at equal weights:"
        " perplexity 29.9 to 30.2 (Shazeer 2019, arXiv 1911.02150)",
    ),
}  # fmt: skip


class MeasuredScoring(BaseModel):
    """The constants of the law, as stored in design.json.

    Attributes:
        alpha: ln loss falls by it per ln of effective weights.
        kappa: ln loss per square of the distance from the best aspect ratio.
        aspect: a*, the best ln(width / layers).
        sharing: L uses of one layer's weights count as L^sharing layers.
        kv_loss: ln loss per halving of the KV heads at equal weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["measured"] = "measured"
    alpha: Annotated[float, Field(gt=0, le=1)] = CONSTANTS["alpha"].value
    kappa: Annotated[float, Field(ge=0, le=0.006)] = CONSTANTS["kappa"].value
    aspect: Annotated[float, Field(ge=-10, le=10)] = CONSTANTS["aspect"].value
    sharing: Annotated[float, Field(ge=0, le=1)] = CONSTANTS["sharing"].value
    kv_loss: Annotated[float, Field(ge=0, le=1)] = CONSTANTS["kv_loss"].value


def layer_weights(width: int, ffn_width: int, kv_width: int, scoring: MeasuredScoring) -> float:
    """Effective weights of one layer: those of its matrices, times exp(-kv_loss / alpha) per halving of the KV heads,
    which raises ln loss by `kv_loss`."""
    weights = 2 * width * (width + kv_width + ffn_width)
    return weights * math.exp(-scoring.kv_loss / scoring.alpha * math.log2(width / kv_width))


def worth(depth: int, shared: bool, scoring: MeasuredScoring) -> float:
    """Effective number of layers of a block of depth L: L, or L^sharing if its layers share weights."""
    return depth**scoring.sharing if shared else float(depth)


def effectiveness(weights: float, layers: float, scoring: MeasuredScoring) -> float:
    """exp(-(kappa / alpha) (ln(E / D) - a*)^2), in (0, 1]."""
    aspect = 0.5 * math.log(weights / (LAYER_WEIGHTS * layers)) - math.log(layers)
    return math.exp(-scoring.kappa / scoring.alpha * (aspect - scoring.aspect) ** 2)


def law_score(weights: float, layers: float, scoring: MeasuredScoring) -> float:
    """Effective weights times effectiveness. For fixed `layers` it rises with `weights`: it would fall only beyond
    a* + alpha / kappa, an aspect ratio e^17 times the best one."""
    return weights * effectiveness(weights, layers, scoring)


def least_weights(score: float, layers: int, scoring: MeasuredScoring) -> float:
    """The effective weights at which a decoder of `layers` layers has this score: the inverse of `law_score`.

    ln score = x - k (x / 2 - b)^2 with x = ln weights is a quadratic; the root on its rising side.
    """
    ratio = scoring.kappa / scoring.alpha
    offset = 0.5 * math.log(LAYER_WEIGHTS * layers) + math.log(layers) + scoring.aspect
    # ratio / 4 x^2 - (1 + ratio offset) x + (ratio offset^2 + ln score) = 0, its smaller root without cancellation
    a, b, c = ratio / 4, 1 + ratio * offset, ratio * offset**2 + math.log(score)
    root = b * b - 4 * a * c
    return math.inf if root < 0 else math.exp(2 * c / (b + math.sqrt(root)))


def even(weights: float, layers: float, units: Iterable[float]) -> bool:
    """Whether the effective weights of each layer are within EVEN and 1 / EVEN of the mean.

    The law was fitted on decoders of equal layers. Without this rule the optimum pads its depth with layers of hardly
    any weights, which the law does not cover.
    """
    mean = weights / layers
    return all(within(EVEN * mean, unit) and within(EVEN * unit, mean) for unit in units)


def loss_ratio(score: float, other: float, scoring: MeasuredScoring) -> float:
    """Predicted loss of a decoder of `score` relative to one of `other`."""
    return (score / other) ** -scoring.alpha
