"""Granite in transformers' form, which transformers itself has."""

from collections.abc import Mapping
from typing import Any

from transformers import GraniteConfig, GraniteForCausalLM

from merino_edge.families.gated_config import (
    GATED_KEYS,
    MULTIPLIER_KEYS,
    gated_facts,
    gated_words,
    multiplier_facts,
    multiplier_words,
)
from merino_edge.families.granite.geometry import GraniteArchitecture

MODEL = GraniteForCausalLM
SUPPORTED: Mapping[str, Any] = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
KEYS = GATED_KEYS | MULTIPLIER_KEYS
LOADER = None


def config_of(geometry: GraniteArchitecture, **keys: Any) -> GraniteConfig:
    words = {**gated_words(geometry), **multiplier_words(geometry), "head_dim": geometry.head_size}
    return GraniteConfig(**words, **keys)


def geometry_of(config: GraniteConfig) -> GraniteArchitecture:
    return GraniteArchitecture(**gated_facts(config), **multiplier_facts(config))
