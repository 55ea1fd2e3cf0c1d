"""BLOOM (arXiv 2211.05100): GPT's form with a norm on the embedding, and scores that grow with the position of the key
(ALiBi, arXiv 2108.12409) instead of positions.
"""

import math
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np

from merino_edge.families.biased import BiasedGeometry, build_biased, linear, transformer_decoder
from merino_edge.families.family import Family
from merino_edge.families.geometry import Keys, UniformGeometry, facts_by, words_by
from merino_edge.families.graph_ops import KvLayer, plain_attention
from merino_edge.families.pre_norm import Decoder, Layer
from merino_edge.families.weights import Layout, permuted

QKV = "self_attention.query_key_value"
CONTEXT = 2048  # of its training; config.json often has no context
KEYS: Keys = {
    "width": "hidden_size", "layers": "n_layer", "heads": "n_head", "vocab": "vocab_size",
    "norm_eps": "layer_norm_epsilon",
}  # fmt: skip


class BloomArchitecture(BiasedGeometry):
    """A decoder of the BLOOM kind."""

    POSITIONS: ClassVar[Literal["learned", "rotary"]] = "rotary"  # neither: no weights of positions

    @property
    def counts(self) -> UniformGeometry:
        return super().counts.model_copy(update={"embedding_norm": True})

    def layer_of(self, layer: int) -> Layer:
        at, cache = f"transformer.h.{layer}", KvLayer(layer, self.heads, self.head_size)
        return Layer(
            cache=cache,
            attention=replace(plain_attention(cache), slopes=slopes(self.heads)),
            attention_norm=self.layer_norm(f"{at}.input_layernorm"),
            qkv=linear(f"{at}.{QKV}"),
            out=linear(f"{at}.self_attention.dense"),
            ffn_norm=self.layer_norm(f"{at}.post_attention_layernorm"),
            up=linear(f"{at}.mlp.dense_h_to_4h"),
            down=linear(f"{at}.mlp.dense_4h_to_h"),
            activation="gelu",
            gated=False,
        )

    def decoder(self) -> Decoder:
        embedding = "transformer.word_embeddings.weight"
        return replace(
            transformer_decoder(self, [self.layer_of(layer) for layer in range(self.layers)]),
            embedding=embedding,
            head=embedding,
            embedding_norm=self.layer_norm("transformer.word_embeddings_layernorm"),
            positions=None,
        )


def slopes(heads: int) -> tuple[float, ...]:
    """Return the slope of each head: powers of 2^(-8/n) for n heads, n a power of 2; further heads have every second
    power for 2n heads."""
    count = 2 ** math.floor(math.log2(heads))
    first = [2.0 ** (-8 * index / count) for index in range(1, count + 1)]
    return tuple(first + [2.0 ** (-4 * index / count) for index in range(1, 2 * (heads - count), 2)])


def layout(geometry: BloomArchitecture, name: str) -> Layout | None:
    """Return the layout of a weight. The state dict has query, key and value of a head side by side; the graph has all
    queries first."""
    if QKV not in name:
        return None
    rows = np.arange(3 * geometry.width).reshape(geometry.heads, 3, geometry.head_size)
    return permuted(rows.swapaxes(0, 1).ravel())


def config_words(geometry: BloomArchitecture) -> dict[str, Any]:
    return {**words_by(KEYS, geometry), "seq_length": geometry.context}


def geometry_of(config: Any) -> BloomArchitecture:
    return BloomArchitecture(
        **facts_by(KEYS, config), ffn_width=4 * config.hidden_size, context=getattr(config, "seq_length", CONTEXT)
    )


FAMILY = Family(
    name="bloom",
    geometry=BloomArchitecture,
    build_graph=build_biased,
    config_name="BloomConfig",
    model_name="BloomForCausalLM",
    supported={"apply_residual_connection_post_layernorm": False, "slow_but_exact": False, "tie_word_embeddings": True},
    keys=frozenset(KEYS.values()) | {
        "n_embed", "num_attention_heads", "num_hidden_layers", "seq_length", "offset_alibi", "bias_dropout_fusion",
        "attention_softmax_in_fp32", "masked_softmax_fusion", "skip_bias_add", "skip_bias_add_qkv", "unk_token_id",
    },
    config_words=config_words,
    geometry_of=geometry_of,
    layout=layout,
)  # fmt: skip
