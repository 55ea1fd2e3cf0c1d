"""LFM2: LLaMA's form with gated short convolutions instead of most attentions."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from merino_edge.families.equal_layers import GatedGeometry, family
from merino_edge.families.graph_ops import KvLayer
from merino_edge.families.operators import SLOTS, Operator, convolution
from merino_edge.families.pre_norm import LLAMA, Layer, Linear
from merino_edge.families.weights import TRANSPOSED, Layout

MORE_KEYS = (
    "layer_types", "full_attn_idxs", "conv_L_cache", "block_ff_dim", "block_multiple_of", "block_ffn_dim_multiplier",
    "block_auto_adjust_ff_dim", "tie_embedding",
)  # fmt: skip


class Lfm2Architecture(GatedGeometry):
    """LFM2 and LFM2.5 (arXiv 2511.23404), with norms of heads. `attends`: of each layer, whether it is attention; the
    others are gated convolutions of `taps` taps."""

    KEYS = {**GatedGeometry.KEYS, "norm_eps": "norm_eps", "taps": "conv_L_cache"}
    WEIGHTS = LLAMA._replace(
        attention_norm="operator_norm", query_norm="self_attn.q_layernorm", key_norm="self_attn.k_layernorm",
        out="self_attn.out_proj", ffn_norm="ffn_norm", up="feed_forward.w1 feed_forward.w3", down="feed_forward.w2",
        final_norm="model.embedding_norm",
    )  # fmt: skip
    NORMED_HEADS = True
    KINDS = {"full_attention": True, "conv": False}
    LISTED = "attends"

    width: Annotated[int, Field(ge=8, le=65_536, multiple_of=2)]  # a convolution's input is cached as two halves
    attends: tuple[bool, ...]
    taps: Annotated[int, Field(ge=2, le=16)]

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        return {**super().facts(config), "ffn_width": ffn_width(config)}

    def words(self) -> dict[str, Any]:
        return {**super().words(), "block_auto_adjust_ff_dim": False}

    @property
    def operators(self) -> list[Operator]:
        return [*super().operators, *[SLOTS] * (not all(self.attends))]

    def mixer(self, layer: int, final: bool) -> Iterable[Operator]:
        return super().mixer(layer, final) if self.attends[layer] else convolution(self.width, self.taps, final=final)

    @property
    def kv_layers(self) -> list[tuple[int, int]]:
        """A convolution caches its input like keys and values, half of the channels as each."""
        return [(self.kv_heads, self.head_size) if attends else (1, self.width // 2) for attends in self.attends]

    def layer_of(self, layer: int) -> Layer:
        at, attention = f"model.layers.{layer}.conv", super().layer_of(layer)
        if self.attends[layer]:
            return attention
        return replace(
            attention,
            cache=KvLayer(layer, *self.kv_layers[layer]),
            convolution=f"{at}.conv.weight",
            qkv=Linear((f"{at}.in_proj.weight",)),
            out=Linear((f"{at}.out_proj.weight",)),
        )

    def layout(self, name: str) -> Layout | None:
        """The graph has taps as [taps, 1, width]."""
        return TRANSPOSED if name.endswith(".conv.conv.weight") else super().layout(name)


def ffn_width(config: Any) -> int:
    """Return the channels inside the FFN, as transformers computes them."""
    if not config.block_auto_adjust_ff_dim:
        return int(config.intermediate_size)
    width = int(2 * config.intermediate_size / 3)
    if config.block_ffn_dim_multiplier is None:
        return width
    multiple = int(config.block_multiple_of)
    return -(-int(config.block_ffn_dim_multiplier * width) // multiple) * multiple


FAMILY = family("lfm2", Lfm2Architecture, "Lfm2", {"conv_bias": False}, MORE_KEYS)
