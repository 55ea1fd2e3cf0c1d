"""GGUF files of small models with random weights, written as llama.cpp's converter would. `test_gguf` runs them in
llama.cpp, so that a mistake that is made in writing and reading alike does not pass.
"""

import math
from statistics import NormalDist

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from merino_edge.families.gguf.checkpoint import stored_weights
from merino_edge.families.gguf.config import SIZES
from merino_edge.families.gguf.metadata import LONG_FACTORS, ROPE_FACTORS
from merino_edge.families.gguf.tensors import layout, stored_name
from merino_edge.families.gguf.write import EMBEDDINGS, write_file
from merino_edge.families.registry import FAMILIES
from merino_edge.families.rotary import ORIGINAL, rope_facts, turned_channels

SMALL = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
         "vocab_size": 320, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2,
         "pad_token_id": None}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2}
THETA = {"rope_parameters": {"rope_type": "default", "rope_theta": 20000.0}}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip

SHORT = [1.0, 1.02, 1.03, 1.05, 1.1, 1.4, 1.5, 2.0, 2.5, 3.0, 4.5, 6.0]

# By architecture: what a config.json of the family says.
CONFIGS = {
    "llama": {"model_type": "llama", **GROUPED, **THETA, "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    "llama-untied": {"model_type": "llama", **GROUPED, "tie_word_embeddings": False, "rope_parameters": LLAMA3},
    "qwen2": {"model_type": "qwen2", **GROUPED, **THETA, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **GROUPED, **THETA, "head_dim": 32, "tie_word_embeddings": True},
    "granite": {"model_type": "granite", **GROUPED, **THETA, "embedding_multiplier": 12.0, "logits_scaling": 4.0,
                "residual_multiplier": 0.263, "attention_multiplier": 0.1, "tie_word_embeddings": True},
    "gemma3": {"model_type": "gemma3_text", **GROUPED, "num_hidden_layers": 7, "head_dim": 32, "sliding_window": 16,
               "query_pre_attn_scalar": 32, "rope_parameters": {
                   "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                   "full_attention": {"rope_type": "default", "rope_theta": 1000000.0}}},
    "ernie4_5": {"model_type": "ernie4_5", **GROUPED, **THETA, "head_dim": 16, "tie_word_embeddings": True},
    "olmo2": {"model_type": "olmo2", **GROUPED, **THETA, "tie_word_embeddings": False},
    "hunyuan-dense": {"model_type": "hunyuan_v1_dense", **GROUPED, **THETA, "head_dim": 32,
                      "tie_word_embeddings": True},
    "smollm3": {"model_type": "smollm3", **GROUPED, **THETA, "num_hidden_layers": 5, "tie_word_embeddings": True},
    "exaone4": {"model_type": "exaone4", **GROUPED, "head_dim": 16, "sliding_window": None,
                "layer_types": ["full_attention"] * 2,
                "tie_word_embeddings": True, "rope_parameters": LLAMA3},
    "lfm2": {"model_type": "lfm2", **GROUPED, **THETA, "num_hidden_layers": 4, "block_auto_adjust_ff_dim": False,
             "layer_types": ["conv", "conv", "full_attention", "conv"], "tie_word_embeddings": True},
    "phi3": {"model_type": "phi3", **GROUPED, "hidden_size": 128, "num_hidden_layers": 2, "sliding_window": None,
             "original_max_position_embeddings": 128, "tie_word_embeddings": True, "rope_parameters": {
                 "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
                 "short_factor": SHORT, "long_factor": SHORT, "attention_factor": 1.19,
                 "original_max_position_embeddings": 128}},
    "stablelm": {"model_type": "stablelm", **SMALL, "num_key_value_heads": 4, "use_qkv_bias": True,
                 "tie_word_embeddings": False, "rope_parameters": {
                     "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    "gemma": {"model_type": "gemma", **GROUPED, **THETA, "head_dim": 32},
    "gemma2": {"model_type": "gemma2", **GROUPED, **THETA, "num_hidden_layers": 4, "head_dim": 32,
               "sliding_window": 16, "query_pre_attn_scalar": 32},
    "phi2": {"model_type": "phi", **SMALL, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    "gemma3n": {"model_type": "gemma3n_text", **GROUPED, "intermediate_size": 1024, "num_hidden_layers": 22,
                "head_dim": 32, "sliding_window": 16, "vocab_size_per_layer_input": 320, "num_kv_shared_layers": 2,
                "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 12},
    "mistral3": {"model_type": "ministral3", **GROUPED, "head_dim": 16, "sliding_window": None,
                 "tie_word_embeddings": True, "rope_parameters": {
                     "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128,
                     "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
                     "llama_4_scaling_beta": 0.1}},
    "llama4": {"model_type": "llama4_text", **GROUPED, **THETA, "head_dim": 16, "intermediate_size_mlp": 160,
               "num_hidden_layers": 4, "moe_layers": [], "layer_types": [*["chunked_attention"] * 3, "full_attention"],
               "no_rope_layers": [1, 1, 1, 0], "attention_chunk_size": 8192, "tie_word_embeddings": True},
    "bloom": {"model_type": "bloom", "n_layer": 2, "hidden_size": 96, "n_head": 6, "vocab_size": 320, "seq_length": 128,
              "bos_token_id": 1, "eos_token_id": 2},
    "gpt2": {"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 4, "n_inner": 96, "n_positions": 128,
             "vocab_size": 320, "bos_token_id": 1, "eos_token_id": 2},
    "gptneox": {"model_type": "gpt_neox", **SMALL, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}},
}  # fmt: skip

# By `model_type`: the architecture's name in a GGUF.
ARCHITECTURES = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "granite": "granite", "gemma3_text": "gemma3", "gpt2": "gpt2",
    "gpt_neox": "gptneox", "ernie4_5": "ernie4_5", "olmo2": "olmo2", "hunyuan_v1_dense": "hunyuan-dense",
    "smollm3": "smollm3", "exaone4": "exaone4", "phi3": "phi3", "stablelm": "stablelm", "gemma": "gemma",
    "gemma2": "gemma2", "phi": "phi2", "mistral": "llama", "gemma3n_text": "gemma3n", "ministral3": "mistral3",
    "llama4_text": "llama4", "bloom": "bloom", "lfm2": "lfm2",
}  # fmt: skip


def random_model(architecture, strength=1, **changes):
    """A model of the architecture in transformers, with norms and biases that are not 1 and 0.

    `strength`: a factor of the layers' matrices. From 5 on they decide the next token, and not the last one alone.
    """
    keys = {**CONFIGS[architecture], **changes}
    config = AutoConfig.for_model(keys.pop("model_type"), **keys)
    set_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif "emb" not in name and "wte" not in name and "wpe" not in name:
                parameter.mul_(strength)
    return model


def write_gguf(path, model, kind="F32", table=None, tokenizer=None, **keys):
    """`kind`, `table`: names of types for matrices and for the embedding. `tokenizer`: a function that adds one to the
    writer, default: made-up tokens. `keys`: metadata that is added or replaces what is written, None: left out."""
    config, architecture = model.config, ARCHITECTURES[model.config.model_type]

    def add_keys(writer):
        known = {f"{architecture}.{key}": value for key, value in metadata(architecture, config).items()}
        for key, value in {**known, **keys}.items():
            if value is not None:
                add_key(writer, key, value)
        (tokenizer or made_up_tokens)(writer, config.vocab_size)

    write_file(path, architecture, add_keys, tensors_of(model, architecture, kind, table or kind))
    return path


def tensors_of(model, architecture, matrices, embedding):
    """Vectors and learned positions stay in float32."""
    config, geometry = model.config, geometry_of(model.config)
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    stacks = {}
    for name, value in stored_weights(model).items():
        stored, index = stored_name(names, name)
        assert stored is not None, name
        if index is not None:
            stacks.setdefault(stored, []).append(value.detach().float().numpy())
            continue
        values = as_stored(value.detach().float().numpy(), layout(architecture, geometry, name, stored))
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


def as_stored(value, form):
    value = value[:, 0] if form.taps else value.T if form.transposed else value
    if form.rows is not None:
        ordered = np.empty_like(value)
        ordered[form.rows] = value
        value = ordered
    return np.ascontiguousarray(value - np.float32(form.added) if form.added else value)


def add_key(writer, key, value):
    kinds = {
        bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
        list: writer.add_array,
    }  # fmt: skip
    kinds[type(value)](key, value)


def geometry_of(config):
    return FAMILIES[config.model_type].geometry.of_config(config)


def head_size_of(config):
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def rope_of(config):
    rope = getattr(config, "rope_parameters", None) or {}
    return rope.get("full_attention", rope)


def scaling_of_config(config):
    """Return the divisors of the rotary frequencies, and the factor of cos and sin; None without a scaling."""
    rope = rope_of(config)
    if not rope:
        return None
    rope = {key: value for key, value in rope.items() if key != "llama_4_scaling_beta"}
    facts = rope_facts(rope, turned_channels(rope, head_size_of(config)), config.max_position_embeddings)
    return facts["rope_scaling"]


def metadata(architecture, config):
    """Return the metadata by key, without the architecture's name before it."""
    head_size = head_size_of(config)
    geometry = geometry_of(config)
    known = {key: getattr(geometry, field) for field, key in SIZES.items()}
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


def made_up_tokens(writer, vocab):
    """t0, t1, ... and two special ones; a merge of two others."""
    others = {3: "t", 4: "0"}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([others.get(index, f"t{index}") for index in range(vocab)])
    writer.add_token_types([3 if index in (1, 2) else 1 for index in range(vocab)])
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
