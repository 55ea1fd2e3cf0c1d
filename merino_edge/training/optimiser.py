"""Muon for the matrices, AdamW for the rest, as one optimiser, so that a saved state has both.

Muon (Jordan et al. 2024) orthogonalises each matrix's momentum. Embedding, head, norms and biases stay with AdamW.
"""

from collections.abc import Callable
from typing import Any

import torch

from merino_edge.training.recipe import BETA2, Recipe


class MuonBesideAdamW(torch.optim.Optimizer):
    """torch.optim.Muon and torch.optim.AdamW over the groups of this one, whose rates a scheduler sets."""

    def __init__(
        self, matrices: list[torch.Tensor], others: list[torch.Tensor], muon: dict[str, Any], adamw: dict[str, Any]
    ):
        super().__init__([{"params": matrices, **muon}, {"params": others, **adamw}], {})
        self.parts = [torch.optim.Muon(matrices, **muon), torch.optim.AdamW(others, **adamw)]
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


def muon_for(model: Any, recipe: Recipe) -> MuonBesideAdamW:
    """At one rate for both: Muon's updates are scaled to the size of AdamW's (`match_rms_adamw`)."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    embeddings = {id(embedding.weight) for embedding in ends if embedding}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    matrices = [weight for weight in trained if weight.ndim == 2 and id(weight) not in embeddings]
    inside = set(map(id, matrices))
    others = [weight for weight in trained if id(weight) not in inside]
    shared = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    return MuonBesideAdamW(
        matrices, others, {**shared, "adjust_lr_fn": "match_rms_adamw"}, {**shared, "betas": (0.9, BETA2)}
    )
