"""Gemma 3's decoder of text in transformers' form, which transformers itself has."""

from collections.abc import Mapping
from typing import Any

from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from merino_edge.families.gated_config import GATED_KEYS, gated_words, shape_facts
from merino_edge.families.gemma3_text.geometry import Gemma3Architecture
from merino_edge.families.rope_config import plain_theta, rope_facts, rope_words
from merino_runtime.errors import MerinoError

MODEL = Gemma3ForCausalLM
SUPPORTED: Mapping[str, Any] = {
    "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "final_logit_softcapping": None,
    "attn_logit_softcapping": None, "use_bidirectional_attention": False,
}  # fmt: skip
KEYS = GATED_KEYS | {
    "query_pre_attn_scalar", "sliding_window", "layer_types", "rope_local_base_freq", "_sliding_window_pattern",
    "sliding_window_pattern",
}  # fmt: skip
LOADER = None
KINDS = {"full_attention": False, "sliding_attention": True}


def config_of(geometry: Gemma3Architecture, **keys: Any) -> Gemma3TextConfig:
    kinds = {windowed: kind for kind, windowed in KINDS.items()}
    words = {
        **gated_words(geometry),
        "rope_parameters": {
            "full_attention": rope_words(geometry.rope_theta, geometry.rope_scaling),
            "sliding_attention": rope_words(geometry.local_rope_theta, None),
        },
    }
    words |= {
        "head_dim": geometry.head_size,
        "sliding_window": geometry.window,
        "query_pre_attn_scalar": whole(geometry.attention_scale**-2),
        "layer_types": [kinds[windowed] for windowed in geometry.windowed],
    }
    return Gemma3TextConfig(**words, **keys)


def whole(number: float) -> int | float:
    """An integer where rounding alone keeps it from being one: transformers takes no other."""
    return round(number) if abs(number - round(number)) < 1e-9 * number else number


def geometry_of(config: Any) -> Gemma3Architecture:
    unknown = sorted({str(kind) for kind in config.layer_types} - set(KINDS))
    if unknown:
        raise MerinoError(f"layer_types has {', '.join(map(repr, unknown))}, known are {', '.join(map(repr, KINDS))}")
    return Gemma3Architecture(
        **shape_facts(config), **rope_facts(config.rope_parameters["full_attention"]),
        attention_scale=config.query_pre_attn_scalar**-0.5,
        window=config.sliding_window,
        windowed=tuple(KINDS[kind] for kind in config.layer_types),
        local_rope_theta=plain_theta(config.rope_parameters["sliding_attention"]),
    )
