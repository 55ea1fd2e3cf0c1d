"""AdamW, or Muon for the matrices of the layers beside it, at rates that follow the inputs of each matrix.

Muon (Jordan et al. 2024) orthogonalizes each matrix's momentum. Embedding, head, norms and biases stay with AdamW.
"""

from collections.abc import Callable
from typing import Any

import torch

from merino_edge.families.designed import NGRAMS
from merino_edge.training.recipe import BETA2, Recipe

BASE_INPUTS = 128  # a matrix with so many inputs takes the recipe's rate
MOMENTUM = 0.95  # of Muon


@torch.no_grad()
def orthogonal(matrix: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return U V' of the singular value decomposition of [rows, columns], by five steps of Newton and Schulz (Jordan et
    al. 2024), which leave singular values between 0.7 and 1.2."""
    x = matrix.to(dtype)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if tall else x


class MuonAndAdamW(torch.optim.AdamW):
    """AdamW, and Muon for the groups of parameters with `muon`.

    Muon's step is torch.optim.Muon's with `match_rms_adamw`, which sizes its updates as AdamW's are. It orthogonalizes
    in `dtype`; torch's does in bfloat16, which takes 35 to 50 times as long on a CPU without instructions for it.
    """

    def __init__(self, groups: list[dict[str, Any]], dtype: torch.dtype):
        super().__init__(groups, betas=(0.9, BETA2), fused=True)
        self.dtype = dtype

    def __setstate__(self, state: dict[str, Any]) -> None:
        torch.optim.Optimizer.__setstate__(self, state)  # AdamW's own expects its moments of every weight

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure else None
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        super().step()
        self.param_groups = groups
        for group in groups:
            for weight in group["params"] if group["muon"] else ():
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                mean = state["momentum_buffer"].lerp_(weight.grad, 1 - MOMENTUM)
                update = orthogonal(weight.grad.lerp(mean, MOMENTUM), self.dtype)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * 0.2 * max(weight.shape) ** 0.5)
        return loss


def optimizer_for(model: Any, recipe: Recipe, by_width: bool) -> MuonAndAdamW:
    """Return the recipe's optimizer of the weights that are trained.

    by_width: a matrix takes the recipe's rate times BASE_INPUTS / its inputs (muP: Yang et al., arXiv 2203.03466), one
    of Muon's the root of that, so that one rate suits decoders of all widths. The embedding, which is the head too,
    counts by its channels. Weight decay is divided by the same factor. Tables of n-grams have none, because most of
    their rows are absent from a step, and a rate of their own.
    """
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    embeddings = {id(embedding.weight) for embedding in ends if embedding}
    groups: dict[tuple[Any, ...], list[torch.Tensor]] = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        vector, table = weight.ndim != 2, name.startswith(NGRAMS)
        muon = recipe.optimizer == "muon" and not (vector or table or id(weight) in embeddings)
        factor = (BASE_INPUTS / weight.shape[1]) ** (0.5 if muon else 1.0) if by_width and not vector else 1.0
        rate = recipe.learning_rate * factor * (recipe.table_rate if table else 1.0)
        groups.setdefault((rate, 0.0 if vector or table else recipe.weight_decay / factor, muon), []).append(weight)
    listed = [{"params": weights, "lr": rate, "weight_decay": decay, "muon": muon}
              for (rate, decay, muon), weights in groups.items()]  # fmt: skip
    return MuonAndAdamW(listed, torch.bfloat16 if recipe.bf16 else torch.float32)
