"""Granite 4.0 (IBM) where all layers are attention and the FFN is one: the smallest ones.

Granite's form without experts and without Mamba layers, with a packed gate.
"""

from dataclasses import replace
from typing import Any

from merino_edge.families.family import Family
from merino_edge.families.gated import GATED_KEYS, build_gated, check_full_attention
from merino_edge.families.granite import MULTIPLIER_KEYS, MultipliedGeometry, multiplied_facts, multiplied_words
from merino_edge.families.pre_norm import Layer, Linear

# Keys of Mamba layers and experts, which such a model has not: not read.
UNUSED = {
    "mamba_n_heads", "mamba_n_groups", "mamba_d_state", "mamba_d_head", "mamba_d_conv", "mamba_expand",
    "mamba_chunk_size", "mamba_conv_bias", "mamba_proj_bias", "time_step_limit", "num_experts_per_tok",
    "output_router_logits", "router_aux_loss_coef", "init_method",
}  # fmt: skip


class GraniteHybridArchitecture(MultipliedGeometry):
    """A decoder of the Granite 4.0 kind, of attention layers only."""

    def layer_of(self, layer: int) -> Layer:
        at = f"model.layers.{layer}.shared_mlp"
        up, down = Linear((f"{at}.input_linear.weight",)), Linear((f"{at}.output_linear.weight",))
        return replace(super().layer_of(layer), up=up, down=down)


def config_words(geometry: GraniteHybridArchitecture) -> dict[str, Any]:
    return {
        **multiplied_words(geometry),
        "shared_intermediate_size": geometry.ffn_width,
        "num_local_experts": 0,
        "layer_types": ["full_attention"] * geometry.layers,
        "position_embedding_type": "rope",
        "mamba_n_heads": 1,  # transformers requires a divisor of twice the width, without Mamba layers too
    }


def geometry_of(config: Any) -> GraniteHybridArchitecture:
    check_full_attention(config)
    return GraniteHybridArchitecture(**{**multiplied_facts(config), "ffn_width": config.shared_intermediate_size})


FAMILY = Family(
    name="granitemoehybrid",
    geometry=GraniteHybridArchitecture,
    build_graph=build_gated,
    config_name="GraniteMoeHybridConfig",
    model_name="GraniteMoeHybridForCausalLM",
    supported={
        "hidden_act": "silu", "attention_bias": False, "num_local_experts": 0, "position_embedding_type": "rope",
        "normalization_function": "rmsnorm",
    },
    keys=GATED_KEYS | MULTIPLIER_KEYS | {"shared_intermediate_size", "layer_types", "layers_block_type"} | UNUSED,
    config_words=config_words,
    geometry_of=geometry_of,
)  # fmt: skip
