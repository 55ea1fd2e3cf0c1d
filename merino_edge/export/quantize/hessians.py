"""Hessians for GPTQ: the mean of x x' over each matrix's inputs x while the model prefills a text.

They weigh the errors of weights: an error e of a row adds e' H e to the mean square of the output, with H the Hessian
[in, in] of the matrix's input.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from merino_edge.export.quantize.gptq import Hessians
from merino_edge.export.source import Source, text_rows
from merino_edge.families.operators import params

LEAST_TOKENS, MOST_TOKENS = 16_384, 131_072  # of the text, sampled evenly
WORK = LEAST_TOKENS * 135_000_000  # tokens times weights that are read where that lies between
ROW = 512  # tokens in a sequence


def hessians_on(source: Source, text: Path) -> Callable[[], Hessians]:
    """The Hessians on a text, computed at the first call. Raises MerinoError at once where the text cannot be read."""
    tokens = min(max(WORK // params(source.arch.operators), LEAST_TOKENS), MOST_TOKENS)
    rows = text_rows(source, text, min(ROW, source.arch.context), tokens)
    return cache(lambda: input_hessians(source.model, rows.numpy()))


@torch.no_grad()
def input_hessians(model: PreTrainedModel, rows: np.ndarray) -> Hessians:
    """The mean of x x' over all tokens, for the input x of each matrix except the head's; rows: ids [n, T].

    Matrices with the same input share one array.
    """
    sums: dict[str, torch.Tensor] = {}
    owners: dict[str, str] = {}  # by the name of a matrix, the one whose Hessian it shares
    seen: list[tuple[torch.Tensor, str]] = []  # the input of the matrix before, and that matrix's owner

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            if seen and seen[0][0] is given[0]:
                owners[name] = seen[0][1]
                return
            seen[:] = [(given[0], name)]
            x = given[0].reshape(-1, given[0].shape[-1]).float()
            owners[name] = name
            sums[name] = sums[name].addmm_(x.T, x) if name in sums else x.T @ x

        return hook

    head = model.get_output_embeddings()
    hooks = [
        module.register_forward_pre_hook(keep(f"{name}.weight")) for name, module in model.named_modules()
        if module is not head and is_matrix(module)
    ]  # fmt: skip
    try:
        for row in rows:
            model.base_model(input_ids=torch.from_numpy(row)[None].long())
            seen.clear()
    finally:
        for each in hooks:
            each.remove()
    means = {name: (total / rows.size).numpy() for name, total in sums.items()}
    return {name: means[owner] for name, owner in owners.items()}


def is_matrix(module: torch.nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.ndim == 2 and not isinstance(module, torch.nn.Embedding)
