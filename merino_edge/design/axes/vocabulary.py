"""Axis of the vocabulary: embedding, head, and the loss at equal text.

The term is of the loss normalized by the unigram's, which compares vocabularies at equal text (Tao et al. 2024).
"""

import math
from typing import Any

import numpy as np

from merino_edge.design.law import Constant, Constants
from merino_edge.families.operators import Operator, embed, head, norm
from merino_runtime.errors import MerinoError

VOCABS = (4096, 8192, 16384, 32768, 50257)
SMALL_VOCABS = (512, 1024, 2048)  # beside them, for a text that trains few weights
LEAST = 257  # the bytes and an end of text, which any byte-level tokenizer has
MOST = 1_000_000
# Bytes of held-out text per token: byte-level BPE trained on 13 MB of stories and novels, the mean over three texts
# (bench/results/vocabulary.json).
BYTES_PER_TOKEN = {
    257: 1.0, 512: 2.1328, 1024: 2.7057, 2048: 3.1278, 4096: 3.4567, 8192: 3.7294, 16384: 3.9204, 32768: 4.0643,
    50257: 4.1648,
}  # fmt: skip
TAO = "Tao et al. 2024, arXiv 2407.13623"
CONSTANTS = {
    "vocab_curve": Constant(
        0.0102, 0.0088, 0.0122,
        "ln loss per square of ln(weights of the embedding / best ones): least squares over six decoders of 33 M to 1.1"
        f" B weights with ten vocabularies each at equal text ({TAO}; bench/results/vocabulary.json)",
    ),
    "vocab_best": Constant(
        3.15e6, 2.06e6, 5.21e6,
        f"weights of the best embedding beside 33 M of layers ({TAO}); interval by leaving one size out",
    ),
    "vocab_exponent": Constant(
        0.835, 0.66, 1.095, f"the best embedding grows by this power of the layers' weights ({TAO}); interval likewise"
    ),
}  # fmt: skip
LAYERS = 33e6  # weights at which `vocab_best` holds


def check(vocab: int) -> None:
    """Raises MerinoError for a number of entries that no tokenizer has."""
    if not LEAST <= vocab <= MOST:
        raise MerinoError(
            f"--vocab {vocab} is not allowed: choose {LEAST} to {MOST} entries; a byte-level tokenizer has {LEAST} at"
            " least, one per byte and an end of text"
        )


def operators(width: int, vocab: int) -> list[Operator]:
    """The embedding, the final norm and the head, which is the embedding too."""
    return [embed(vocab, width), norm(width, final=True), head(width, vocab)]


def term(vocab: int, width: Any, weights: Any, constants: Constants) -> Any:
    """`width`, `weights`: of the layers; numbers or arrays."""
    best = math.log(constants["vocab_best"]) + constants["vocab_exponent"] * np.log(weights / LAYERS)
    return constants["vocab_curve"] * (np.log(vocab * width) - best) ** 2


def bytes_per_token(vocab: int) -> float:
    """Bytes of text per token, linear in the logarithm of the vocabulary between the measured sizes, and constant
    beyond the largest."""
    sizes = sorted(BYTES_PER_TOKEN)
    return float(np.interp(math.log(vocab), np.log(sizes), [BYTES_PER_TOKEN[size] for size in sizes]))
