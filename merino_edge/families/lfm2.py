"""LFM2 and LFM2.5 (arXiv 2511.23404): LLaMA's form with gated short convolutions instead of most attentions, and norms
of heads.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import Field

from merino_edge.families.gated import GATED, GatedGeometry, check_kinds, gated_family
from merino_edge.families.geometry import Keys
from merino_edge.families.graph_ops import KvLayer
from merino_edge.families.operators import SLOTS, Operator, convolution
from merino_edge.families.pre_norm import Decoder, Layer, Linear
from merino_edge.families.weights import TRANSPOSED, Layout

KINDS = {"full_attention": True, "conv": False}  # by layer_types: whether a layer is attention
KEYS = (
    "layer_types", "full_attn_idxs", "conv_L_cache", "block_ff_dim", "block_multiple_of", "block_ffn_dim_multiplier",
    "block_auto_adjust_ff_dim", "tie_embedding",
)  # fmt: skip


class Lfm2Architecture(GatedGeometry):
    """A decoder of the LFM2 kind. `attends`: of each layer, whether it is attention; the others are gated convolutions
    of `taps` taps."""

    NAMES: ClassVar[Keys] = {**GATED, "norm_eps": "norm_eps", "taps": "conv_L_cache"}
    NORMED_HEADS: ClassVar[bool] = True
    HEAD_NORMS: ClassVar[tuple[str, str]] = ("q_layernorm", "k_layernorm")

    width: Annotated[int, Field(ge=8, le=65_536, multiple_of=2)]  # a convolution's input is cached as two halves
    attends: tuple[bool, ...]
    taps: Annotated[int, Field(ge=2, le=16)]

    @classmethod
    def check_layers(cls, config: Any) -> None:
        check_kinds(config, KINDS)

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        attends = tuple(KINDS[kind] for kind in config.layer_types)
        return {**super().facts(config), "attends": attends, "ffn_width": ffn_width(config)}

    def words(self) -> dict[str, Any]:
        kinds = {attends: kind for kind, attends in KINDS.items()}
        listed = [kinds[attends] for attends in self.attends]
        return {**super().words(), "layer_types": listed, "block_auto_adjust_ff_dim": False}

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
        at = f"model.layers.{layer}"
        attention = replace(
            super().layer_of(layer),
            attention_norm=self.norm(f"{at}.operator_norm"),
            out=Linear((f"{at}.self_attn.out_proj.weight",)),
            ffn_norm=self.norm(f"{at}.ffn_norm"),
            up=Linear((f"{at}.feed_forward.w1.weight", f"{at}.feed_forward.w3.weight")),
            down=Linear((f"{at}.feed_forward.w2.weight",)),
        )
        if self.attends[layer]:
            return attention
        return replace(
            attention,
            cache=KvLayer(layer, *self.kv_layers[layer]),
            convolution=f"{at}.conv.conv.weight",
            qkv=Linear((f"{at}.conv.in_proj.weight",)),
            out=Linear((f"{at}.conv.out_proj.weight",)),
        )

    def decoder(self) -> Decoder:
        return replace(super().decoder(), final_norm=self.norm("model.embedding_norm"))

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


FAMILY = gated_family("lfm2", Lfm2Architecture, "Lfm2", {"conv_bias": False}, KEYS)
