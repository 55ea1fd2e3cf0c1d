"""Small geometries of the published families, for tests: widths of a few heads, a layer of each kind."""

from merino_edge.families.registry import FAMILIES

SHAPE = {"width": 64, "layers": 2, "heads": 4, "ffn_width": 96, "vocab": 96, "context": 16, "norm_eps": 1e-3}
GATED = {**SHAPE, "kv_heads": 2, "head_size": 16, "tied": True, "rope_theta": 500.0}
MULTIPLIED = {
    **GATED, "embedding_multiplier": 12.0, "attention_multiplier": 0.1, "residual_multiplier": 0.3,
    "logits_divisor": 4.0,
}  # fmt: skip
LLAMA3 = {
    "kind": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 16
}  # fmt: skip
SMALL = {
    "llama": GATED,
    "qwen2": GATED,
    "qwen3": {**GATED, "head_size": 32},
    "granite": MULTIPLIED,
    "granitemoehybrid": MULTIPLIED,
    "gemma3_text": {
        **GATED, "kv_heads": 1, "head_size": 32, "attention_scale": 0.125, "window": 5, "windowed": (True, False),
        "local_rope_theta": 50.0,
    },
    "gpt2": {**SHAPE, "activation": "gelu"},
    "gpt_neo": {**SHAPE, "window": 5, "windowed": (False, True)},
    "gpt_neox": {**SHAPE, "rotated": 4, "rope_theta": 500.0, "parallel": True, "tied": False},
}  # fmt: skip


def small(family, **keys):
    """The small geometry of a family, with other values for some of its fields."""
    return FAMILIES[family].geometry(**{**SMALL[family], **keys})
