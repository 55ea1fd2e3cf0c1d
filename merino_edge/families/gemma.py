"""Gemma (arXiv 2403.08295), Gemma 2 (arXiv 2408.00118) and the decoder of text of Gemma 3 (arXiv 2503.19786).

LLaMA's form with an embedding times the root of its width. From Gemma 2 on there are four norms a layer and layers of
sliding-window attention. Gemma 2 caps the scores and the logits. Gemma 3 norms heads, and its windowed layers have
rotary frequencies of their own.
"""

from dataclasses import replace
from typing import Any, ClassVar, Literal

from merino_edge.families.gated import GatedGeometry, WindowedGeometry, gated_family
from merino_edge.families.graph_ops import Attention
from merino_edge.families.pre_norm import Decoder, Layer
from merino_edge.families.rotary import Positive, Rotary, plain_theta, rope_words
from merino_edge.families.weights import ABOVE_ONE, Layout
from merino_runtime.errors import MerinoError

ACTIVATION = "gelu_pytorch_tanh"


class GemmaArchitecture(GatedGeometry):
    """The common part of all Gemma kinds."""

    ACTIVATION: ClassVar[str] = "gelu"

    def decoder(self) -> Decoder:
        return replace(super().decoder(), embedding_factor=self.width**0.5)

    def layout(self, name: str) -> Layout | None:
        """Return the layout of a weight: the state dict stores each norm's factor minus 1."""
        return ABOVE_ONE if name.endswith("norm.weight") else None


class Gemma1Architecture(GemmaArchitecture):
    """A decoder of the first Gemma kind. `exact_gelu`: whether GELU is by erf, as in its first config.json."""

    exact_gelu: bool

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        if config.hidden_act not in ("gelu", ACTIVATION):
            raise MerinoError(f"hidden_act is {config.hidden_act!r}, supported are 'gelu' and {ACTIVATION!r}")
        return {**super().facts(config), "exact_gelu": config.hidden_act == "gelu"}

    def words(self) -> dict[str, Any]:
        return {**super().words(), "hidden_act": "gelu" if self.exact_gelu else ACTIVATION}

    def layer_of(self, layer: int) -> Layer:
        return replace(super().layer_of(layer), activation="gelu_erf" if self.exact_gelu else "gelu")


class GemmaWindowed(WindowedGeometry, GemmaArchitecture):
    """The common part of Gemma 2 and 3. `attention_scale`: factor of the attention scores."""

    NORMS: ClassVar[Literal["both"]] = "both"

    attention_scale: Positive

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        return {**super().facts(config), "attention_scale": getattr(config, "query_pre_attn_scalar", 1) ** -0.5}

    def words(self) -> dict[str, Any]:
        return {**super().words(), "query_pre_attn_scalar": whole(self.attention_scale**-2)}

    def attention_of(self, layer: int) -> Attention:
        return replace(super().attention_of(layer), scale=self.attention_scale)


class Gemma2Architecture(GemmaWindowed):
    """A decoder of the Gemma 2 kind. `attention_softcap`, `logit_softcap`: the largest score and logit, by tanh."""

    attention_softcap: Positive | None
    logit_softcap: Positive | None

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        caps = {"attention_softcap": config.attn_logit_softcapping, "logit_softcap": config.final_logit_softcapping}
        return {**super().facts(config), **caps}

    def words(self) -> dict[str, Any]:
        caps = {"attn_logit_softcapping": self.attention_softcap, "final_logit_softcapping": self.logit_softcap}
        return {**super().words(), **caps}

    def attention_of(self, layer: int) -> Attention:
        return replace(super().attention_of(layer), softcap=self.attention_softcap)

    def decoder(self) -> Decoder:
        return replace(super().decoder(), logit_softcap=self.logit_softcap)


class Gemma3Architecture(GemmaWindowed):
    """A decoder of the Gemma 3 kind. `local_rope_theta`: of layers with the window; those without have `rope_theta` and
    `rope_scaling`."""

    NORMED_HEADS: ClassVar[bool] = True

    local_rope_theta: Positive

    @classmethod
    def rope_of(cls, config: Any) -> dict[str, Any]:
        return dict(config.rope_parameters["full_attention"])

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        return {**super().facts(config), "local_rope_theta": plain_theta(config.rope_parameters["sliding_attention"])}

    def words(self) -> dict[str, Any]:
        words = super().words()
        local = rope_words(self.local_rope_theta, None, self.context)
        return {**words, "rope_parameters": {"full_attention": words["rope_parameters"], "sliding_attention": local}}

    def attention_of(self, layer: int) -> Attention:
        attention = super().attention_of(layer)
        local = Rotary(self.local_rope_theta, self.head_size)
        return replace(attention, rotary=local if self.windowed[layer] else attention.rotary)


def whole(number: float) -> int | float:
    """Return the number as an integer where only rounding keeps it from being one: transformers requires an integer."""
    return round(number) if abs(number - round(number)) < 1e-9 * number else number


CAUSAL = {"attention_bias": False, "use_bidirectional_attention": False}
CAPS = ("final_logit_softcapping", "attn_logit_softcapping")
WINDOWED = {"hidden_activation": ACTIVATION, **CAUSAL}
WORDS = ("query_pre_attn_scalar", "cache_implementation")
FAMILIES = (
    gated_family("gemma", Gemma1Architecture, "Gemma", CAUSAL, ("hidden_act", "hidden_activation")),
    gated_family("gemma2", Gemma2Architecture, "Gemma2", WINDOWED, (*WORDS, *CAPS, "hidden_act")),
    gated_family(
        "gemma3_text", Gemma3Architecture, "Gemma3", {**WINDOWED, **dict.fromkeys(CAPS)},
        (*WORDS, "rope_local_base_freq", "_sliding_window_pattern"), config_name="Gemma3TextConfig",
    ),
)  # fmt: skip
