"""A GGUF file of architecture gpt2 with random weights, in any format that `gguf` quantises.

Its learned positions and LayerNorms with biases come with the architecture, and cost next to nothing.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from merino_edge.families.geometry import UniformGeometry

SPARE_SLOTS = 64  # beyond the context: llama.cpp wants room for the token that is chosen last


def write_gguf(path: Path, geometry: UniformGeometry, matrices: str, table: str) -> None:
    """`geometry` is one from `as_gpt2`; `matrices` and `table` are names of formats such as F32, Q8_0, Q4_0."""
    import gguf

    from merino_edge.families.gguf.write import add_tokens, write_file

    def add_keys(writer: gguf.GGUFWriter) -> None:
        writer.add_context_length(geometry.context + SPARE_SLOTS)
        writer.add_embedding_length(geometry.width)
        writer.add_block_count(geometry.layers)
        writer.add_feed_forward_length(geometry.ffn_width)
        writer.add_head_count(geometry.heads)
        writer.add_layer_norm_eps(1e-5)
        add_tokens(writer, geometry.vocab)

    write_file(path, "gpt2", add_keys, random_tensors(geometry, matrices, table))


def random_tensors(geometry: UniformGeometry, matrices: str, table: str) -> Iterator[tuple[str, np.ndarray, str]]:
    """Name, values and format."""
    width, ffn = geometry.width, geometry.ffn_width
    random = np.random.default_rng(0)

    def tensor(name: str, *shape: int, kind: str = "F32") -> tuple[str, np.ndarray, str]:
        return name, random.standard_normal(shape, np.float32) * np.float32(0.02), kind

    yield tensor("token_embd.weight", geometry.vocab, width, kind=table)
    yield tensor("position_embd.weight", geometry.context + SPARE_SLOTS, width)
    for name in ("output_norm.weight", "output_norm.bias"):
        yield tensor(name, width)
    shapes = (
        ("attn_qkv", 3 * width, width), ("attn_output", width, width), ("ffn_up", ffn, width), ("ffn_down", width, ffn),
    )  # fmt: skip
    for index in range(geometry.layers):
        for norm in ("attn_norm", "ffn_norm"):
            yield tensor(f"blk.{index}.{norm}.weight", width)
            yield tensor(f"blk.{index}.{norm}.bias", width)
        for matrix, rows, columns in shapes:
            yield tensor(f"blk.{index}.{matrix}.weight", rows, columns, kind=matrices)
            yield tensor(f"blk.{index}.{matrix}.bias", rows)
