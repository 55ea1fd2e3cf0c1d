"""How a model begins its training."""

import torch
from transformers import PreTrainedModel

from merino_edge.families.merino.modeling import Layer


@torch.no_grad()
def shrink_branches(model: PreTrainedModel) -> None:
    """Divide what adds to the residual stream, attention's output and the FFN's second matrix, by the root of the
    number of such branches, twice that of layers (GPT-2: Radford et al. 2019, section 2.3).

    Else the first layers drown the embedding, the more the wider they are. Figures: docs/decisions/training.md.
    """
    uses = sum(block.depth for block in model.config.architecture.blocks)  # of layers, shared ones at each use
    for layer in model.modules():
        if isinstance(layer, Layer):
            for branch in (layer.attention.out, layer.down):
                branch.weight.div_((2 * uses) ** 0.5)
