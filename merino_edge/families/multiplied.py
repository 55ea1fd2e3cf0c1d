"""Decoders of LLaMA's form whose embedding, attention, residuals and logits are multiplied by constants (Granite)."""

from dataclasses import replace

from merino_edge.families.gated import GatedGeometry
from merino_edge.families.graph_ops import Attention
from merino_edge.families.pre_norm import Decoder
from merino_edge.families.rotary import Positive


class MultipliedGeometry(GatedGeometry):
    """A decoder with multipliers.

    Attributes:
        embedding_multiplier, residual_multiplier: on the embedding, and on what a sublayer adds to the residual.
        attention_multiplier: of products of queries and keys, in place of 1 / sqrt(head_size).
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
