"""Granite 3 (IBM; arXiv 2408.13359 has its multipliers): LLaMA's form with four of them."""

from dataclasses import replace
from typing import Any

from merino_edge.families.family import Family
from merino_edge.families.gated import GATED_KEYS, GatedGeometry, build_gated, gated_facts, gated_words
from merino_edge.families.geometry import Keys, facts_by, words_by
from merino_edge.families.graph_ops import Attention
from merino_edge.families.pre_norm import Decoder
from merino_edge.families.rotary import Positive

MULTIPLIED: Keys = {
    "embedding_multiplier": "embedding_multiplier", "residual_multiplier": "residual_multiplier",
    "attention_multiplier": "attention_multiplier", "logits_divisor": "logits_scaling",
}  # fmt: skip
MULTIPLIER_KEYS = frozenset(MULTIPLIED.values())


class MultipliedGeometry(GatedGeometry):
    """A decoder of LLaMA's form with multipliers.

    Attributes:
        embedding_multiplier, residual_multiplier: on the embedding, and on what a sublayer adds to the residual.
        attention_multiplier: factor of the attention scores, in place of 1 / sqrt(head_size).
        logits_divisor: of the logits.
    """

    embedding_multiplier: Positive
    residual_multiplier: Positive
    attention_multiplier: Positive
    logits_divisor: Positive

    def attention_of(self, layer: int) -> Attention:
        return replace(super().attention_of(layer), scale=self.attention_multiplier)

    def decoder(self) -> Decoder:
        return replace(
            super().decoder(),
            embedding_factor=self.embedding_multiplier,
            residual_factor=self.residual_multiplier,
            logit_factor=1 / self.logits_divisor,
        )


class GraniteArchitecture(MultipliedGeometry):
    """A decoder of the Granite kind."""


def multiplied_words(geometry: MultipliedGeometry) -> dict[str, Any]:
    """Return arguments of transformers' configuration."""
    return gated_words(geometry) | words_by(MULTIPLIED, geometry)


def multiplied_facts(config: Any) -> dict[str, Any]:
    """Return all fields of a `MultipliedGeometry`."""
    return gated_facts(config) | facts_by(MULTIPLIED, config)


def geometry_of(config: Any) -> GraniteArchitecture:
    return GraniteArchitecture(**multiplied_facts(config))


FAMILY = Family(
    name="granite",
    geometry=GraniteArchitecture,
    build_graph=build_gated,
    config_name="GraniteConfig",
    model_name="GraniteForCausalLM",
    supported={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    keys=GATED_KEYS | MULTIPLIER_KEYS,
    config_words=multiplied_words,
    geometry_of=geometry_of,
)
