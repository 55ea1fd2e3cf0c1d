"""How a model begins its training."""

import torch
from transformers import PreTrainedModel

BRANCHES = ("attention.out.weight", "down.weight")  # of a layer, what adds to the residual stream


@torch.no_grad()
def shrink_branches(model: PreTrainedModel) -> None:
    """Divide attention's output and the FFN's second matrix by the root of the number of such branches, twice that of
    layers (GPT-2: Radford et al. 2019, section 2.3).

    Else the first layers drown the embedding, the more the wider they are. Figures: docs/decisions/training.md.
    """
    uses = sum(block.depth for block in model.config.architecture.blocks)  # of layers, shared ones at each use
    for name, weight in model.named_parameters():
        if name.endswith(BRANCHES):
            weight.div_((2 * uses) ** 0.5)
