"""The scores by name, with their constants: the measured law with the terms of all axes, and the paper's. And the
scores of existing decoders, of any family."""

from functools import lru_cache
from typing import Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from merino_edge.design import law
from merino_edge.design.axes import attention, ffn, mixer, ngrams, taps, vocabulary, weight_format
from merino_edge.design.law import Constants, effective_weights, ln_loss, worth
from merino_edge.design.paper.score import MERINO, MerinoScoring, block_score, total_score
from merino_edge.families.designed import Architecture
from merino_edge.families.geometry import Geometry
from merino_runtime.errors import MerinoError

BLOCKS = 4  # into which a published model's equal layers are cut, as in the paper's space
CONSTANTS: dict[str, law.Constant] = {
    **law.CONSTANTS, **attention.CONSTANTS, **ffn.CONSTANTS, **vocabulary.CONSTANTS, **weight_format.CONSTANTS,
    **mixer.CONSTANTS, **taps.CONSTANTS, **ngrams.CONSTANTS,
}  # fmt: skip


class MeasuredScoring(BaseModel):
    """The default score, as stored in design.json. `constants`: by name, as in CONSTANTS."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["measured"] = "measured"
    constants: dict[str, float] = Field(default_factory=lambda: {name: one.value for name, one in CONSTANTS.items()})

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.constants.keys() != CONSTANTS.keys():
            odd = sorted(self.constants.keys() ^ CONSTANTS.keys())
            raise ValueError(f"constants must be {', '.join(CONSTANTS)}: {', '.join(odd)} is missing or unknown")
        if self.constants["alpha"] <= 0:
            raise ValueError(f"alpha {self.constants['alpha']} must be above 0")
        return self

    def having(self, **constants: float) -> "MeasuredScoring":
        """The same score with other values of some constants."""
        return MeasuredScoring(constants={**self.constants, **constants})


MEASURED = MeasuredScoring()
Scoring = MeasuredScoring | MerinoScoring
SCORES: dict[str, Scoring] = {scoring.name: scoring for scoring in (MEASURED, MERINO)}


def score_named(name: str) -> Scoring:
    """Raises MerinoError for a name that is not in the table."""
    if name not in SCORES:
        raise MerinoError(f"--score {name} is not known: choose one of {', '.join(SCORES)}")
    return SCORES[name]


def layers_weights(geometry: Geometry) -> int:
    """Weights of the layers' matrices, without embedding, head and projections between widths. Shared weights count
    once per use."""
    if isinstance(geometry, Architecture):
        return sum(group.depth * group.weights for group in groups_of(geometry))
    width, embedded = geometry.layer_shapes[0].width, geometry.embed_width
    beside = 2 * width * embedded if width != embedded else 0
    return sum(op.matrix for op in geometry.operators if op.kind == "linear") - beside


def existing_score(
    geometry: Geometry, scoring: Scoring, precision: str = "fp32", kv: str | None = None
) -> float | None:
    """The search's score of a decoder; None if the paper's score is not defined for its matrices. The measured score
    depends on the formats of weights and cache."""
    if isinstance(scoring, MeasuredScoring):
        return float(effective_weights(loss_of(geometry, scoring.constants, precision, kv), scoring.constants))
    return paper_score(geometry, scoring)


class Group(NamedTuple):
    """Layers of one kind. `weights`: of one layer's matrices."""

    depth: int
    shared: bool
    weights: int
    gated: bool
    heads: int
    kv_heads: int


@lru_cache(maxsize=64)  # an interval computes the loss for many constants
def groups_of(geometry: Geometry) -> list[Group]:
    """The blocks of a designed decoder; all layers of another."""
    layers = geometry.layer_shapes
    if not isinstance(geometry, Architecture):
        weights = layers_weights(geometry) // len(layers)
        kv_heads = max(heads for heads, _ in geometry.kv_layers)  # a convolution's cache has one
        return [Group(len(layers), False, weights, is_gated(geometry), layers[0].heads, kv_heads)]
    groups, size = [], geometry.head_size
    for one in geometry.blocks:
        keys, ffn_width = one.kv_width(size), (2 + one.gated) * one.ffn_width
        attentions, heads = mixer.attentions(one.attention_every, one.depth), one.width // size
        weights = one.width * (2 * one.width + 2 * keys + ffn_width)
        groups.append(Group(attentions, one.shared, weights, one.gated, heads, keys // size))
        if convolutions := one.depth - attentions:
            weights = one.width * (4 * one.width + ffn_width)
            groups.append(Group(convolutions, False, weights, one.gated, heads, heads))
    return groups


def loss_of(geometry: Geometry, constants: Constants, precision: str = "fp32", kv: str | None = None) -> float:
    """`law.ln_loss` of any decoder. Terms of groups that differ are weighted by their weights."""
    groups = groups_of(geometry)  # type: ignore[arg-type]
    sizes = [worth(group.depth, group.shared, constants) * group.weights for group in groups]
    weights = sum(sizes)
    terms = weight_format.term(precision, constants) + attention.cache_term(kv, constants)
    terms += vocabulary.term(geometry.vocab, geometry.embed_width, weights, constants)
    if isinstance(geometry, Architecture):
        terms += taps.term(geometry.taps, constants) + ngrams.term(geometry.ngrams, constants)
        terms += mixer.term(max(block.attention_every for block in geometry.blocks), constants)
    for size, group in zip(sizes, groups, strict=True):
        of_layer = ffn.term(group.gated, constants) + attention.heads_term(group.heads, group.kv_heads, constants)
        terms += size / weights * of_layer
    return float(ln_loss(weights, sum(group.depth for group in groups), terms, constants))


def is_gated(geometry: Geometry) -> bool:
    """Whether an FFN has a third matrix: its first one has twice the channels that its activation has."""
    width, active = geometry.layer_shapes[0].width, next(op for op in geometry.operators if op.kind == "activation")
    return any(op.columns == width and op.matrix == 2 * active.vectors * width for op in geometry.operators)


def paper_score(geometry: Geometry, scoring: MerinoScoring) -> float | None:
    """Equal layers are cut into BLOCKS blocks of equal depth, which gives the highest score of all cuts. Grouped-query
    attention has the entropy of narrower keys and values. The score is not defined for gated FFNs, which have a third
    matrix."""
    if isinstance(geometry, Architecture):
        gated = any(block.gated for block in geometry.blocks)
        return None if gated else total_score(geometry.blocks, geometry.head_size, scoring)
    layers, (kv_heads, head_size) = geometry.layer_shapes, geometry.kv_layers[0]
    width, ffn_width = layers[0].width, layers[0].ffn_width
    if layers_weights(geometry) != 2 * len(layers) * width * (width + kv_heads * head_size + ffn_width):
        return None
    whole, rest = divmod(len(layers), BLOCKS)
    depths = [whole + (block < rest) for block in range(BLOCKS)]
    return sum(
        block_score(width, ffn_width, depth, False, scoring, kv_width=kv_heads * head_size) for depth in depths if depth
    )
