"""Hessians for GPTQ: the mean of x x' of each matrix's inputs x while the model reads a text.

They say which errors of weights matter. Of an error e of a row of a matrix, the mean square that it adds to the output
is e' H e, with H the Hessian [in, in] of the matrix's input.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from transformers import PreTrainedModel

from merino_edge.export.calibration_text import text_rows
from merino_edge.export.quantisation.gptq import Hessians
from merino_edge.export.source import Source

TOKENS = 16_384  # of the text at most, evenly taken from it
ROW = 512  # tokens that the model sees together


def hessians_on(source: Source, text: Path) -> Callable[[], Hessians]:
    """The Hessians on a text, computed at the first call. Raises MerinoError at once where the text cannot be read."""
    rows = text_rows(source, text, min(ROW, source.arch.context), TOKENS)
    return cache(lambda: input_hessians(source.model, rows))


@torch.no_grad()
def input_hessians(model: PreTrainedModel, rows: torch.Tensor) -> Hessians:
    """Means over all tokens of x x' for the input x of each matrix but the head's; rows: ids [n, T].

    Matrices that take the same tensor share one array.
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
            model.base_model(input_ids=row[None].long())
            seen.clear()
    finally:
        for each in hooks:
            each.remove()
    found = {name: (total / rows.numel()).numpy() for name, total in sums.items()}
    return {name: found[owner] for name, owner in owners.items()}


def is_matrix(module: torch.nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.ndim == 2 and not isinstance(module, torch.nn.Embedding)
