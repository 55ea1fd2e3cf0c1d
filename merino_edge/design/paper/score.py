"""The paper's score, entropy times effectiveness, block by block; and its FLOPs budgets.

Known (MeRino, arXiv 2403.07921): the entropy of the randomly initialized decoder measures its expressiveness, and comes
from a lookup table. It is weighted between attention and FFN and multiplied by an effectiveness that depends on depth
over width. Recalled, not confirmed: the formula of a layer, the weights 0.6 and 0.4, beta 1/16. This project's choices:
unit variance and a formula instead of the table, eps 1, the reading of the effectiveness, and the preference for
unshared weights in a tie.
"""

import math
from collections.abc import Iterable
from functools import cache
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from merino_edge.families.designed import Block

Weight = Annotated[float, Field(ge=0, le=1000)]
# The paper's three budgets in GFLOPs, at 1024 tokens without the LM head (recalled), named after the parameters of its
# models: 52 M and 61 M (recalled), and 64 M, 5.5 times fewer than OPT-350M (known).
PRESETS = {"merino-52m": {"flops_g": 60.0}, "merino-61m": {"flops_g": 110.0}, "merino-64m": {"flops_g": 160.0}}


class MerinoScoring(BaseModel):
    """Parameters of the paper's score, as stored in design.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["merino"] = "merino"
    attention_weight: Weight = 0.6  # a1 (recalled); not 0 if a2 is
    ffn_weight: Weight = 0.4  # a2 (recalled)
    eps: Annotated[float, Field(ge=1e-3, le=1e3)] = 1.0  # noise scale in log(1 + s^2 / eps^2) (own choice)
    # A block loses the share L / (beta E) of its entropy: 1/16 is known, the ratio of depth and width an own reading.
    beta: Annotated[float, Field(ge=1e-6, le=1e6)] = 1 / 16
    # Relative loss for each repeated use of shared weights (own choice). Entropy counts each use in full (recalled), so
    # this decides ties only: weights are shared if a limit requires it.
    shared_discount: Annotated[float, Field(ge=0, le=1)] = 1e-4

    @model_validator(mode="after")
    def _has_weight(self) -> Self:
        if self.attention_weight + self.ffn_weight == 0:
            raise ValueError("attention_weight 0 and ffn_weight 0 make every score 0: give one of them a weight")
        return self


MERINO = MerinoScoring()


@cache
def linear_entropy(inputs: int, outputs: int, eps: float = 1.0) -> float:
    """E[sum_j log(1 + s_j^2 / eps^2)] in nats over singular values of W [inputs, outputs], W_jk ~ N(0, 1).

    By the Marchenko-Pastur law, in closed form (Verdu and Shamai 1999, eq. 9), which is exact in the limit of large
    matrices. The last term corrects it for a finite size (Bai and Silverstein 2004): for this sum the logarithm of a
    geometric over an arithmetic mean. Sampled matrices agree within 0.1 % (a test).
    """
    small, large = sorted((inputs, outputs))
    ratio, snr = small / large, large / eps**2
    low = math.sqrt(snr * (1 - math.sqrt(ratio)) ** 2 + 1)
    high = math.sqrt(snr * (1 + math.sqrt(ratio)) ** 2 + 1)
    quarter = (high - low) ** 2 / 4
    law = large * (ratio * math.log(1 + snr - quarter) + math.log(1 + snr * ratio - quarter) - quarter / snr)
    return law + math.log(math.sqrt(low * high) / ((low + high) / 2))


def total_score(blocks: Iterable[Block], head_size: int, scoring: MerinoScoring) -> float:
    """The score of a decoder, in weighted nats."""
    return sum(
        block_score(one.width, one.ffn_width, one.depth, one.shared, scoring, kv_width=one.kv_width(head_size))
        for one in blocks
    )


def block_score(
    width: int, ffn_width: int, depth: int, shared: bool, scoring: MerinoScoring, *, kv_width: int | None = None
) -> float:
    """(1 - gamma) L (a1 H_attention + a2 H_FFN), in weighted nats. gamma: the share that is lost, because depth makes a
    block hard to train.

    `kv_width`: channels of keys and of values; None: the block's width. With fewer, their two matrices have fewer
    columns and less entropy (own choice).
    """
    keys_entropy = linear_entropy(width, width if kv_width is None else kv_width, scoring.eps)
    attention_entropy = 2 * linear_entropy(width, width, scoring.eps) + 2 * keys_entropy
    ffn_entropy = 2 * linear_entropy(width, ffn_width, scoring.eps)
    layer = scoring.attention_weight * attention_entropy + scoring.ffn_weight * ffn_entropy
    uses = depth - (scoring.shared_discount * (depth - 1) if shared else 0.0)
    gamma = min(1.0, depth / (scoring.beta * width))
    return (1 - gamma) * uses * layer
