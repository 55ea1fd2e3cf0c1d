"""The words of config.json that the families with a gated FFN share, both ways: a geometry's from them and back."""

from typing import Any

from merino_edge.families.gated import GatedGeometry
from merino_edge.families.multiplied import MultipliedGeometry
from merino_edge.families.rope_config import rope_facts, rope_words
from merino_runtime.errors import MerinoError

GATED_KEYS = frozenset({
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "vocab_size", "max_position_embeddings", "tie_word_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling",
    "rope_parameters",
})  # fmt: skip
FULL_ATTENTION_KEYS = frozenset({"layer_types", "sliding_window", "max_window_layers"})  # with use_sliding_window false
MULTIPLIER_KEYS = frozenset({
    "embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"
})  # fmt: skip


def gated_words(geometry: GatedGeometry) -> dict[str, Any]:
    """Arguments of transformers' configuration; `head_dim` is left to the family."""
    return {
        "hidden_size": geometry.width,
        "num_hidden_layers": geometry.layers,
        "num_attention_heads": geometry.heads,
        "num_key_value_heads": geometry.kv_heads,
        "intermediate_size": geometry.ffn_width,
        "vocab_size": geometry.vocab,
        "max_position_embeddings": geometry.context,
        "tie_word_embeddings": geometry.tied,
        "rms_norm_eps": geometry.norm_eps,
        "rope_parameters": rope_words(geometry.rope_theta, geometry.rope_scaling),
    }


def shape_facts(config: Any) -> dict[str, Any]:
    """Fields of the geometry that are named alike in all these families, but for the rotary ones."""
    return {
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_size": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "ffn_width": config.intermediate_size,
        "vocab": config.vocab_size,
        "context": config.max_position_embeddings,
        "tied": config.tie_word_embeddings,
        "norm_eps": config.rms_norm_eps,
    }


def gated_facts(config: Any) -> dict[str, Any]:
    """All fields of a `GatedGeometry`."""
    return {**shape_facts(config), **rope_facts(config.rope_parameters)}


def multiplier_words(geometry: MultipliedGeometry) -> dict[str, Any]:
    return {
        "embedding_multiplier": geometry.embedding_multiplier,
        "residual_multiplier": geometry.residual_multiplier,
        "attention_multiplier": geometry.attention_multiplier,
        "logits_scaling": geometry.logits_divisor,
    }


def multiplier_facts(config: Any) -> dict[str, Any]:
    return {
        "embedding_multiplier": config.embedding_multiplier,
        "residual_multiplier": config.residual_multiplier,
        "attention_multiplier": config.attention_multiplier,
        "logits_divisor": config.logits_scaling,
    }


def check_full_attention(config: Any) -> None:
    """Raises MerinoError where a layer is anything but attention to all positions before."""
    other = sorted({kind for kind in config.layer_types or () if kind != "full_attention"})
    if other:
        raise MerinoError(f"layer_types has {', '.join(map(repr, other))}, known is 'full_attention'")
