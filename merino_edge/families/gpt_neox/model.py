"""GPT-NeoX in transformers' form, which transformers itself has."""

from collections.abc import Mapping
from typing import Any

from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from merino_edge.families.gpt_neox.geometry import GptNeoxArchitecture
from merino_edge.families.rope_config import plain_theta, rope_words

MODEL = GPTNeoXForCausalLM
SUPPORTED: Mapping[str, Any] = {"hidden_act": "gelu", "attention_bias": True}
KEYS = frozenset({
    "vocab_size", "max_position_embeddings", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "intermediate_size", "layer_norm_eps", "use_parallel_residual", "tie_word_embeddings", "rotary_pct",
    "rotary_emb_base", "rope_scaling", "rope_parameters", "hidden_dropout", "gradient_checkpointing",
})  # fmt: skip
LOADER = None
PART = "partial_rotary_factor"


def config_of(geometry: GptNeoxArchitecture, **keys: Any) -> GPTNeoXConfig:
    part = {PART: geometry.rotated / geometry.head_size}
    return GPTNeoXConfig(
        hidden_size=geometry.width,
        num_hidden_layers=geometry.layers,
        num_attention_heads=geometry.heads,
        intermediate_size=geometry.ffn_width,
        vocab_size=geometry.vocab,
        max_position_embeddings=geometry.context,
        layer_norm_eps=geometry.norm_eps,
        use_parallel_residual=geometry.parallel,
        tie_word_embeddings=geometry.tied,
        rope_parameters={**rope_words(geometry.rope_theta, None), **part},
        **keys,
    )


def geometry_of(config: Any) -> GptNeoxArchitecture:
    words = dict(config.rope_parameters)
    part = words.pop(PART, 1.0)
    return GptNeoxArchitecture(
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        ffn_width=config.intermediate_size,
        vocab=config.vocab_size,
        context=config.max_position_embeddings,
        norm_eps=config.layer_norm_eps,
        rotated=int(config.hidden_size // config.num_attention_heads * part),
        rope_theta=plain_theta(words),
        parallel=config.use_parallel_residual,
        tied=config.tie_word_embeddings,
    )
