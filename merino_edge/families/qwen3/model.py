"""Qwen3 in transformers' form, which transformers itself has."""

from collections.abc import Mapping
from typing import Any

from transformers import Qwen3Config, Qwen3ForCausalLM

from merino_edge.families.gated_config import (
    FULL_ATTENTION_KEYS,
    GATED_KEYS,
    check_full_attention,
    gated_facts,
    gated_words,
)
from merino_edge.families.qwen3.geometry import Qwen3Architecture

MODEL = Qwen3ForCausalLM
SUPPORTED: Mapping[str, Any] = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}
KEYS = GATED_KEYS | FULL_ATTENTION_KEYS
LOADER = None


def config_of(geometry: Qwen3Architecture, **keys: Any) -> Qwen3Config:
    return Qwen3Config(**gated_words(geometry), head_dim=geometry.head_size, **keys)


def geometry_of(config: Qwen3Config) -> Qwen3Architecture:
    check_full_attention(config)
    return Qwen3Architecture(**gated_facts(config))
