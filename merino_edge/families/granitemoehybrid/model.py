"""Granite 4.0 in transformers' form, which transformers itself has."""

from collections.abc import Mapping
from typing import Any

from transformers import GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM

from merino_edge.families.gated_config import (
    GATED_KEYS,
    MULTIPLIER_KEYS,
    check_full_attention,
    gated_facts,
    gated_words,
    multiplier_facts,
    multiplier_words,
)
from merino_edge.families.granitemoehybrid.geometry import GraniteHybridArchitecture

MODEL = GraniteMoeHybridForCausalLM
SUPPORTED: Mapping[str, Any] = {
    "hidden_act": "silu", "attention_bias": False, "num_local_experts": 0, "position_embedding_type": "rope",
    "normalization_function": "rmsnorm",
}  # fmt: skip
# Without Mamba layers and experts, what those would be is not read.
UNUSED = {
    "mamba_n_heads", "mamba_n_groups", "mamba_d_state", "mamba_d_head", "mamba_d_conv", "mamba_expand",
    "mamba_chunk_size", "mamba_conv_bias", "mamba_proj_bias", "time_step_limit", "num_experts_per_tok",
    "output_router_logits", "router_aux_loss_coef", "init_method",
}  # fmt: skip
KEYS = GATED_KEYS | MULTIPLIER_KEYS | {"shared_intermediate_size", "layer_types", "layers_block_type"} | UNUSED
LOADER = None


def config_of(geometry: GraniteHybridArchitecture, **keys: Any) -> GraniteMoeHybridConfig:
    words = {**gated_words(geometry), **multiplier_words(geometry), "head_dim": geometry.head_size}
    return GraniteMoeHybridConfig(
        **words, **keys, shared_intermediate_size=geometry.ffn_width, num_local_experts=0,
        layer_types=["full_attention"] * geometry.layers, position_embedding_type="rope",
        mamba_n_heads=1,  # transformers asks for a divisor of twice the width, without Mamba layers too
    )  # fmt: skip


def geometry_of(config: GraniteMoeHybridConfig) -> GraniteHybridArchitecture:
    check_full_attention(config)
    facts = {**gated_facts(config), "ffn_width": config.shared_intermediate_size}
    return GraniteHybridArchitecture(**facts, **multiplier_facts(config))
