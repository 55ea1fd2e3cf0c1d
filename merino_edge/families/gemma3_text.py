"""Gemma 3 (arXiv 2503.19786), its decoder of text.

LLaMA's form with four norms a layer, norms of heads, an embedding times the root of its width, and layers of
sliding-window attention, whose rotary frequencies have another base.
"""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from merino_edge.families.family import Family
from merino_edge.families.gated import GATED_KEYS, GatedGeometry, build_gated, gated_words, shape_facts
from merino_edge.families.graph_ops import Attention
from merino_edge.families.pre_norm import Decoder, Layer
from merino_edge.families.rotary import Positive, Rotary, plain_theta, rope_facts, rope_words
from merino_edge.families.weights import ABOVE_ONE, Layout
from merino_runtime.bundle.schema import LONGEST_CONTEXT
from merino_runtime.errors import MerinoError

KINDS = {"full_attention": False, "sliding_attention": True}  # by layer_types: whether a layer has the window


class Gemma3Architecture(GatedGeometry):
    """A decoder of the Gemma 3 kind.

    Attributes:
        attention_scale: factor of the attention scores.
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
        attention = replace(super().attention_of(layer), scale=self.attention_scale)
        if not self.windowed[layer]:
            return attention
        return replace(attention, rotary=Rotary(self.local_rope_theta, self.head_size), window=self.window)

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


def layout(_geometry: Gemma3Architecture, name: str) -> Layout | None:
    """Return the layout of a weight: the state dict stores each norm's factor minus 1."""
    return ABOVE_ONE if name.endswith("norm.weight") else None


def config_words(geometry: Gemma3Architecture) -> dict[str, Any]:
    kinds = {windowed: kind for kind, windowed in KINDS.items()}
    return {
        **gated_words(geometry),
        "rope_parameters": {
            "full_attention": rope_words(geometry.rope_theta, geometry.rope_scaling),
            "sliding_attention": rope_words(geometry.local_rope_theta, None),
        },
        "sliding_window": geometry.window,
        "query_pre_attn_scalar": whole(geometry.attention_scale**-2),
        "layer_types": [kinds[windowed] for windowed in geometry.windowed],
    }


def whole(number: float) -> int | float:
    """Return the number as an integer where only rounding keeps it from being one: transformers requires an integer."""
    return round(number) if abs(number - round(number)) < 1e-9 * number else number


def geometry_of(config: Any) -> Gemma3Architecture:
    unknown = sorted({str(kind) for kind in config.layer_types} - set(KINDS))
    if unknown:
        raise MerinoError(f"layer_types has {', '.join(map(repr, unknown))}, known are {', '.join(map(repr, KINDS))}")
    return Gemma3Architecture(
        **shape_facts(config), **rope_facts(config.rope_parameters["full_attention"]),
        attention_scale=config.query_pre_attn_scalar**-0.5,
        window=config.sliding_window,
        windowed=tuple(KINDS[kind] for kind in config.layer_types),
        local_rope_theta=plain_theta(config.rope_parameters["sliding_attention"]),
    )


FAMILY = Family(
    name="gemma3_text",
    geometry=Gemma3Architecture,
    build_graph=build_gated,
    config_name="Gemma3TextConfig",
    model_name="Gemma3ForCausalLM",
    supported={
        "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "final_logit_softcapping": None,
        "attn_logit_softcapping": None, "use_bidirectional_attention": False,
    },
    keys=GATED_KEYS | {
        "query_pre_attn_scalar", "sliding_window", "layer_types", "rope_local_base_freq", "_sliding_window_pattern",
        "sliding_window_pattern",
    },
    config_words=config_words,
    geometry_of=geometry_of,
    layout=layout,
)  # fmt: skip
