"""LLaMA in transformers' form, which transformers itself has."""

from collections.abc import Mapping
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from merino_edge.families.gated_config import GATED_KEYS, gated_facts, gated_words
from merino_edge.families.llama.geometry import LlamaArchitecture

MODEL = LlamaForCausalLM
SUPPORTED: Mapping[str, Any] = {
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "rope_interleaved": False,
}  # fmt: skip
KEYS = GATED_KEYS
LOADER = None


def config_of(geometry: LlamaArchitecture, **keys: Any) -> LlamaConfig:
    return LlamaConfig(**gated_words(geometry), head_dim=geometry.head_size, **keys)


def geometry_of(config: LlamaConfig) -> LlamaArchitecture:
    return LlamaArchitecture(**gated_facts(config))
