"""AdamW, or Muon for the matrices of the layers beside it, at rates by the inputs of each matrix.

Muon (Jordan et al. 2024) orthogonalises each matrix's momentum. Embedding, head, norms and biases stay with AdamW.
"""

from collections.abc import Callable
from typing import Any

import torch

from merino_edge.training.recipe import BETA2, Recipe

BASE_INPUTS = 128  # a matrix of so many inputs takes the recipe's rate


class MuonBesideAdamW(torch.optim.Optimizer):
    """torch.optim.AdamW and torch.optim.Muon over the groups of this one, whose rates a scheduler sets."""

    def __init__(self, others: list[dict[str, Any]], matrices: list[dict[str, Any]]):
        super().__init__([*others, *matrices], {})
        # Muon's updates are scaled to the size of AdamW's, so that one rate suits both.
        self.parts = [adamw(others), torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw")]
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure else None
        for part in self.parts:
            part.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def adamw(groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, betas=(0.9, BETA2), fused=True)


def optimiser_for(model: Any, recipe: Recipe, by_width: bool) -> torch.optim.Optimizer:
    """The recipe's optimiser over the weights that are trained; embedding and head first, at the recipe's rate.

    by_width: a matrix of the layers takes the rate times BASE_INPUTS / its inputs (muP: Yang et al., arXiv 2203.03466),
    under Muon the root of that, so that one rate suits decoders of all widths; its weight decay is divided by the same.
    """
    muon = recipe.optimiser == "muon"

    def group(weights: list[torch.Tensor], decay: float, factor: float = 1.0) -> dict[str, Any]:
        return {"params": weights, "lr": recipe.learning_rate * factor, "weight_decay": decay / factor}

    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    embeddings = {id(embedding.weight) for embedding in ends if embedding}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    by_inputs: dict[int, list[torch.Tensor]] = {}
    for weight in trained:
        if weight.ndim == 2 and id(weight) not in embeddings:
            by_inputs.setdefault(weight.shape[1] if by_width else BASE_INPUTS, []).append(weight)
    others = [
        group([weight for weight in trained if id(weight) in embeddings], recipe.weight_decay),
        group([weight for weight in trained if weight.ndim != 2], 0.0),
    ]
    matrices = [
        group(weights, recipe.weight_decay, (BASE_INPUTS / inputs) ** (0.5 if muon else 1.0))
        for inputs, weights in by_inputs.items()
    ]
    others = [each for each in others if each["params"]]
    return MuonBesideAdamW(others, matrices) if muon else adamw([*others, *matrices])
