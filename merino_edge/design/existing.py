"""The scores of decoders that exist, of any family's geometry."""

import math
from typing import NamedTuple

from merino_edge.design.law import MeasuredScoring, law_score
from merino_edge.design.score import SCORES, Scoring, block_score, total_score
from merino_edge.families.designed import Architecture
from merino_edge.families.geometry import Geometry

UNKNOWN = "the paper's entropy knows two matrices of an FFN, and attention as wide as its layer"
BLOCKS = 4  # that a published model's equal layers are counted as: as many as `design` takes by default


class Score(NamedTuple):
    """`value`: None where the score does not know the decoder's matrices, and then `reason` says which."""

    name: str
    value: float | None
    reason: str = ""


def every_score(geometry: Geometry, names: list[str]) -> list[Score]:
    """The scores of these names."""
    found = []
    for name in names:
        value = existing_score(geometry, BLOCKS, SCORES[name])
        reason = "" if value is not None else UNKNOWN
        found.append(Score(name, value, reason))
    return found


def layers_weights(geometry: Geometry) -> int:
    """Weights of the layers' matrices, without embedding, head, and what changes the width between layers.

    Weights that several uses share count once for each.
    """
    if isinstance(geometry, Architecture):
        return sum(
            2 * block.depth * block.width * (block.width + block.kv_width(geometry.head_size) + block.ffn_width)
            for block in geometry.blocks
        )
    width, embedded = geometry.layer_shapes[0].width, geometry.embed_width
    beside = 2 * width * embedded if width != embedded else 0
    return sum(op.matrix for op in geometry.operators if op.kind == "linear") - beside


def existing_score(geometry: Geometry, blocks: int, scoring: Scoring) -> float | None:
    """The search's score of a decoder; of the paper's score None where it has other matrices than ours.

    The measured law counts the weights of whatever matrices. The paper's score depends on blocks: equal layers are
    counted as `blocks` blocks of equal depth, as many as our decoders have, of all ways to cut them the one of highest
    score. Grouped heads have the entropy of narrower keys and values, as in our decoders. A gated FFN has a third
    matrix, which that score does not know, and such layers have none.
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
