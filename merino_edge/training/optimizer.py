"""AdamW, or Muon for the matrices of the layers beside it, at rates that follow the inputs of each matrix.

Muon (Jordan et al. 2024) orthogonalizes each matrix's momentum. Embedding, head, norms and biases stay with AdamW.
"""

import timeit
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from merino_edge.training.recipe import BETA2, Recipe
from merino_runtime.io.board import this_isa

BF16 = frozenset(("avx512_bf16", "bf16"))  # instruction sets of CPUs that multiply in bfloat16
NGRAMS = "ngrams."  # the tables of a designed decoder
BASE_INPUTS = 128  # a matrix with so many inputs takes the recipe's rate
Groups = list[dict[str, Any]]  # of parameters, as torch's optimizers take them


def bf16_is_faster() -> bool:
    """Return whether the GPU multiplies in bfloat16; on a CPU, whether it also takes less time than in float32:
    Sapphire Rapids without AMX takes twice as long."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(512, 512, dtype=dtype)
        return min(timeit.repeat(lambda: matrix @ matrix, number=1, repeat=10))

    return bool(this_isa() & BF16) and seconds(torch.bfloat16) < seconds(torch.float32)


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


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon with `match_rms_adamw`, which sizes its updates as AdamW's are. It orthogonalizes in `dtype`;
    torch's always does in bfloat16, which takes 35 to 50 times as long on a CPU without instructions for it."""

    def __init__(self, groups: Groups, dtype: torch.dtype):
        super().__init__(groups, {"momentum": 0.95})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                mean = state["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonal(weight.grad.lerp(mean, group["momentum"]), self.dtype)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * 0.2 * max(weight.shape) ** 0.5)


class MuonBesideAdamW(torch.optim.Optimizer):
    """AdamW and Muon over the groups of this one, whose rates a scheduler sets. `dtype`: of Muon."""

    def __init__(self, others: Groups, matrices: Groups, dtype: torch.dtype):
        super().__init__([*others, *matrices], {})
        kinds = ((adamw, others), (partial(Muon, dtype=dtype), matrices))
        self.parts = [kind(groups) for kind, groups in kinds if groups]  # LoRA's adapters are all matrices
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure else None
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def adamw(groups: Groups) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, betas=(0.9, BETA2), fused=True)


def optimizer_for(model: Any, recipe: Recipe, by_width: bool) -> torch.optim.Optimizer:
    """Return the recipe's optimizer of the weights that are trained.

    by_width: a matrix takes the recipe's rate times BASE_INPUTS / its inputs (muP: Yang et al., arXiv 2203.03466), one
    of Muon's the root of that, so that one rate suits decoders of all widths. The embedding, which is the head too,
    counts by its channels. Weight decay is divided by the same factor. Tables of n-grams have none, because most of
    their rows are absent from a step, and a rate of their own.
    """
    muon = recipe.optimizer == "muon"
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    embeddings = {id(embedding.weight) for embedding in ends if embedding}
    kinds: dict[tuple[int, int | None], list[torch.Tensor]] = {}  # 0: embeddings, 1: vectors, 2: matrices, 3: tables
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            kind = 1 if weight.ndim != 2 else 0 if id(weight) in embeddings else 3 if name.startswith(NGRAMS) else 2
            kinds.setdefault((kind, weight.shape[1] if by_width and kind != 1 else None), []).append(weight)
    others: Groups = []
    matrices: Groups = []
    for (kind, inputs), weights in sorted(kinds.items(), key=lambda item: item[0][0]):
        by_muon = muon and kind == 2
        factor = (BASE_INPUTS / inputs) ** (0.5 if by_muon else 1.0) if inputs else 1.0
        decay = 0.0 if kind in (1, 3) else recipe.weight_decay / factor
        rate = recipe.learning_rate * factor * (recipe.table_rate if kind == 3 else 1.0)
        group = {"params": weights, "lr": rate, "weight_decay": decay}
        (matrices if by_muon else others).append(group)
    dtype = torch.bfloat16 if recipe.bf16 else torch.float32
    return MuonBesideAdamW(others, matrices, dtype) if muon else adamw(others)
