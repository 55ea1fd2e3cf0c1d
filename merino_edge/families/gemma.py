"""Gemma: LLaMA's form with an embedding times the root of its width."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from merino_edge.families.equal_layers import GatedGeometry, Windowed, family
from merino_edge.families.pre_norm import LLAMA
from merino_edge.families.rotary import Positive
from merino_edge.families.weights import ABOVE_ONE, Layout

TANH = "gelu_pytorch_tanh"
FOUR_NORMS = LLAMA._replace(
    norm_behind_attention="post_attention_layernorm", ffn_norm="pre_feedforward_layernorm",
    norm_behind_ffn="post_feedforward_layernorm",
)  # fmt: skip
QueryScalar = Annotated[int, Field(ge=1)]


class GemmaForm:
    """Of `GatedGeometry`: what all Gemma kinds share. A kind with `query_scalar` divides its scores by the root of it,
    instead of that of `head_size`."""

    ACTIVATION: ClassVar[str] = TANH

    width: int
    head_size: int

    @property
    def embedding_factor(self) -> float:
        return float(self.width**0.5)

    @property
    def attention_scale(self) -> float:
        return float(getattr(self, "query_scalar", self.head_size) ** -0.5)

    def layout(self, name: str) -> Layout | None:
        """Return the layout of a weight: the state dict stores each norm's factor minus 1."""
        return ABOVE_ONE if name.endswith("norm.weight") else None


class Gemma1Architecture(GemmaForm, GatedGeometry):
    """Gemma (arXiv 2403.08295). `activation`: of the FFN; its first config.json has GELU by erf."""

    KEYS = {**GatedGeometry.KEYS, "activation": "hidden_act"}

    activation: Literal["gelu_pytorch_tanh", "gelu"]


class Gemma2Architecture(GemmaForm, Windowed, GatedGeometry):
    """Gemma 2 (arXiv 2408.00118), with four norms a layer. `attention_softcap`, `logit_softcap`: the largest score and
    logit, by tanh."""

    KEYS = {
        **GatedGeometry.KEYS, "query_scalar": "query_pre_attn_scalar", "attention_softcap": "attn_logit_softcapping",
        "logit_softcap": "final_logit_softcapping",
    }  # fmt: skip
    WEIGHTS = FOUR_NORMS
    LISTED = "windowed"

    query_scalar: QueryScalar
    attention_softcap: Positive | None
    logit_softcap: Positive | None


class Gemma3Architecture(GemmaForm, Windowed, GatedGeometry):
    """The decoder of text of Gemma 3 (arXiv 2503.19786): four norms a layer, and norms of heads. `local_rope_theta`: of
    layers with the window; those without have `rope_theta` and `rope_scaling`."""

    KEYS = {**GatedGeometry.KEYS, "query_scalar": "query_pre_attn_scalar"}
    WEIGHTS = FOUR_NORMS
    NORMED_HEADS = True
    LISTED = "windowed"

    query_scalar: QueryScalar
    local_rope_theta: Positive


CAUSAL = {"attention_bias": False, "use_bidirectional_attention": False}
GELU = {"hidden_activation": TANH, **CAUSAL}
UNCAPPED = {"final_logit_softcapping": None, "attn_logit_softcapping": None}
FAMILIES = (
    family("gemma", Gemma1Architecture, "Gemma", {"hidden_act": (TANH, "gelu"), **CAUSAL}, ("hidden_activation",)),
    family("gemma2", Gemma2Architecture, "Gemma2", GELU, ("cache_implementation", "hidden_act")),
    family(
        "gemma3_text", Gemma3Architecture, "Gemma3", {**GELU, **UNCAPPED},
        ("cache_implementation", "rope_local_base_freq", "_sliding_window_pattern"), config_name="Gemma3TextConfig",
    ),
)  # fmt: skip
