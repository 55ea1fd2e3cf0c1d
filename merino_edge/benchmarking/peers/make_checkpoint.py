"""A transformers checkpoint with random weights, and CTranslate2's conversion of one."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any


def write_checkpoint(path: Path, family: str, architecture: Mapping[str, Any], model_source: str | None) -> None:
    """`model_source`: `module:function` that builds another family's model of an architecture, for transformers."""
    import torch

    torch.manual_seed(0)
    if family == "opt":
        model = opt_model(architecture)
    elif model_source:
        module, _, function = model_source.partition(":")
        model = getattr(import_module(module), function)(architecture)
    else:
        raise ValueError(f"transformers knows no {family!r} models by itself, and nothing was named that builds one")
    model.eval().save_pretrained(path)


def opt_model(architecture: Mapping[str, Any]) -> Any:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        hidden_size=architecture["width"],
        num_hidden_layers=architecture["layers"],
        num_attention_heads=architecture["heads"],
        ffn_dim=architecture["ffn_width"],
        word_embed_proj_dim=architecture["embed_width"],
        vocab_size=architecture["vocab"],
        max_position_embeddings=architecture["context"],
        do_layer_norm_before=architecture["pre_norm"],
        dropout=0.0,
    )
    return OPTForCausalLM(config)


def convert_for_ctranslate2(checkpoint: Path, path: Path, vocab: int, precision: str) -> None:
    """By CTranslate2's own converter, over a made vocabulary t0, t1, ... in place of a tokenizer."""
    from ctranslate2.converters import TransformersConverter

    class Vocabulary:
        bos_token = eos_token = f"t{min(2, vocab - 1)}"
        unk_token = f"t{min(3, vocab - 1)}"

        def get_vocab(self) -> dict[str, int]:
            return {f"t{index}": index for index in range(vocab)}

    class Converter(TransformersConverter):
        def load_tokenizer(self, *_: Any, **__: Any) -> Vocabulary:
            return Vocabulary()

    if vocab % 8:
        raise ValueError(f"CTranslate2's converter pads OPT's vocabulary to a multiple of 8, this one has {vocab}")
    Converter(str(checkpoint)).convert(str(path), quantization=precision)
