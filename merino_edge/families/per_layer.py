"""LLaMA's form where layers differ in their attention.

SmolLM3 has layers without positions. Mistral (arXiv 2310.06825) and Ministral have layers of sliding-window attention.
EXAONE 4 (arXiv 2507.11407) has both, norms of heads, and its other norms behind attention and FFN. The decoder of text
of Llama 4, as MobileLLM-R1 (arXiv 2509.24945) has it without experts, has layers without positions, and norms heads
without weights.
"""

from dataclasses import replace
from typing import Any, ClassVar, Literal

from merino_edge.families.gated import GATED, WINDOW_KEYS, GatedGeometry, WindowedGeometry, gated_family
from merino_edge.families.geometry import Keys
from merino_edge.families.graph_ops import Attention
from merino_edge.families.llama import NO_BIAS, SILU
from merino_edge.families.rotary import ORIGINAL
from merino_runtime.errors import MerinoError

BETA = "llama_4_scaling_beta"
UNREAD = (BETA, "max_position_embeddings")  # of `rope_parameters`


class SmolLm3Architecture(GatedGeometry):
    """A decoder of the SmolLM3 kind. `rotated_layers`: of each layer, whether it has positions."""

    rotated_layers: tuple[bool, ...]

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        return {**super().facts(config), "rotated_layers": tuple(bool(rotated) for rotated in config.no_rope_layers)}

    def words(self) -> dict[str, Any]:
        return {**super().words(), "no_rope_layers": [int(rotated) for rotated in self.rotated_layers]}

    def attention_of(self, layer: int) -> Attention:
        attention = super().attention_of(layer)
        return attention if self.rotated_layers[layer] else replace(attention, rotary=None)


class Llama4Architecture(SmolLm3Architecture):
    """A decoder of the Llama 4 kind, of text and without experts."""

    NAMES: ClassVar[Keys] = {**GATED, "ffn_width": "intermediate_size_mlp"}
    FFN: ClassVar[str] = "feed_forward"
    INTERLEAVED: ClassVar[bool] = True

    normed_heads: bool

    @classmethod
    def check_layers(cls, config: Any) -> None:
        other = sorted(set(config.layer_types) - {"full_attention", "chunked_attention"})
        if other:
            raise MerinoError(f"layer_types has {', '.join(map(repr, other))}, which is not known")

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        """Return the fields. Attention is full within a chunk, and its temperature is 1 within `floor_scale`, so the
        context ends there."""
        if config.moe_layers:
            raise MerinoError(f"moe_layers is {config.moe_layers}, supported is a model without experts")
        limits = [config.max_position_embeddings]
        if "chunked_attention" in config.layer_types:
            limits.append(config.attention_chunk_size)
        if config.attn_temperature_tuning and not all(config.no_rope_layers):
            limits.append(config.floor_scale - 1)
        facts = super().facts(config)
        return {**facts, "context": min(facts["context"], *limits), "normed_heads": config.use_qk_norm}

    def words(self) -> dict[str, Any]:
        return {
            **super().words(), "use_qk_norm": self.normed_heads, "moe_layers": [],
            "layer_types": ["full_attention"] * self.layers, "attn_temperature_tuning": False,
        }  # fmt: skip

    def head_norms(self, layer: int) -> bool | Literal["whole", "plain"]:
        return "plain" if self.normed_heads and self.rotated_layers[layer] else False


class MistralArchitecture(WindowedGeometry):
    """A decoder of the Mistral kind."""

    LISTED: ClassVar[bool] = False


class MinistralArchitecture(WindowedGeometry):
    """A decoder of the Ministral kind."""


class Ministral3Architecture(MistralArchitecture):
    """A decoder of the Ministral 3 kind. Its scores grow behind the original context, so its context ends there."""

    @classmethod
    def rope_of(cls, config: Any) -> dict[str, Any]:
        words = super().rope_of(config)
        unread = (*UNREAD, ORIGINAL) if words["rope_type"] == "default" else UNREAD
        return {key: value for key, value in words.items() if key not in unread}

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        facts = super().facts(config)
        if config.rope_parameters.get(BETA):
            facts["context"] = min(facts["context"], int(config.rope_parameters[ORIGINAL]))
        return facts

    def words(self) -> dict[str, Any]:
        words = super().words()
        return {**words, "rope_parameters": {ORIGINAL: self.context, **words["rope_parameters"], BETA: 0.0}}


class Exaone4Architecture(WindowedGeometry):
    """A decoder of the EXAONE 4 kind. If it has layers with a window, only these have positions."""

    NORMED_HEADS: ClassVar[bool] = True
    NORMS: ClassVar[Literal["behind"]] = "behind"

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        facts = super().facts(config)
        if config.sliding_window is not None and not any(facts["windowed"]):
            raise MerinoError(f"sliding_window is {config.sliding_window}, and layer_types has no layer with it")
        return facts

    def attention_of(self, layer: int) -> Attention:
        attention = super().attention_of(layer)
        return replace(attention, rotary=attention.rotary if self.window is None or self.windowed[layer] else None)


FAMILIES = (
    gated_family(
        "smollm3", SmolLm3Architecture, "SmolLM3", {**NO_BIAS, "mlp_bias": False, "use_sliding_window": False},
        (*WINDOW_KEYS, "max_window_layers", "no_rope_layers", "no_rope_layer_interval"),
    ),
    gated_family("mistral", MistralArchitecture, "Mistral", SILU),
    gated_family("ministral", MinistralArchitecture, "Ministral", SILU),
    gated_family("ministral3", Ministral3Architecture, "Ministral3", SILU),
    gated_family("exaone4", Exaone4Architecture, "Exaone4", SILU),
    gated_family(
        "llama4_text", Llama4Architecture, "Llama4", NO_BIAS, config_name="Llama4TextConfig",
        keys=(
            "layer_types", "no_rope_layers", "no_rope_layer_interval", "attention_chunk_size", "use_qk_norm",
            "moe_layers", "num_experts_per_tok", "num_local_experts", "interleave_moe_layer_step", "intermediate_size",
            "output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "attn_temperature_tuning",
            "floor_scale", "attn_scale",
        ),
    ),
)  # fmt: skip
