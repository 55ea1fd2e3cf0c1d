"""Writes GGUF files: of any tensors, and of a Hugging Face model as llama.cpp's converter would, with made-up tokens.

The inverse of `config` and `tensors`, so that llama.cpp can run the same weights as this project. A test runs the files
in llama.cpp, so that a mistake which is made in both directions does not pass.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from merino_edge.families.gguf.config import SIZES
from merino_edge.families.gguf.metadata import LONG_FACTORS, ROPE_FACTORS
from merino_edge.families.gguf.tensors import Layout, layout, stored_name
from merino_edge.families.rotary import ORIGINAL, rope_facts, turned_channels

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# By `model_type`: the architecture's name in a GGUF.
ARCHITECTURES = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "granite": "granite", "gemma3_text": "gemma3", "gpt2": "gpt2",
    "gpt_neox": "gptneox", "ernie4_5": "ernie4_5", "olmo2": "olmo2", "hunyuan_v1_dense": "hunyuan-dense",
    "smollm3": "smollm3", "exaone4": "exaone4", "phi3": "phi3", "stablelm": "stablelm", "gemma": "gemma",
    "gemma2": "gemma2", "phi": "phi2", "mistral": "llama", "gemma3n_text": "gemma3n", "ministral3": "mistral3",
    "llama4_text": "llama4", "bloom": "bloom", "lfm2": "lfm2",
}  # fmt: skip
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


def write_model(
    path: Path, model: "PreTrainedModel", matrices: str, embedding: str,
    tokens: Callable[[gguf.GGUFWriter, int], None] | None = None, **keys: Any,
) -> None:  # fmt: skip
    """`matrices`, `embedding`: names of types, as of `write_file`. `tokens`: adds a tokenizer of so many tokens,
    default: made-up ones. `keys`: metadata that is added or replaces what is written; None: left out.

    Raises ValueError for a family that llama.cpp does not have, and for rows that no blocks divide.
    """
    kind, config = model.config.model_type, model.config
    if kind not in ARCHITECTURES:
        raise ValueError(f"{kind} models are not written as GGUF: known are {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[kind]

    def add_keys(writer: gguf.GGUFWriter) -> None:
        known = {f"{architecture}.{key}": value for key, value in facts(architecture, config).items()}
        for key, value in {**known, **keys}.items():
            if value is not None:
                add_key(writer, key, value)
        (tokens or add_tokens)(writer, config.vocab_size)

    write_file(path, architecture, add_keys, tensors_of(model, architecture, matrices, embedding))


def tensors_of(
    model: "PreTrainedModel", architecture: str, matrices: str, embedding: str
) -> Iterator[tuple[str, np.ndarray, str]]:
    """Vectors and learned positions stay in float32."""
    from merino_edge.families.gguf.checkpoint import stored_weights  # loads torch

    config = model.config
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    stacks: dict[str, list[np.ndarray]] = {}
    for name, value in stored_weights(model).items():
        stored, index = stored_name(names, name)
        assert stored is not None, name
        if index is not None:
            stacks.setdefault(stored, []).append(value.detach().float().numpy())
            continue
        values = as_stored(value.detach().float().numpy(), layout(architecture, words_of(config), name, stored))
        whole = values.ndim == 1 or stored.startswith("position_embd") or ".conv." in stored
        yield stored, values, "F32" if whole else embedding if stored in EMBEDDINGS else matrices
    for stored, stack in stacks.items():
        yield stored, np.stack(stack), matrices
    for layer in range(config.num_hidden_layers - getattr(config, "num_kv_shared_layers", 0), config.num_hidden_layers):
        for part in ("attn_k", "attn_v"):  # llama.cpp requires them, and reads another layer's cache
            rows = config.num_key_value_heads * config.head_dim
            yield f"blk.{layer}.{part}.weight", np.zeros((rows, config.hidden_size), np.float32), matrices
        yield f"blk.{layer}.attn_k_norm.weight", np.ones(config.head_dim, np.float32), "F32"
    scaling = scaling_of_config(config)
    if scaling and architecture != "mistral3":
        divisors = np.array(scaling["divisors"], np.float32)
        for stored in LONG_FACTORS.values() if architecture == "phi3" else (ROPE_FACTORS,):
            yield stored, divisors, "F32"


def as_stored(value: np.ndarray, form: Layout) -> np.ndarray:
    value = value[:, 0] if form.taps else value.T if form.transposed else value
    if form.rows is not None:
        ordered = np.empty_like(value)
        ordered[form.rows] = value
        value = ordered
    return np.ascontiguousarray(value - np.float32(form.added) if form.added else value)


def add_key(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
        list: writer.add_array,
    }  # fmt: skip
    kinds[type(value)](key, value)


def words_of(config: Any) -> dict[str, Any]:
    """Return the sizes that `layout` requires, by one name in all families."""
    return {
        "num_attention_heads": config.num_attention_heads, "hidden_size": config.hidden_size,
        "num_key_value_heads": getattr(config, "num_key_value_heads", config.num_attention_heads),
        "head_dim": head_size_of(config),
    }  # fmt: skip


def head_size_of(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def rope_of(config: Any) -> dict[str, Any]:
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    return rope.get("full_attention", rope)


def scaling_of_config(config: Any) -> dict[str, Any] | None:
    """Return the divisors of the rotary frequencies, and the factor of cos and sin; None without a scaling."""
    rope = rope_of(config)
    if not rope:
        return None
    rope = {key: value for key, value in rope.items() if key != "llama_4_scaling_beta"}
    facts = rope_facts(rope, turned_channels(rope, head_size_of(config)), config.max_position_embeddings)
    scaling: dict[str, Any] | None = facts["rope_scaling"]
    return scaling


def facts(architecture: str, config: Any) -> dict[str, Any]:
    """Return the metadata by key, without the architecture's name before it."""
    head_size = head_size_of(config)
    known = {key: getattr(config, word, None) for word, key in SIZES.items()}
    if architecture == "llama4":
        known["feed_forward_length"] = config.intermediate_size_mlp
    if architecture == "gemma3n":
        known["feed_forward_length"] = config.intermediate_size[0]
    if architecture == "bloom":
        known["context_length"] = config.seq_length
    known["feed_forward_length"] = (
        known["feed_forward_length"] or getattr(config, "n_inner", None) or 4 * config.hidden_size
    )
    if architecture in ("gpt2", "bloom"):
        return {**known, "attention.layer_norm_epsilon": float(config.layer_norm_epsilon)}
    rope = rope_of(config)
    known["rope.freq_base"] = float(rope["rope_theta"])
    known["rope.dimension_count"] = turned_channels(rope, head_size)
    if architecture in ("gptneox", "stablelm", "phi2"):
        known["attention.layer_norm_epsilon"] = float(config.layer_norm_eps)
    else:
        known["attention.layer_norm_rms_epsilon"] = float(getattr(config, "rms_norm_eps", None) or config.norm_eps)
    if architecture in ("gptneox", "stablelm"):
        known["use_parallel_residual"] = bool(config.use_parallel_residual)
    if architecture == "gptneox":
        return known
    known |= {
        "attention.head_count_kv": config.num_key_value_heads, "attention.key_length": head_size,
        "attention.value_length": head_size, "vocab_size": config.vocab_size,
    }  # fmt: skip
    scaling = scaling_of_config(config)
    if architecture == "phi3" and scaling:
        known |= {
            "rope.scaling.attn_factor": scaling["magnitude"],
            "rope.scaling.original_context_length": config.max_position_embeddings,
        }
    if architecture == "lfm2":
        listed = [config.num_key_value_heads * (kind == "full_attention") for kind in config.layer_types]
        known |= {"attention.head_count_kv": listed, "shortconv.l_cache": config.conv_L_cache}
    if architecture in ("phi3", "gemma2", "exaone4") and config.sliding_window:
        known["attention.sliding_window"] = config.sliding_window
    if architecture == "gemma2":
        known["attn_logit_softcapping"] = float(config.attn_logit_softcapping)
        known["final_logit_softcapping"] = float(config.final_logit_softcapping)
    if architecture == "gemma3":
        known["attention.sliding_window"] = config.sliding_window
    if architecture == "gemma3n":
        normal = NormalDist()
        known |= {
            "altup.active_idx": config.altup_active_idx, "altup.num_inputs": config.altup_num_inputs,
            "embedding_length_per_layer_input": config.hidden_size_per_layer_input,
            "attention.shared_kv_layers": config.num_kv_shared_layers,
            "attention.sliding_window": config.sliding_window,
            "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in config.layer_types],
            "final_logit_softcapping": float(config.final_logit_softcapping),
            "activation_sparsity_scale": [
                normal.inv_cdf(share) if share else -math.inf for share in config.activation_sparsity_pattern
            ],
        }  # fmt: skip
    if architecture == "llama4":
        known |= {
            "interleave_moe_layer_step": 0, "expert_count": 16, "expert_used_count": 1,
            "expert_feed_forward_length": config.intermediate_size,
        }  # fmt: skip
        if set(config.layer_types) == {"full_attention"}:
            known["attention.sliding_window"] = 0
    if architecture == "mistral3" and rope["rope_type"] == "yarn":
        known |= {
            "rope.scaling.type": "yarn", "rope.scaling.factor": float(rope["factor"]),
            "rope.scaling.original_context_length": rope[ORIGINAL],
            "rope.scaling.yarn_beta_fast": float(rope["beta_fast"]),
            "rope.scaling.yarn_beta_slow": float(rope["beta_slow"]),
            "rope.scaling.yarn_log_multiplier": float(rope["mscale_all_dim"]),
            "attention.temperature_scale": float(rope["llama_4_scaling_beta"]),
        }  # fmt: skip
    if architecture == "granite":
        known |= {
            "embedding_scale": float(config.embedding_multiplier), "residual_scale": float(config.residual_multiplier),
            "attention.scale": float(config.attention_multiplier), "logit_scale": float(config.logits_scaling),
        }  # fmt: skip
    return known


def add_tokens(writer: gguf.GGUFWriter, vocab: int) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{index}" for index in range(vocab)])
    writer.add_token_types([1] * vocab)
    writer.add_token_merges(["t 0"])
    writer.add_eos_token_id(vocab - 1)
