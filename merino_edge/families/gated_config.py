"""The words of config.json that the families with a gated FFN share, both ways: a geometry's from them and back."""

from collections.abc import Mapping
from typing import Any

from merino_edge.families.gated import GatedGeometry
from merino_edge.families.rotary import RopeScaling
from merino_runtime.errors import MerinoError

GATED_KEYS = frozenset({
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "vocab_size", "max_position_embeddings", "tie_word_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling",
    "rope_parameters",
})  # fmt: skip
ROPE_KEYS = {"default": (), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
ORIGINAL = "original_max_position_embeddings"


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


def gated_facts(config: Any) -> dict[str, Any]:
    """Fields of the geometry that are named alike in all these families."""
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
        **rope_facts(config.rope_parameters),
    }


def rope_words(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """`rope_parameters` of a configuration."""
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    kept = scaling.model_dump(exclude={"kind", "original_context"})
    return {"rope_type": scaling.kind, "rope_theta": theta, ORIGINAL: scaling.original_context, **kept}


def rope_facts(words: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of a geometry. Raises MerinoError for a kind of scaling that is not known."""
    kind = words.get("rope_type", "default")
    if kind not in ROPE_KEYS:
        raise MerinoError(f"rope_scaling has the type {kind!r}, known are {', '.join(ROPE_KEYS)}")
    wanted = ("rope_theta", *ROPE_KEYS[kind], *((ORIGINAL,) if ROPE_KEYS[kind] else ()))
    unknown = {key for key, value in words.items() if value is not None} - {*wanted, "rope_type", "type"}
    missing = [key for key in wanted if words.get(key) is None]
    if unknown or missing:
        said = [f"{key} is {words[key]!r}, which is not known" for key in sorted(unknown)]
        said += [f"{key} is missing" for key in missing]
        raise MerinoError(f"rope_scaling of type {kind!r}: {'; '.join(said)}")
    scaling = {key: words[key] for key in ROPE_KEYS[kind]}
    return {
        "rope_theta": words["rope_theta"],
        "rope_scaling": {"kind": kind, "original_context": words[ORIGINAL], **scaling} if scaling else None,
    }
