"""A trained model to start from: its weights, tokenizer and chat template, and LoRA on it through peft."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from merino_edge.families.checkpoint import ChatTemplate
from merino_edge.training.data.sources import INSTALL
from merino_runtime.errors import MerinoError


class Pretrained(NamedTuple):
    """In float32. Any of `stop_ids` ends a text. `tokenizer`: tokenizer.json, or the text of one."""

    model: PreTrainedModel
    tokenizer: Path | str
    chat: ChatTemplate | None = None
    stop_ids: tuple[int, ...] = ()



def with_lora(model: PreTrainedModel, rank: int) -> Any:
    """The model with adapters of this rank on all matrices of its layers; its own weights are frozen. The scale is 2,
    so that a rate suits all ranks alike (alpha = 2 * rank)."""
    try:
        import peft
    except ImportError as error:
        raise MerinoError(f"--lora needs peft: {INSTALL}") from error
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config)


def trained_count(pretrained: Pretrained | None, rank: int) -> int | None:
    """Weights that are trained; None where the model is not there yet."""
    if pretrained is None:
        return None
    if not rank:
        return pretrained.model.num_parameters()
    head = pretrained.model.get_output_embeddings()
    matrices = [
        module.weight for module in pretrained.model.modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head
    ]  # fmt: skip
    return rank * sum(sum(matrix.shape) for matrix in matrices)
