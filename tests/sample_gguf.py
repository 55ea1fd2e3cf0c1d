"""GGUF files of small models with random weights: `families.gguf.write` writes them, and `test_gguf` runs them in
llama.cpp, so that a mistake that is made in writing and reading alike does not pass.
"""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from merino_edge.families.gguf.write import write_model

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
    write_model(path, model, kind, table or kind, tokenizer or made_up_tokens, **keys)
    return path


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
