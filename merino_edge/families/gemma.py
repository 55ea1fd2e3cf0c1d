"""Gemma (arXiv 2403.08295), Gemma 2 (arXiv 2408.00118) and the decoder of text of Gemma 3 (arXiv 2503.19786).

LLaMA's form with an embedding times the root of its width. From Gemma 2 on there are four norms a layer and layers of
sliding-window attention. Gemma 2 caps the scores and the logits. Gemma 3 norms heads, and its windowed layers have
rotary frequencies of their own.
"""

from typing import Any, ClassVar

from merino_edge.families.equal_layers import WINDOWED, GatedGeometry, HeadNorm, Window, family
from merino_edge.families.geometry import Keys
from merino_edge.families.pre_norm import LLAMA
from merino_edge.families.rotary import Positive, Rotary, plain_theta, rope_words
from merino_edge.families.weights import ABOVE_ONE, Layout
from merino_runtime.errors import MerinoError

TANH = "gelu_pytorch_tanh"
FOUR_NORMS = LLAMA._replace(
    norm_behind_attention="post_attention_layernorm", ffn_norm="pre_feedforward_layernorm",
    norm_behind_ffn="post_feedforward_layernorm",
)  # fmt: skip


class GemmaGeometry(GatedGeometry):
    """The common part of all Gemma kinds."""

    ACTIVATION: ClassVar[str] = "gelu"

    @property
    def embedding_factor(self) -> float:
        return float(self.width**0.5)

    def layout(self, name: str) -> Layout | None:
        """Return the layout of a weight: the state dict stores each norm's factor minus 1."""
        return ABOVE_ONE if name.endswith("norm.weight") else None


class Gemma1Architecture(GemmaGeometry):
    """A decoder of the first Gemma kind. `exact_gelu`: whether GELU is by erf, as in its first config.json."""

    exact_gelu: bool

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        if config.hidden_act not in ("gelu", TANH):
            raise MerinoError(f"hidden_act is {config.hidden_act!r}, supported are 'gelu' and {TANH!r}")
        return {**super().facts(config), "exact_gelu": config.hidden_act == "gelu"}

    def words(self) -> dict[str, Any]:
        return {**super().words(), "hidden_act": "gelu" if self.exact_gelu else TANH}

    @property
    def activation(self) -> str:
        return "gelu_erf" if self.exact_gelu else "gelu"


class GemmaWindowed(GemmaGeometry):
    """The common part of Gemma 2 and 3.

    Attributes:
        window, windowed: as in Mistral.
        attention_scale: factor of the attention scores.
    """

    WEIGHTS = FOUR_NORMS
    KINDS = WINDOWED
    LISTED: ClassVar[str] = "windowed"

    window: Window | None = None
    windowed: tuple[bool, ...]
    attention_scale: Positive

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        return {**super().facts(config), "attention_scale": getattr(config, "query_pre_attn_scalar", 1) ** -0.5}

    def words(self) -> dict[str, Any]:
        return {**super().words(), "query_pre_attn_scalar": whole(self.attention_scale**-2)}


class Gemma2Architecture(GemmaWindowed):
    """A decoder of the Gemma 2 kind. `attention_softcap`, `logit_softcap`: the largest score and logit, by tanh."""

    KEYS: ClassVar[Keys] = {
        **GatedGeometry.KEYS, "attention_softcap": "attn_logit_softcapping",
        "logit_softcap": "final_logit_softcapping",
    }  # fmt: skip

    attention_softcap: Positive | None
    logit_softcap: Positive | None


class Gemma3Architecture(GemmaWindowed):
    """A decoder of the Gemma 3 kind. `local_rope_theta`: of layers with the window; those without have `rope_theta` and
    `rope_scaling`."""

    NORMED_HEADS: ClassVar[HeadNorm] = True

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

    def rotary_of(self, layer: int) -> Rotary | None:
        return Rotary(self.local_rope_theta, self.head_size) if self.windowed[layer] else super().rotary_of(layer)


def whole(number: float) -> int | float:
    """Return the number as an integer where only rounding keeps it from being one: transformers requires an integer."""
    return round(number) if abs(number - round(number)) < 1e-9 * number else number


CAUSAL = {"attention_bias": False, "use_bidirectional_attention": False}
GELU = {"hidden_activation": TANH, **CAUSAL}
UNCAPPED = {"final_logit_softcapping": None, "attn_logit_softcapping": None}
WORDS = ("query_pre_attn_scalar", "cache_implementation")
FAMILIES = (
    family("gemma", Gemma1Architecture, "Gemma", CAUSAL, ("hidden_act", "hidden_activation")),
    family("gemma2", Gemma2Architecture, "Gemma2", GELU, (*WORDS, "hidden_act")),
    family(
        "gemma3_text", Gemma3Architecture, "Gemma3", {**GELU, **UNCAPPED},
        (*WORDS, "rope_local_base_freq", "_sliding_window_pattern"), config_name="Gemma3TextConfig",
    ),
)  # fmt: skip
