"""LLaMA's form with layers that differ in their attention, and Phi-3's with a window."""

from typing import Any

import numpy as np

from merino_edge.families.equal_layers import (
    WINDOW_KEYS,
    GatedGeometry,
    HeadNorm,
    Rotated,
    Windowed,
    family,
    in_heads,
)
from merino_edge.families.llama import NO_BIAS, NO_BIASES, SILU
from merino_edge.families.pre_norm import LLAMA, NORMS_BEHIND
from merino_edge.families.rotary import ORIGINAL
from merino_edge.families.weights import Layout, permuted
from merino_runtime.errors import MerinoError

BETA = "llama_4_scaling_beta"
UNREAD = (BETA, "max_position_embeddings")  # of `rope_parameters`


class SmolLm3Architecture(GatedGeometry):
    """SmolLM3. `rotated_layers`: of each layer, whether it has positions."""

    KEYS = {**GatedGeometry.KEYS, "rotated_layers": "no_rope_layers"}

    rotated_layers: tuple[bool, ...]


class Llama4Architecture(GatedGeometry):
    """The decoder of text of Llama 4 without experts, as MobileLLM-R1 (arXiv 2509.24945): layers without positions, and
    norms of heads without weights.

    Attributes:
        rotated_layers: of each layer, whether it has positions.
        normed_heads: whether the rotated layers norm queries and keys.
    """

    KEYS = {
        **GatedGeometry.KEYS, "ffn_width": "intermediate_size_mlp", "rotated_layers": "no_rope_layers",
        "normed_heads": "use_qk_norm",
    }  # fmt: skip
    WEIGHTS = LLAMA._replace(up="feed_forward.gate_proj feed_forward.up_proj", down="feed_forward.down_proj")
    INTERLEAVED = True
    KINDS = dict.fromkeys(("full_attention", "chunked_attention"), True)

    rotated_layers: tuple[bool, ...]
    normed_heads: bool

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        """Return the fields. Attention is full within a chunk, and its temperature is 1 within `floor_scale`, so the
        context ends there."""
        facts = super().facts(config)
        if "chunked_attention" in config.layer_types:
            facts["context"] = min(facts["context"], config.attention_chunk_size)
        if config.attn_temperature_tuning and not all(config.no_rope_layers):
            facts["context"] = min(facts["context"], config.floor_scale - 1)
        return facts

    def words(self) -> dict[str, Any]:
        listed = ["full_attention"] * self.layers
        return {**super().words(), "moe_layers": [], "layer_types": listed, "attn_temperature_tuning": False}

    def head_norms(self, layer: int) -> HeadNorm:
        return "plain" if self.normed_heads and self.rotated_layers[layer] else False


class MistralArchitecture(Windowed, GatedGeometry):
    """Mistral (arXiv 2310.06825): all layers have the window, or none."""


class MinistralArchitecture(Windowed, GatedGeometry):
    """Ministral: some layers have the window."""

    LISTED = "windowed"


class Ministral3Architecture(Windowed, GatedGeometry):
    """Ministral 3. Its scores grow behind the original context, so its context ends there."""

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


class Exaone4Architecture(Windowed, GatedGeometry):
    """EXAONE 4 (arXiv 2507.11407): norms of heads, and its other norms behind attention and FFN. If it has layers
    with a window, only these have positions."""

    WEIGHTS = NORMS_BEHIND
    NORMED_HEADS = True
    LISTED = "windowed"

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        facts = super().facts(config)
        if config.sliding_window is not None and not any(facts["windowed"]):
            raise MerinoError(f"sliding_window is {config.sliding_window}, and layer_types has no layer with it")
        return facts

    @property
    def rotated_layers(self) -> tuple[bool, ...]:
        return self.windowed if self.window else (True,) * self.layers


class Phi3Architecture(Windowed, GatedGeometry):
    """Phi-3 (arXiv 2404.14219) and Phi-4-mini (arXiv 2503.01743): packed matrices, and LongRoPE over a part of each
    head. `rotated`: channels of each head that have positions, the first ones in torch."""

    WEIGHTS = LLAMA._replace(qkv="self_attn.qkv_proj", up="mlp.gate_up_proj")

    rotated: Rotated

    @classmethod
    def rope_of(cls, config: Any) -> dict[str, Any]:
        words = super().rope_of(config)
        long = words.get("rope_type") == "longrope"
        return {ORIGINAL: config.original_max_position_embeddings, **words} if long else words

    def layout(self, name: str) -> Layout | None:
        order = self.key_order()
        if order is None or "qkv_proj" not in name:
            return None
        turned, values = self.heads + self.kv_heads, self.kv_heads * self.head_size
        return permuted(np.concatenate([in_heads(order, turned), turned * self.head_size + np.arange(values)]))


LLAMA4_KEYS = (
    "layer_types", "no_rope_layer_interval", "attention_chunk_size", "num_experts_per_tok",
    "num_local_experts", "interleave_moe_layer_step", "intermediate_size", "output_router_logits",
    "router_aux_loss_coef", "router_jitter_noise", "attn_temperature_tuning", "floor_scale", "attn_scale",
)  # fmt: skip
FAMILIES = (
    family(
        "smollm3", SmolLm3Architecture, "SmolLM3", {**NO_BIASES, "use_sliding_window": False},
        (*WINDOW_KEYS, "max_window_layers", "no_rope_layer_interval"),
    ),
    family("mistral", MistralArchitecture, "Mistral", SILU),
    family("ministral", MinistralArchitecture, "Ministral", SILU),
    family("ministral3", Ministral3Architecture, "Ministral3", SILU),
    family("exaone4", Exaone4Architecture, "Exaone4", SILU),
    family("phi3", Phi3Architecture, "Phi3", SILU, (ORIGINAL,)),
    family(
        "llama4_text", Llama4Architecture, "Llama4", {**NO_BIAS, "moe_layers": []}, LLAMA4_KEYS,
        config_name="Llama4TextConfig",
    ),
)  # fmt: skip
