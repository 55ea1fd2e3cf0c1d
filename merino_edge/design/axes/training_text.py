"""Axis of the training text: how many weights it can train, and how much more weights lower the loss."""

import math
from typing import Any

import numpy as np

from merino_edge.design.axes.vocabulary import bytes_per_token
from merino_edge.design.law import Constant
from merino_runtime.errors import MerinoError

# alpha of decoders that all saw so many tokens: Porian et al. 2024 (arXiv 2406.19146), 5 M to 900 M weights, and
# Gemstones (arXiv 2502.06857) from 100 B on.
ALPHA_BY_TOKENS = {0.5e9: 0.016, 1e9: 0.035, 2e9: 0.044, 4e9: 0.05, 100e9: 0.0625, 350e9: 0.068}
TOKENS_PER_WEIGHT = Constant(
    20, 19, 27, "the best size for a number of tokens, by three methods (Hoffmann et al. 2022, arXiv 2203.15556)"
)  # fmt: skip
REPEATED = 15.39  # passes after which the worth of another one has decayed (Muennighoff et al. 2023, arXiv 2305.16264)
FLOPS_PER_WEIGHT = 6  # of a training step, per token: forward 2, backward 4
PASSES = 4  # over a text: more hardly lower the loss (the same)


def alpha(tokens: float) -> float:
    """Linear in the logarithm between the published numbers of tokens, and constant beyond them."""
    known = sorted(ALPHA_BY_TOKENS)
    return float(np.interp(math.log(tokens), np.log(known), [ALPHA_BY_TOKENS[count] for count in known]))


def worth(tokens: float, passes: Any = PASSES) -> Any:
    """Return the new tokens that train as well as `passes` over this text; a number or an array."""
    return tokens * (1 + REPEATED * (1 - np.exp(-(passes - 1) / REPEATED)))


def most_weights(tokens: float, flops: float | None = None) -> float:
    """Return the parameters that this text trains well. `flops`: floating-point operations of the training time, which
    then decide the number of passes; by default PASSES."""
    if flops is None:
        return worth(tokens) / TOKENS_PER_WEIGHT.value
    sizes = np.geomspace(1e3, 1e12, 4000)
    passes = flops / (FLOPS_PER_WEIGHT * sizes) / tokens
    trained = np.where(passes > 1, worth(tokens, passes), tokens * passes) / TOKENS_PER_WEIGHT.value
    return float(sizes[np.flatnonzero(trained >= sizes)[-1]]) if (trained >= sizes).any() else float(sizes[0])


def size_interval(tokens: float) -> tuple[float, float]:
    """What the best size may be: one pass, and as many as the law knows."""
    assert TOKENS_PER_WEIGHT.low and TOKENS_PER_WEIGHT.high
    return tokens / TOKENS_PER_WEIGHT.high, worth(tokens, math.inf) / TOKENS_PER_WEIGHT.low


def check(tokens: float) -> None:
    if not (math.isfinite(tokens) and tokens >= 1):
        raise MerinoError(f"--budget tokens={tokens:g} is not allowed: give the tokens of your text, 1 or more")


def count(text_bytes: int, vocab: int) -> int:
    """Return the tokens of text in a vocabulary of this size."""
    return max(1, round(text_bytes / bytes_per_token(vocab)))
