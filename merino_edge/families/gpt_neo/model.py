"""GPT-Neo in transformers' form, which transformers itself has."""

from collections.abc import Mapping
from typing import Any

from transformers import GPTNeoConfig, GPTNeoForCausalLM

from merino_edge.families.gpt_neo.geometry import GptNeoArchitecture
from merino_runtime.errors import MerinoError

MODEL = GPTNeoForCausalLM
SUPPORTED: Mapping[str, Any] = {"activation_function": "gelu_new", "tie_word_embeddings": True}
KEYS = frozenset({
    "vocab_size", "max_position_embeddings", "hidden_size", "num_layers", "num_heads", "intermediate_size",
    "layer_norm_epsilon", "attention_types", "attention_layers", "window_size", "embed_dropout", "resid_dropout",
    "gradient_checkpointing", "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels",
    "summary_first_dropout",
})  # fmt: skip
LOADER = None


def config_of(geometry: GptNeoArchitecture, **keys: Any) -> GPTNeoConfig:
    kinds = ["local" if windowed else "global" for windowed in geometry.windowed]
    return GPTNeoConfig(
        hidden_size=geometry.width,
        num_layers=geometry.layers,
        num_heads=geometry.heads,
        intermediate_size=geometry.ffn_width,
        vocab_size=geometry.vocab,
        max_position_embeddings=geometry.context,
        layer_norm_epsilon=geometry.norm_eps,
        window_size=geometry.window,
        attention_types=[[kinds, 1]],
        **keys,
    )


def geometry_of(config: GPTNeoConfig) -> GptNeoArchitecture:
    listed = GPTNeoConfig.expand_attention_types_params(config.attention_types)
    if listed != config.attention_layers:
        raise MerinoError(f"attention_types lists {listed}, and attention_layers is {config.attention_layers}")
    return GptNeoArchitecture(
        width=config.hidden_size,
        layers=config.num_layers,
        heads=config.num_heads,
        ffn_width=config.intermediate_size or 4 * config.hidden_size,
        vocab=config.vocab_size,
        context=config.max_position_embeddings,
        norm_eps=config.layer_norm_epsilon,
        window=config.window_size,
        windowed=tuple(kind == "local" for kind in config.attention_layers),  # transformers knows these two only
    )
