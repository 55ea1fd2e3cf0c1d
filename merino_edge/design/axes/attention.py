"""Axes of attention: the number of KV heads, and the format of the KV cache."""

import math
from collections.abc import Sequence

from merino_edge.design.law import Constant, Constants
from merino_edge.families.designed import attention_operators
from merino_edge.families.operators import Operator

KV_HEADS: tuple[int | None, ...] = (1, 2, 4, 8, 16, 32, None)  # None: as many as query heads
NARROW = 256  # below this width heads have 32 channels, so that a layer has more than a few (own choice)
CONSTANTS = {
    "kv_heads": Constant(
        0.0, -0.006, 0.001,
        "ln loss per halving of the KV heads at equal weights, between -0.006, eight pairs of 0.13 M weights"
        " (docs/decisions/shape-training.md), and 0.001, one KV head instead of eight: perplexity 29.9 to 30.2"
        " (Shazeer 2019, arXiv 1911.02150)",
    ),
    "kv_int8": Constant(
        0.0, -0.0006, 0.0006,
        "the embedded model and SmolLM2-135M: perplexity 0.00 (0.02) % and -0.07 (0.09) %"
        " (docs/decisions/quantization.md)",
    ),
    "kv_int4": Constant(
        0.015, 0.007, 0.023,
        "the mean of the embedded model and SmolLM2-135M: perplexity 1.7 % and 6.1 % (docs/decisions/quantization.md)",
    ),
}  # fmt: skip


def head_size(width: int) -> int:
    """64 channels; 32 in narrow decoders and in widths that 64 does not divide."""
    return 32 if width < NARROW or width % 64 else 64


def kv_heads_of(width: int, counts: Sequence[int | None]) -> list[int]:
    """The possible numbers of KV heads at this width, fewest first: they divide the query heads."""
    heads = width // head_size(width)
    return sorted({count or heads for count in counts if heads % (count or 1) == 0})


def operators(width: int, kv_heads: int, *, final: bool = False) -> list[Operator]:
    size = head_size(width)
    return list(attention_operators(width, width // size, kv_width=kv_heads * size, final=final))


def heads_term(heads: int, kv_heads: float, constants: Constants) -> float:
    return constants["kv_heads"] * math.log2(heads / kv_heads)


def cache_term(kv: str | None, constants: Constants) -> float:
    """`kv`: the cache's format; None: that of the activations."""
    return constants.get(f"kv_{kv}", 0.0)
