"""The scores that a search maximizes, by name: the measured law (`law`), and MeRino's entropy times effectiveness.

`measured` is the default. `merino`, `merino-literal` and `merino-off` are the paper's, in three readings of its gamma.
Known (MeRino, arXiv 2403.07921): entropy is weighted between attention and FFN and multiplied by an effectiveness that
depends on depth over width. Recalled, not confirmed: the formula of a layer, the weights 0.6 and 0.4, beta 1/16. This
project's choices: eps 1, the reading `inverse` of the effectiveness, and the preference for unshared weights in a tie.
"""

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from merino_edge.design.entropy import linear_entropy
from merino_edge.design.law import MeasuredScoring, law_score, layer_weights, worth
from merino_edge.families.designed import Block
from merino_runtime.errors import MerinoError

Gamma = Literal["off", "literal", "inverse"]
Weight = Annotated[float, Field(ge=0, le=1000)]


class MerinoScoring(BaseModel):
    """Parameters of the paper's score, as stored in design.json.

    Attributes:
        name: of the parameter set.
        gamma: how depth over width lowers a block's score. `literal` is beta * L / E, under 0.01 at these sizes;
            `inverse` is L / (beta * E) (own choice); `off` is 0.
        attention_weight, ffn_weight: a1 and a2 (recalled). Not both 0.
        eps: noise scale in `log(1 + s^2 / eps^2)` (own choice).
        beta: 1/16 (known).
        shared_discount: relative loss of score for each repeated use of shared weights. Entropy counts each use in full
            (recalled), so this decides ties only: weights are shared where a limit requires it (own choice).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    gamma: Gamma
    attention_weight: Weight
    ffn_weight: Weight
    eps: Annotated[float, Field(ge=1e-3, le=1e3)]
    beta: Annotated[float, Field(ge=1e-6, le=1e6)]
    shared_discount: Annotated[float, Field(ge=0, le=1)]

    @model_validator(mode="after")
    def _has_weight(self) -> Self:
        if self.attention_weight + self.ffn_weight == 0:
            raise ValueError("attention_weight 0 and ffn_weight 0 make every score 0: give one of them a weight")
        return self


MEASURED = MeasuredScoring()
MERINO = MerinoScoring(
    name="merino", gamma="inverse", attention_weight=0.6, ffn_weight=0.4, eps=1.0, beta=1 / 16, shared_discount=1e-4
)
LITERAL = MERINO.model_copy(update={"name": "merino-literal", "gamma": "literal"})
OFF = MERINO.model_copy(update={"name": "merino-off", "gamma": "off"})
Scoring = MeasuredScoring | MerinoScoring
DEFAULT: Scoring = MEASURED  # what `design` maximizes where no --score is given
SCORES: dict[str, Scoring] = {scoring.name: scoring for scoring in (MEASURED, MERINO, LITERAL, OFF)}


def score_named(name: str) -> Scoring:
    """Raises MerinoError for a name that is not in the table."""
    if name not in SCORES:
        raise MerinoError(f"--score {name} is not known: choose one of {', '.join(SCORES)}")
    return SCORES[name]


def block_amount(block: Block, head_size: int, scoring: Scoring) -> float:
    """A block's summand: of the paper's score, or of the measured law's effective weights."""
    if isinstance(scoring, MeasuredScoring):
        return worth(block.depth, block.shared, scoring) * layer_amount(block, head_size, scoring)
    return block_score(
        block.width, block.ffn_width, block.depth, block.shared, scoring, kv_width=block.kv_width(head_size)
    )


def layer_amount(block: Block, head_size: int, scoring: Scoring) -> float:
    """The summand of one layer of a block, without sharing."""
    if isinstance(scoring, MeasuredScoring):
        return layer_weights(block.width, block.ffn_width, block.kv_width(head_size), scoring)
    return block_score(block.width, block.ffn_width, 1, False, scoring, kv_width=block.kv_width(head_size))


def total_score(blocks: Iterable[Block], head_size: int, scoring: Scoring) -> float:
    """The score of a decoder."""
    blocks = list(blocks)
    amount = sum(block_amount(block, head_size, scoring) for block in blocks)
    if isinstance(scoring, MeasuredScoring):
        return law_score(amount, sum(block.depth for block in blocks), scoring)
    return amount


def effectiveness_loss(width: int, depth: int, scoring: MerinoScoring) -> float:
    """gamma in [0, 1]: the share of a block's entropy that is lost since depth makes it hard to train."""
    if scoring.gamma == "off":
        return 0.0
    if scoring.gamma == "literal":
        return min(1.0, scoring.beta * depth / width)
    return min(1.0, depth / (scoring.beta * width))


def block_score(
    width: int, ffn_width: int, depth: int, shared: bool, scoring: MerinoScoring, *, kv_width: int | None = None
) -> float:
    """(1 - gamma) L (a1 H_attention + a2 H_FFN), in weighted nats.

    `kv_width`: channels of keys and of values; None: the block's width. With fewer, their two matrices have fewer
    columns and less entropy (own choice: docs/decisions/calibration.md).
    """
    keys_entropy = linear_entropy(width, width if kv_width is None else kv_width, scoring.eps)
    attention_entropy = 2 * linear_entropy(width, width, scoring.eps) + 2 * keys_entropy
    ffn_entropy = 2 * linear_entropy(width, ffn_width, scoring.eps)
    layer = scoring.attention_weight * attention_entropy + scoring.ffn_weight * ffn_entropy
    uses = depth - (scoring.shared_discount * (depth - 1) if shared else 0.0)
    return (1 - effectiveness_loss(width, depth, scoring)) * uses * layer
