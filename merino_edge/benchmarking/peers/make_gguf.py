"""A GGUF file of architecture gpt2 with random weights, in any format that `gguf` quantises.

Its learned positions and LayerNorms with biases come with the architecture, and cost next to nothing.
"""

from pathlib import Path

import numpy as np

from merino_edge.families.geometry import UniformGeometry

SPARE_SLOTS = 64  # beyond the context: llama.cpp wants room for the token that is chosen last


def write_gguf(path: Path, geometry: UniformGeometry, matrices: str, table: str) -> None:
    """`geometry` is one from `as_gpt2`; `matrices` and `table` are names of formats such as F32, Q8_0, Q4_0."""
    import gguf

    width, ffn, vocab = geometry.width, geometry.ffn_width, geometry.vocab
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(geometry.context + SPARE_SLOTS)
    writer.add_embedding_length(width)
    writer.add_block_count(geometry.layers)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(geometry.heads)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{index}" for index in range(vocab)])
    writer.add_token_types([1] * vocab)
    writer.add_token_merges(["t 0"])
    writer.add_eos_token_id(vocab - 1)

    def tensor(name: str, *shape: int, kind: str = "F32") -> None:
        values = random.standard_normal(shape, np.float32) * np.float32(0.02)
        form = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(values, form), raw_dtype=form)

    tensor("token_embd.weight", vocab, width, kind=table)
    tensor("position_embd.weight", geometry.context + SPARE_SLOTS, width)
    for name in ("output_norm.weight", "output_norm.bias"):
        tensor(name, width)
    shapes = (
        ("attn_qkv", 3 * width, width), ("attn_output", width, width), ("ffn_up", ffn, width), ("ffn_down", width, ffn),
    )  # fmt: skip
    for index in range(geometry.layers):
        for norm in ("attn_norm", "ffn_norm"):
            tensor(f"blk.{index}.{norm}.weight", width)
            tensor(f"blk.{index}.{norm}.bias", width)
        for matrix, rows, columns in shapes:
            tensor(f"blk.{index}.{matrix}.weight", rows, columns, kind=matrices)
            tensor(f"blk.{index}.{matrix}.bias", rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
