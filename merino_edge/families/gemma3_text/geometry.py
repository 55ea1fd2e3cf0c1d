"""The geometry of Gemma 3's decoder of text (arXiv 2503.19786).

LLaMA's form with four norms a layer, norms of heads, an embedding times the root of its width, and layers that look
back a window only, of which the rotary frequencies have a base of their own.
"""

from dataclasses import replace
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from merino_edge.families.gated import GatedGeometry
from merino_edge.families.graph_ops import Attention
from merino_edge.families.pre_norm import Decoder, Layer
from merino_edge.families.rotary import Positive, Rotary
from merino_edge.families.weight_layout import ABOVE_ONE, Layout
from merino_runtime.bundle_schema import LONGEST_CONTEXT


class Gemma3Architecture(GatedGeometry):
    """A decoder of the Gemma 3 kind.

    Attributes:
        attention_scale: of products of queries and keys.
        window: positions that a layer with a window sees, its own included.
        windowed: of each layer, whether it has the window; the others see all positions.
        local_rope_theta: of layers with the window; those without have `rope_theta` and `rope_scaling`.
    """

    NORMED_HEADS: ClassVar[bool] = True
    NORMS_BEHIND: ClassVar[bool] = True
    ACTIVATION: ClassVar[str] = "gelu"

    attention_scale: Positive
    window: Annotated[int, Field(ge=1, le=LONGEST_CONTEXT)]
    windowed: tuple[bool, ...]
    local_rope_theta: Positive

    @model_validator(mode="after")
    def _of_each_layer(self) -> Self:
        if len(self.windowed) != self.layers:
            raise ValueError(f"windowed has {len(self.windowed)} entries for {self.layers} layers")
        return self

    def attention_of(self, layer: int) -> Attention:
        found = replace(super().attention_of(layer), scale=self.attention_scale)
        if not self.windowed[layer]:
            return found
        return replace(found, rotary=Rotary(self.local_rope_theta, self.head_size), window=self.window)

    def layer_of(self, layer: int) -> Layer:
        at = f"model.layers.{layer}"
        return replace(
            super().layer_of(layer),
            norm_behind_attention=self.rms_norm(f"{at}.post_attention_layernorm"),
            ffn_norm=self.rms_norm(f"{at}.pre_feedforward_layernorm"),
            norm_behind_ffn=self.rms_norm(f"{at}.post_feedforward_layernorm"),
        )

    def decoder(self) -> Decoder:
        return replace(super().decoder(), embedding_factor=self.width**0.5)


def gemma3_layout(_geometry: Gemma3Architecture, name: str) -> Layout | None:
    """The state dict has of each norm's factor what it is more than 1."""
    return ABOVE_ONE if name.endswith("norm.weight") else None
