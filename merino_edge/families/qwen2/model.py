"""Qwen2 in transformers' form, which transformers itself has."""

from collections.abc import Mapping
from typing import Any

from transformers import Qwen2Config, Qwen2ForCausalLM

from merino_edge.families.gated_config import (
    FULL_ATTENTION_KEYS,
    GATED_KEYS,
    check_full_attention,
    gated_facts,
    gated_words,
)
from merino_edge.families.qwen2.geometry import Qwen2Architecture

MODEL = Qwen2ForCausalLM
SUPPORTED: Mapping[str, Any] = {"hidden_act": "silu", "use_sliding_window": False}
KEYS = GATED_KEYS | FULL_ATTENTION_KEYS
LOADER = None


def config_of(geometry: Qwen2Architecture, **keys: Any) -> Qwen2Config:
    words = {**gated_words(geometry), "head_dim": geometry.head_size}  # read by its attention, though not declared
    return Qwen2Config(**words, **keys)


def geometry_of(config: Qwen2Config) -> Qwen2Architecture:
    check_full_attention(config)
    return Qwen2Architecture(**gated_facts(config))
