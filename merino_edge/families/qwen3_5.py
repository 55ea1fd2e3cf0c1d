"""Qwen3.5, the decoder of text: most layers are gated DeltaNet (arXiv 2412.06464), linear attention with a recurrent
state. The others are attention with an output gate and norms of heads, which rotates a part of each head.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, model_validator

from merino_edge.families.equal_layers import GatedGeometry, Heads, Rotated, family, in_heads
from merino_edge.families.geometry import attention_operators
from merino_edge.families.graph_ops import Attention, Delta, KvLayer, Norm
from merino_edge.families.llama import NO_BIAS
from merino_edge.families.operators import Operator, delta_net
from merino_edge.families.pre_norm import Layer, Linear
from merino_edge.families.weights import ABOVE_ONE, Layout, permuted

Size = Annotated[int, Field(ge=4, le=1024, multiple_of=4)]


class Qwen35Architecture(GatedGeometry):
    """A decoder of the Qwen3.5 kind.

    Attributes:
        rotated: channels of each head of attention that have positions, the first ones in torch.
        attends: of each layer, whether it is attention; the others are gated DeltaNet.
        key_heads, value_heads, key_size, value_size: heads of DeltaNet and their channels; a group of `value_heads /
            key_heads` value heads shares a key head.
        taps: of the causal convolution before DeltaNet.
    """

    KEYS = {
        **GatedGeometry.KEYS, "key_heads": "linear_num_key_heads", "value_heads": "linear_num_value_heads",
        "key_size": "linear_key_head_dim", "value_size": "linear_value_head_dim", "taps": "linear_conv_kernel_dim",
    }  # fmt: skip
    NORMED_HEADS = True
    KINDS = {"full_attention": True, "linear_attention": False}
    LISTED = "attends"

    rotated: Rotated
    attends: tuple[bool, ...]
    key_heads: Heads
    value_heads: Heads
    key_size: Size
    value_size: Size
    taps: Annotated[int, Field(ge=2, le=16)]

    @classmethod
    def rope_of(cls, config: Any) -> dict[str, Any]:
        """The positions of text are the same in all sections."""
        return {key: value for key, value in super().rope_of(config).items() if not key.startswith("mrope_")}

    @model_validator(mode="after")
    def _value_heads(self) -> Self:
        if self.value_heads % self.key_heads:
            raise ValueError(f"value_heads {self.value_heads} is not a multiple of key_heads {self.key_heads}")
        return self

    def delta_of(self, layer: int) -> Delta:
        at = f"model.layers.{layer}.linear_attn"
        return Delta(
            index=self.attends[:layer].count(False), key_heads=self.key_heads, value_heads=self.value_heads,
            key_size=self.key_size, value_size=self.value_size, taps=f"{at}.conv1d.weight", decay=f"{at}.A_log",
            step=f"{at}.dt_bias", norm=Norm(f"{at}.norm.weight", None, self.norm_eps),
        )  # fmt: skip

    def mixer(self, layer: int, final: bool) -> Iterable[Operator]:
        if self.attends[layer]:
            return attention_operators(self, final, gated=True)
        return delta_net(self.width, self.delta_of(layer).sizes, self.taps, final=final)

    @property
    def kv_layers(self) -> list[tuple[int, int]]:
        return [(self.kv_heads, self.head_size)] * sum(self.attends)

    def attention_of(self, layer: int) -> Attention:
        return replace(super().attention_of(layer), gated=True)

    def layer_of(self, layer: int) -> Layer:
        cache = KvLayer(self.attends[:layer].count(True), self.kv_heads, self.head_size)
        attention = replace(super().layer_of(layer), cache=cache)
        if self.attends[layer]:
            return attention
        at = f"model.layers.{layer}.linear_attn"
        packed = Linear(tuple(f"{at}.in_proj_{part}.weight" for part in ("qkv", "z", "b", "a")))
        return replace(attention, qkv=packed, out=Linear((f"{at}.out_proj.weight",)), delta=self.delta_of(layer))

    def layout(self, name: str) -> Layout | None:
        """The graph has the gates behind all queries, factors of norms without minus 1, and decays instead of their
        logarithms."""
        part, order = name.split(".")[-2], self.key_order()
        order = np.arange(self.head_size) if order is None else order
        back = np.argsort(order)
        if name.endswith("A_log"):
            return Layout(lambda weight: -np.exp(weight), lambda weight: np.log(-weight))
        if part in ("q_norm", "k_norm"):
            return Layout(lambda weight: 1 + weight[order], lambda weight: weight[back] - 1)
        if part.endswith("layernorm") or name == "model.norm.weight":
            return ABOVE_ONE
        if part == "q_proj":
            size = self.head_size
            heads = 2 * size * np.arange(self.heads)[:, None]
            return permuted(np.concatenate([(heads + order).ravel(), (heads + size + np.arange(size)).ravel()]))
        return permuted(in_heads(order, self.kv_heads)) if part == "k_proj" else None


MORE_KEYS = ("layer_types", "full_attention_interval", "mlp_only_layers", "attn_output_gate", "mamba_ssm_dtype")
FAMILY = family("qwen3_5_text", Qwen35Architecture, "Qwen3_5", NO_BIAS, MORE_KEYS, config_name="Qwen3_5TextConfig")
