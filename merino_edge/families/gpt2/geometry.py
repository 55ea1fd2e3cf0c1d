"""The geometry of GPT-2 (Radford et al. 2019)."""

from typing import Literal

from merino_edge.families.biased import BiasedGeometry, transformer_decoder
from merino_edge.families.graph_ops import KvLayer, plain_attention
from merino_edge.families.pre_norm import Decoder, Layer, Linear
from merino_edge.families.weight_layout import TRANSPOSED, Layout

Activation = Literal["gelu", "gelu_erf", "relu"]


class Gpt2Architecture(BiasedGeometry):
    """A decoder with learned positions.

    Attributes:
        activation: `gelu` is the tanh form (GPT-2), `gelu_erf` the exact one (Cerebras-GPT).
    """

    activation: Activation

    def layer_of(self, layer: int) -> Layer:
        at, cache = f"transformer.h.{layer}", KvLayer(layer, self.heads, self.head_size)
        return Layer(
            cache=cache,
            attention=plain_attention(cache),
            attention_norm=self.layer_norm(f"{at}.ln_1"),
            qkv=linear(f"{at}.attn.c_attn"),
            out=linear(f"{at}.attn.c_proj"),
            ffn_norm=self.layer_norm(f"{at}.ln_2"),
            up=linear(f"{at}.mlp.c_fc"),
            down=linear(f"{at}.mlp.c_proj"),
            activation=self.activation,
            gated=False,
        )

    def decoder(self) -> Decoder:
        return transformer_decoder(self, [self.layer_of(layer) for layer in range(self.layers)])


def linear(at: str) -> Linear:
    return Linear((f"{at}.weight",), (f"{at}.bias",))


def gpt2_layout(_geometry: Gpt2Architecture, name: str) -> Layout | None:
    """Matrices of layers are [in, out] in the state dict."""
    return TRANSPOSED if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")) else None
