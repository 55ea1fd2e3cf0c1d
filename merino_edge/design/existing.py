"""The search's scores of existing decoders, of any family."""

import math
from typing import NamedTuple

from merino_edge.design.law import MeasuredScoring, law_score
from merino_edge.design.score import SCORES, Scoring, block_score, total_score
from merino_edge.families.designed import Architecture
from merino_edge.families.geometry import Geometry

UNKNOWN = "the paper's entropy is defined for FFNs of two matrices, and for attention as wide as its layer"
BLOCKS = 4  # into which a published model's equal layers are cut; the default of `design`


class Score(NamedTuple):
    """`value`: None where the score is not defined for the decoder's matrices; then `reason` explains it."""

    name: str
    value: float | None
    reason: str = ""


def every_score(geometry: Geometry, names: list[str]) -> list[Score]:
    """The decoder's score by each of these names."""
    scores = []
    for name in names:
        value = existing_score(geometry, BLOCKS, SCORES[name])
        reason = "" if value is not None else UNKNOWN
        scores.append(Score(name, value, reason))
    return scores


def layers_weights(geometry: Geometry) -> int:
    """Weights of the layers' matrices, without embedding, head and projections between widths. Shared weights count
    once per use."""
    if isinstance(geometry, Architecture):
        return sum(
            2 * block.depth * block.width * (block.width + block.kv_width(geometry.head_size) + block.ffn_width)
            for block in geometry.blocks
        )
    width, embedded = geometry.layer_shapes[0].width, geometry.embed_width
    beside = 2 * width * embedded if width != embedded else 0
    return sum(op.matrix for op in geometry.operators if op.kind == "linear") - beside


def existing_score(geometry: Geometry, blocks: int, scoring: Scoring) -> float | None:
    """The search's score of a decoder; None where the paper's score is not defined for its matrices.

    The measured law counts the weights of any matrices. The paper's score depends on blocks: equal layers are cut into
    `blocks` blocks of equal depth, which gives the highest score of all cuts. Grouped-query attention has the entropy
    of narrower keys and values. The paper's score is not defined for gated FFNs, which have a third matrix.
    """
    if isinstance(geometry, Architecture):
        return total_score(geometry.blocks, geometry.head_size, scoring)
    layers, (kv_heads, head_size) = geometry.layer_shapes, geometry.kv_layers[0]
    if isinstance(scoring, MeasuredScoring):
        halvings = math.log2(layers[0].heads / kv_heads)
        weights = layers_weights(geometry) * math.exp(-scoring.kv_loss / scoring.alpha * halvings)
        return law_score(weights, len(layers), scoring)
    width, ffn_width = layers[0].width, layers[0].ffn_width
    if layers_weights(geometry) != 2 * len(layers) * width * (width + kv_heads * head_size + ffn_width):
        return None
    whole, rest = divmod(len(layers), blocks)
    depths = [whole + (block < rest) for block in range(blocks)]
    return sum(
        block_score(width, ffn_width, depth, False, scoring, kv_width=kv_heads * head_size) for depth in depths if depth
    )
