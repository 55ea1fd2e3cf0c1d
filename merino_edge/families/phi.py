"""Phi-1, Phi-1.5 (arXiv 2309.05463) and Phi-2: GPT-NeoX's form with one norm for attention and FFN, and a head with a
bias.
"""

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from merino_edge.families.biased import (
    BiasedGeometry,
    build_biased,
    linear,
    partly_rotated_facts,
    partly_rotated_words,
)
from merino_edge.families.family import Family
from merino_edge.families.gated import in_heads
from merino_edge.families.geometry import Keys, UniformGeometry
from merino_edge.families.graph_ops import KvLayer, plain_attention
from merino_edge.families.pre_norm import Decoder, Layer, Linear
from merino_edge.families.rotary import PART, Positive, Rotary, head_order
from merino_edge.families.weights import Layout, permuted
from merino_runtime.errors import MerinoError

KEYS: Keys = {
    "width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "ffn_width": "intermediate_size", "vocab": "vocab_size", "context": "max_position_embeddings",
    "norm_eps": "layer_norm_eps",
}  # fmt: skip


class PhiArchitecture(BiasedGeometry):
    """A decoder of the Phi kind. `rotated`: channels of each head that have positions, the first ones in torch."""

    POSITIONS: ClassVar[Literal["learned", "rotary"]] = "rotary"

    rotated: Annotated[int, Field(ge=2, multiple_of=2)]
    rope_theta: Positive

    @property
    def has_tied_head(self) -> bool:
        return False

    @property
    def counts(self) -> UniformGeometry:
        return super().counts.model_copy(update={"norms": 1, "head_bias": True})

    def layer_of(self, layer: int) -> Layer:
        at, cache = f"model.layers.{layer}", KvLayer(layer, self.heads, self.head_size)
        qkv = [f"{at}.self_attn.{part}_proj" for part in "qkv"]
        return Layer(
            cache=cache,
            attention=plain_attention(cache, Rotary(self.rope_theta, self.rotated)),
            attention_norm=self.layer_norm(f"{at}.input_layernorm"),
            qkv=Linear(tuple(f"{name}.weight" for name in qkv), tuple(f"{name}.bias" for name in qkv)),
            out=linear(f"{at}.self_attn.dense"),
            ffn_norm=None,
            up=linear(f"{at}.mlp.fc1"),
            down=linear(f"{at}.mlp.fc2"),
            activation="gelu",
            gated=False,
        )

    def decoder(self) -> Decoder:
        return Decoder(
            embedding="model.embed_tokens.weight",
            head="lm_head.weight",
            head_bias="lm_head.bias",
            layers=tuple(self.layer_of(layer) for layer in range(self.layers)),
            final_norm=self.layer_norm("model.final_layernorm"),
            parallel=True,
        )

    def key_order(self) -> np.ndarray | None:
        return head_order(self.head_size, self.rotated)

    def layout(self, name: str) -> Layout | None:
        order = self.key_order()
        turned = order is not None and name.split(".")[-2] in ("q_proj", "k_proj")
        return permuted(in_heads(order, self.heads)) if order is not None and turned else None


def config_words(geometry: PhiArchitecture) -> dict[str, Any]:
    return partly_rotated_words(KEYS, geometry)


def geometry_of(config: Any) -> PhiArchitecture:
    if config.num_key_value_heads not in (None, config.num_attention_heads):
        raise MerinoError(f"num_key_value_heads is {config.num_key_value_heads}, supported is num_attention_heads")
    return PhiArchitecture(**partly_rotated_facts(KEYS, config))


FAMILY = Family(
    name="phi",
    geometry=PhiArchitecture,
    build_graph=build_biased,
    config_name="PhiConfig",
    model_name="PhiForCausalLM",
    supported={"hidden_act": "gelu_new", "qk_layernorm": False, "tie_word_embeddings": False},
    keys=frozenset(KEYS.values()) | {"num_key_value_heads", "rope_theta", "rope_scaling", "rope_parameters", PART},
    config_words=config_words,
    geometry_of=geometry_of,
    layout=lambda geometry, name: geometry.layout(name),
    key_order=lambda geometry: geometry.key_order(),
)
