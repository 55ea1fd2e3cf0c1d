"""Is the exported graph the model? The bundle, run by the board's own runtime, against torch, step by step."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from merino_runtime.backends import open_backend
from merino_runtime.bundle import Bundle

TOLERANCE = 1e-3  # relative to the largest logit of the step


class Golden(NamedTuple):
    """Greedy decoding by torch: ids [steps] and the logits each was taken from [steps, vocab]."""

    prompt_ids: list[int]
    greedy_ids: list[int]
    logits: np.ndarray


@torch.no_grad()
def torch_greedy(model: PreTrainedModel, prompt_ids: Sequence[int], steps: int) -> Golden:
    """With torch's own cache: one prefill, then one decode step per token."""
    inputs, cache = torch.tensor([list(prompt_ids)]), None
    rows: list[np.ndarray] = []
    ids: list[int] = []
    for _ in range(steps):
        output = model(input_ids=inputs, cache=cache, use_cache=True)
        cache = output.cache
        rows.append(output.logits[0, -1].float().numpy())
        ids.append(int(rows[-1].argmax()))
        inputs = torch.tensor([[ids[-1]]])
    return Golden(list(prompt_ids), ids, np.stack(rows))


def worst_error(bundle: Bundle, golden: Golden) -> float:
    """Largest error of any logit at prefill and at each decode step, relative to the step's largest logit."""
    backend = open_backend(bundle)
    try:
        worst = 0.0
        logits = backend.prefill(golden.prompt_ids)
        for step, expected in enumerate(golden.logits):
            worst = max(worst, relative_error(logits, expected))
            if step + 1 < len(golden.logits):
                logits = backend.step(golden.greedy_ids[step])
        return worst
    finally:
        backend.close()


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())
