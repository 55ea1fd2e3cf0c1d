"""Granite 3 (IBM; arXiv 2408.13359 has its multipliers): LLaMA's form with four of them.

Also Granite 4.0 where all layers are attention and the FFN is one, as in the smallest ones: the same form without
experts and without Mamba layers, with a packed gate.
"""

from dataclasses import replace
from typing import Any

from merino_edge.families.gated import GatedGeometry, gated_family
from merino_edge.families.geometry import Keys, facts_by, words_by
from merino_edge.families.graph_ops import Attention
from merino_edge.families.llama import NO_BIAS
from merino_edge.families.pre_norm import Decoder, Layer, Linear
from merino_edge.families.rotary import Positive

MULTIPLIED: Keys = {
    "embedding_multiplier": "embedding_multiplier", "residual_multiplier": "residual_multiplier",
    "attention_multiplier": "attention_multiplier", "logits_divisor": "logits_scaling",
}  # fmt: skip
# Keys of Mamba layers and experts, which such a model has not: not read.
UNUSED = {
    "mamba_n_heads", "mamba_n_groups", "mamba_d_state", "mamba_d_head", "mamba_d_conv", "mamba_expand",
    "mamba_chunk_size", "mamba_conv_bias", "mamba_proj_bias", "time_step_limit", "num_experts_per_tok",
    "output_router_logits", "router_aux_loss_coef", "init_method",
}  # fmt: skip


class GraniteArchitecture(GatedGeometry):
    """A decoder of the Granite kind.

    Attributes:
        embedding_multiplier, residual_multiplier: on the embedding, and on what a sublayer adds to the residual.
        attention_multiplier: factor of the attention scores, in place of 1 / sqrt(head_size).
        logits_divisor: of the logits.
    """

    embedding_multiplier: Positive
    residual_multiplier: Positive
    attention_multiplier: Positive
    logits_divisor: Positive

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        return super().facts(config) | facts_by(MULTIPLIED, config)

    def words(self) -> dict[str, Any]:
        return super().words() | words_by(MULTIPLIED, self)

    def attention_of(self, layer: int) -> Attention:
        return replace(super().attention_of(layer), scale=self.attention_multiplier)

    def decoder(self) -> Decoder:
        return replace(
            super().decoder(),
            embedding_factor=self.embedding_multiplier,
            residual_factor=self.residual_multiplier,
            logit_factor=1 / self.logits_divisor,
        )


class GraniteHybridArchitecture(GraniteArchitecture):
    """A decoder of the Granite 4.0 kind, of attention layers only."""

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        return super().facts(config) | {"ffn_width": config.shared_intermediate_size}

    def words(self) -> dict[str, Any]:
        return {
            **super().words(),
            "shared_intermediate_size": self.ffn_width,
            "num_local_experts": 0,
            "layer_types": ["full_attention"] * self.layers,
            "position_embedding_type": "rope",
            "mamba_n_heads": 1,  # transformers requires a divisor of twice the width, without Mamba layers too
        }

    def layer_of(self, layer: int) -> Layer:
        at = f"model.layers.{layer}.shared_mlp"
        up, down = Linear((f"{at}.input_linear.weight",)), Linear((f"{at}.output_linear.weight",))
        return replace(super().layer_of(layer), up=up, down=down)


FAMILIES = (
    gated_family("granite", GraniteArchitecture, "Granite", {**NO_BIAS, "mlp_bias": False}, MULTIPLIED.values()),
    gated_family(
        "granitemoehybrid", GraniteHybridArchitecture, "GraniteMoeHybrid",
        {**NO_BIAS, "num_local_experts": 0, "position_embedding_type": "rope", "normalization_function": "rmsnorm"},
        {*MULTIPLIED.values(), *UNUSED, "shared_intermediate_size", "layer_types", "layers_block_type"},
    ),
)  # fmt: skip
