"""GGUF files of small models with random weights, as llama.cpp's own converter would write them.

The conventions of that converter stand here a second time, in its direction. `test_gguf_llama_cpp` runs the files in
llama.cpp, so that a mistake that is made in both places does not pass.
"""

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

SMALL = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
         "vocab_size": 320, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2}
THETA = {"rope_parameters": {"rope_type": "default", "rope_theta": 20000.0}}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip

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
    "gpt2": {"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 4, "n_inner": 96, "n_positions": 128,
             "vocab_size": 320, "bos_token_id": 1, "eos_token_id": 2},
    "gptneox": {"model_type": "gpt_neox", **SMALL, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}},
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


def write_gguf(path, model, name, kind="F32", table=None, tokenizer=None, **keys):
    """`kind`, `table`: names of types for matrices and for the embedding. `tokenizer`: a function that adds one to the
    writer, default: made-up tokens. `keys`: metadata that is added or replaces what is written, None: left out."""
    architecture, config = name.partition("-")[0], model.config
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**facts(architecture, config), **keys}.items():
        if value is not None:
            add(writer, key, value)
    (tokenizer or made_up_tokens)(writer, config.vocab_size)
    layers = config.num_hidden_layers
    number = next(key for key, text in gguf.MODEL_ARCH_NAMES.items() if text == architecture)
    names = gguf.get_tensor_name_map(number, layers)
    for theirs, value in model.state_dict().items():
        if theirs == "lm_head.weight" and config.tie_word_embeddings:
            continue
        ours = names.get_name(theirs, (".weight", ".bias"))
        stored = converted(architecture, config, ours, value.float().numpy())
        form = "F32" if stored.ndim == 1 else (table or kind) if ours.startswith(("token_embd", "output.")) else kind
        if "position" in ours:
            form = "F32"
        quantised = gguf.GGMLQuantizationType[form]
        writer.add_tensor(ours, gguf.quants.quantize(np.ascontiguousarray(stored), quantised), raw_dtype=quantised)
    rope = rope_of(config)
    if rope.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(config.head_dim, rope))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer, key, value):
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
             list: writer.add_array}  # fmt: skip
    kinds[type(value)](key, value)


def rope_of(config):
    rope = getattr(config, "rope_parameters", None) or {}
    return rope.get("full_attention", rope)


def facts(architecture, config):
    """The metadata by key."""
    width, heads = config.hidden_size, config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or width // heads
    found = {
        "context_length": config.max_position_embeddings, "embedding_length": width,
        "block_count": config.num_hidden_layers, "attention.head_count": heads,
        "feed_forward_length": config.n_inner if architecture == "gpt2" else config.intermediate_size,
    }  # fmt: skip
    if architecture in ("gpt2", "gptneox"):
        found["attention.layer_norm_epsilon"] = getattr(config, "layer_norm_eps", 1e-5)
    else:
        found |= {
            "attention.head_count_kv": config.num_key_value_heads, "attention.key_length": head_size,
            "attention.value_length": head_size, "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        }  # fmt: skip
    if architecture != "gpt2":
        found["rope.freq_base"] = rope_of(config)["rope_theta"]
    if architecture == "llama":
        found |= {"rope.dimension_count": head_size, "vocab_size": config.vocab_size}
    if architecture == "gptneox":
        found |= {"rope.dimension_count": head_size // 4, "use_parallel_residual": config.use_parallel_residual}
    if architecture == "gemma3":
        found["attention.sliding_window"] = config.sliding_window
    if architecture == "granite":
        found |= {
            "embedding_scale": config.embedding_multiplier, "residual_scale": config.residual_multiplier,
            "attention.scale": config.attention_multiplier, "logit_scale": config.logits_scaling,
            "vocab_size": config.vocab_size, "rope.dimension_count": head_size,
        }  # fmt: skip
    return {f"{architecture}.{key}": value for key, value in found.items()}


def converted(architecture, config, name, value):
    """The values as the converter stores them."""
    heads = config.num_attention_heads
    if architecture in ("llama", "granite") and ("attn_q." in name or "attn_k." in name):
        of_part = heads if "attn_q." in name else config.num_key_value_heads
        shape = (of_part, 2, value.shape[0] // of_part // 2, *value.shape[1:])
        return value.reshape(shape).swapaxes(1, 2).reshape(value.shape)
    if architecture == "gemma3" and name.endswith("norm.weight"):
        return value + 1
    if architecture == "gpt2" and value.ndim == 2 and name.split(".")[-2] in (
        "attn_qkv", "attn_output", "ffn_up", "ffn_down"
    ):  # fmt: skip
        return value.T
    if architecture == "gptneox" and "attn_qkv" in name:
        size = config.hidden_size // heads
        return value.reshape(heads, 3, size, *value.shape[1:]).swapaxes(0, 1).reshape(value.shape)
    return value


def llama3_factors(size, rope):
    """As Llama's own code has it, frequency by frequency."""
    factors = []
    for index in range(0, size, 2):
        wave = 2 * np.pi * rope["rope_theta"] ** (index / size)
        low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
        high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
        if wave < high:
            factors.append(1.0)
        elif wave > low:
            factors.append(rope["factor"])
        else:
            part = (rope["original_max_position_embeddings"] / wave - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"]
            )
            factors.append(1 / ((1 - part) / rope["factor"] + part))
    return np.array(factors, np.float32)


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
