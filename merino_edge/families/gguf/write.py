"""Writes GGUF files: of any tensors, and of a GPT-2, so that llama.cpp can run random weights of a given shape."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np

from merino_edge.families.gguf.tensors import CONV1D, stored_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EMBEDDINGS = ("token_embd.weight", "output.weight")


def write_file(
    path: Path, architecture: str, add_keys: Callable[[gguf.GGUFWriter], None],
    tensors: Iterable[tuple[str, np.ndarray, str]],
) -> None:  # fmt: skip
    """`tensors`: name, values, and the name of a type that `gguf` can quantize, such as F32, Q8_0, Q4_0."""
    writer = gguf.GGUFWriter(path, architecture)
    add_keys(writer)
    for name, values, kind in tensors:
        form = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(values, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gpt2(path: Path, model: "PreTrainedModel", matrices: str, embedding: str) -> None:
    """Write a GPT-2 with made-up tokens. `matrices`, `embedding`: names of types, as of `write_file`. Vectors and
    learned positions stay in float32."""
    config, names = model.config, gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, model.config.n_layer)

    def add_keys(writer: gguf.GGUFWriter) -> None:
        writer.add_block_count(config.n_layer)
        writer.add_embedding_length(config.n_embd)
        writer.add_head_count(config.n_head)
        writer.add_feed_forward_length(config.n_inner)
        writer.add_context_length(config.n_positions)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        add_tokens(writer, config.vocab_size)

    def tensors() -> Iterable[tuple[str, np.ndarray, str]]:
        for name, value in model.state_dict().items():
            stored = stored_name(names, name)[0]
            assert stored is not None, name
            if name != "lm_head.weight":  # tied
                values = np.ascontiguousarray(value.T if name.endswith(CONV1D) else value)
                whole = values.ndim == 1 or stored.startswith("position_embd")
                yield stored, values, "F32" if whole else embedding if stored in EMBEDDINGS else matrices

    write_file(path, "gpt2", add_keys, tensors())


def add_tokens(writer: gguf.GGUFWriter, vocab: int) -> None:
    """Add a tokenizer of so many made-up tokens."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{index}" for index in range(vocab)])
    writer.add_token_types([1] * vocab)
    writer.add_token_merges(["t 0"])
    writer.add_eos_token_id(vocab - 1)
