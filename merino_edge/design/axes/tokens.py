"""Axis of the training text: how many weights it can train, and how much more weights lower the loss."""

import math
from pathlib import Path

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
PASSES = 4  # over a text: more hardly lower the loss (the same)


def alpha(tokens: float) -> float:
    """Linear in the logarithm between the published numbers of tokens, and constant beyond them."""
    known = sorted(ALPHA_BY_TOKENS)
    return float(np.interp(math.log(tokens), np.log(known), [ALPHA_BY_TOKENS[count] for count in known]))


def worth(tokens: float, passes: float = PASSES) -> float:
    """New tokens that train as well as `passes` over this text."""
    return tokens * (1 + REPEATED * (1 - math.exp(-(passes - 1) / REPEATED)))


def most_weights(tokens: float) -> float:
    """The best size for a text, in stored parameters: a larger decoder is not worth its costs."""
    return worth(tokens) / TOKENS_PER_WEIGHT.value


def size_interval(tokens: float) -> tuple[float, float]:
    """What the best size may be: one pass, and as many as the law knows."""
    assert TOKENS_PER_WEIGHT.low and TOKENS_PER_WEIGHT.high
    return tokens / TOKENS_PER_WEIGHT.high, worth(tokens, math.inf) / TOKENS_PER_WEIGHT.low


def check(tokens: float) -> None:
    if not (math.isfinite(tokens) and tokens >= 1):
        raise MerinoError(f"--tokens {tokens:g} is not allowed: give the number of tokens of your text, 1 or more")


def count(paths: list[Path], vocab: int) -> int:
    """Tokens of text files in a vocabulary of this size, by their bytes. Raises MerinoError for one that is no file or
    holds nothing."""
    total = 0
    for path in paths:
        if not path.is_file():
            raise MerinoError(f"--data {path} is no file: give the path of a text file, or --tokens N")
        total += path.stat().st_size
    if not total:
        raise MerinoError(f"--data {paths[0]} is empty: give a text file, or --tokens N")
    return max(1, round(total / bytes_per_token(vocab)))
