"""GPT-NeoX (arXiv 2204.06745), as Pythia (arXiv 2304.01373) has it: attention and FFN in parallel, a part of each head
rotated.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from merino_edge.families.biased import (
    BiasedGeometry,
    build_biased,
    linear,
    partly_rotated_facts,
    partly_rotated_words,
)
from merino_edge.families.family import Family
from merino_edge.families.geometry import Keys
from merino_edge.families.graph_ops import KvLayer, plain_attention
from merino_edge.families.pre_norm import Decoder, Layer
from merino_edge.families.rotary import Positive, Rotary, head_order
from merino_edge.families.weights import Layout, permuted

QKV = "attention.query_key_value"
KEYS: Keys = {
    "width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "ffn_width": "intermediate_size", "vocab": "vocab_size", "context": "max_position_embeddings",
    "norm_eps": "layer_norm_eps", "parallel": "use_parallel_residual", "tied": "tie_word_embeddings",
}  # fmt: skip


class GptNeoxArchitecture(BiasedGeometry):
    """A decoder of the GPT-NeoX kind.

    Attributes:
        rotated: channels of each head that rotary positions turn, the first ones in the state dict.
        parallel: whether attention and FFN of a layer read the same residual.
        tied: whether the head is the embedding.
    """

    POSITIONS: ClassVar[Literal["learned", "rotary"]] = "rotary"

    rotated: Annotated[int, Field(ge=2, multiple_of=2)]
    rope_theta: Positive
    parallel: bool
    tied: bool

    @model_validator(mode="after")
    def _within_a_head(self) -> Self:
        if self.rotated > self.head_size or self.head_size % 2:
            raise ValueError(f"rotated {self.rotated} of heads of {self.head_size} channels, an even number")
        return self

    @property
    def has_tied_head(self) -> bool:
        return self.tied

    def layer_of(self, layer: int) -> Layer:
        at, cache = f"gpt_neox.layers.{layer}", KvLayer(layer, self.heads, self.head_size)
        return Layer(
            cache=cache,
            attention=plain_attention(cache, Rotary(self.rope_theta, self.rotated)),
            attention_norm=self.layer_norm(f"{at}.input_layernorm"),
            qkv=linear(f"{at}.{QKV}"),
            out=linear(f"{at}.attention.dense"),
            ffn_norm=self.layer_norm(f"{at}.post_attention_layernorm"),
            up=linear(f"{at}.mlp.dense_h_to_4h"),
            down=linear(f"{at}.mlp.dense_4h_to_h"),
            activation="gelu_erf",
            gated=False,
        )

    def decoder(self) -> Decoder:
        embedding = "gpt_neox.embed_in.weight"
        return Decoder(
            embedding=embedding,
            head=embedding if self.tied else "lm_head.weight",
            layers=tuple(self.layer_of(layer) for layer in range(self.layers)),
            final_norm=self.layer_norm("gpt_neox.final_layer_norm"),
            parallel=self.parallel,
        )


def layout(geometry: GptNeoxArchitecture, name: str) -> Layout | None:
    """Return the layout of a weight. The state dict has query, key and value of a head side by side; the graph has all
    queries first."""
    return permuted(qkv_order(geometry)) if QKV in name else None


def qkv_order(geometry: GptNeoxArchitecture) -> np.ndarray:
    """Return rows of the state dict in the graph's order, [3 * width]."""
    turned, size = key_order(geometry), geometry.head_size
    rows = np.arange(3 * geometry.width).reshape(geometry.heads, 3, size)
    turned = np.arange(size) if turned is None else turned
    return np.concatenate([rows[:, 0, turned].ravel(), rows[:, 1, turned].ravel(), rows[:, 2].ravel()])


def key_order(geometry: GptNeoxArchitecture) -> np.ndarray | None:
    return head_order(geometry.head_size, geometry.rotated)


def config_words(geometry: GptNeoxArchitecture) -> dict[str, Any]:
    return partly_rotated_words(KEYS, geometry)


def geometry_of(config: Any) -> GptNeoxArchitecture:
    return GptNeoxArchitecture(**partly_rotated_facts(KEYS, config))


FAMILY = Family(
    name="gpt_neox",
    geometry=GptNeoxArchitecture,
    build_graph=build_biased,
    config_name="GPTNeoXConfig",
    model_name="GPTNeoXForCausalLM",
    supported={"hidden_act": "gelu", "attention_bias": True},
    keys=frozenset(KEYS.values()) | {
        "rotary_pct", "rotary_emb_base", "rope_scaling", "rope_parameters", "hidden_dropout", "gradient_checkpointing",
    },
    config_words=config_words,
    geometry_of=geometry_of,
    layout=layout,
    key_order=key_order,
)  # fmt: skip
