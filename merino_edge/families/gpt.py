"""The decoders after GPT (Radford et al. 2018): LayerNorm, biases, an FFN of two matrices, as many KV heads as query
heads.
"""

import math
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
from pydantic import model_validator

from merino_edge.families.equal_layers import EqualLayers, MultiHead, Rotated, Windowed, family
from merino_edge.families.graph_ops import Attention
from merino_edge.families.pre_norm import Names
from merino_edge.families.rotary import Positive
from merino_edge.families.weights import TRANSPOSED, Layout, permuted
from merino_runtime.errors import MerinoError

Activation = Literal["gelu_new", "gelu_pytorch_tanh", "gelu", "relu"]
GPT2 = Names(
    "transformer.h.{}", "ln_1", "attn.c_attn", out="attn.c_proj", ffn_norm="ln_2", up="mlp.c_fc", down="mlp.c_proj",
    embedding="transformer.wte", positions="transformer.wpe", final_norm="transformer.ln_f",
)  # fmt: skip
BLOOM_CONTEXT = 2048  # of its training; config.json often has no context


class GptGeometry(MultiHead, EqualLayers):
    """The common part. `norm_eps`: added to the variance in LayerNorm."""

    NORM = "layer"
    GATED = False
    BIASES: ClassVar[tuple[str, ...]] = ("qkv", "out", "ffn")
    ACTIVATION = "gelu_new"

    norm_eps: Positive

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not split into {self.heads} heads")
        if "rotated" in type(self).model_fields and (self.rotated > self.head_size or self.head_size % 2):
            raise ValueError(f"rotated {self.rotated} of heads of {self.head_size} channels, an even number")
        return self

    @property
    def embed_width(self) -> int:
        return self.width

    def head_rows(self) -> np.ndarray:
        """Return the rows of a matrix with query, key and value of each head side by side, as the graph has them: all
        queries first. [3 * width]"""
        order = self.key_order()
        turned = np.arange(self.head_size) if order is None else order
        rows = np.arange(3 * self.width).reshape(self.heads, 3, self.head_size)
        return np.concatenate([rows[:, 0, turned].ravel(), rows[:, 1, turned].ravel(), rows[:, 2].ravel()])

    def layout(self, name: str) -> Layout | None:
        return permuted(self.head_rows()) if "query_key_value" in name else super().layout(name)


class Gpt2Architecture(GptGeometry):
    """GPT-2 (Radford et al. 2019) and Cerebras-GPT (arXiv 2304.03208): learned positions. `activation`: GPT-2 has
    GELU's tanh form, Cerebras-GPT the exact one."""

    KEYS = {
        "width": "n_embd", "layers": "n_layer", "heads": "n_head", "ffn_width": "n_inner", "vocab": "vocab_size",
        "context": "n_positions", "norm_eps": "layer_norm_epsilon", "activation": "activation_function",
    }  # fmt: skip
    WEIGHTS = GPT2

    activation: Activation

    def layout(self, name: str) -> Layout | None:
        """Matrices of layers are [in, out] in the state dict."""
        return TRANSPOSED if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")) else None


class GptNeoArchitecture(Windowed, GptGeometry):
    """GPT-Neo (EleutherAI 2021), as TinyStories (arXiv 2305.07759) uses it: layers of sliding-window attention."""

    KEYS = {
        **EqualLayers.KEYS, "layers": "num_layers", "heads": "num_heads", "norm_eps": "layer_norm_epsilon",
        "window": "window_size",
    }  # fmt: skip
    WEIGHTS = GPT2._replace(
        qkv="attn.attention.q_proj attn.attention.k_proj attn.attention.v_proj", out="attn.attention.out_proj"
    )
    BIASES = ("out", "ffn")
    attention_scale: ClassVar[float] = 1.0

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        listed = config.expand_attention_types_params(config.attention_types)
        if listed != config.attention_layers:
            raise MerinoError(
                f"attention_types lists {listed}, and attention_layers is {config.attention_layers}: correct one"
            )
        windowed = tuple(kind == "local" for kind in config.attention_layers)  # transformers knows these two only
        return {**super().facts(config), "windowed": windowed}

    def words(self) -> dict[str, Any]:
        kinds = ["local" if windowed else "global" for windowed in self.windowed]
        return {**super().words(), "attention_types": [[kinds, 1]]}


class GptNeoxArchitecture(GptGeometry):
    """GPT-NeoX (arXiv 2204.06745), as Pythia (arXiv 2304.01373) uses it: rotates a part of each head.

    Attributes:
        rotated: channels of each head that rotary positions turn, the first ones in the state dict.
        parallel: whether attention and FFN of a layer read the same residual.
        tied: whether the head is the embedding.
    """

    KEYS = {
        **EqualLayers.KEYS, "norm_eps": "layer_norm_eps", "parallel": "use_parallel_residual",
        "tied": "tie_word_embeddings",
    }  # fmt: skip
    WEIGHTS = Names(
        "gpt_neox.layers.{}", qkv="attention.query_key_value", out="attention.dense", up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h", embedding="gpt_neox.embed_in", final_norm="gpt_neox.final_layer_norm",
    )  # fmt: skip
    ACTIVATION = "gelu"

    rotated: Rotated
    rope_theta: Positive
    parallel: bool
    tied: bool


class PhiArchitecture(GptGeometry):
    """Phi-1, Phi-1.5 (arXiv 2309.05463) and Phi-2: one norm for attention and FFN, and a head with a bias. `rotated`:
    channels of each head that have positions, the first ones in torch."""

    KEYS = {**EqualLayers.KEYS, "norm_eps": "layer_norm_eps"}
    WEIGHTS = Names(
        out="self_attn.dense", ffn_norm="", up="mlp.fc1", down="mlp.fc2", final_norm="model.final_layernorm"
    )
    HEAD_BIAS = True
    parallel: ClassVar[bool] = True
    tied: ClassVar[bool] = False

    rotated: Rotated
    rope_theta: Positive

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        if config.num_key_value_heads not in (None, config.num_attention_heads):
            raise MerinoError(f"num_key_value_heads is {config.num_key_value_heads}, supported is num_attention_heads")
        return super().facts(config)


class BloomArchitecture(GptGeometry):
    """BLOOM (arXiv 2211.05100): a norm on the embedding, and scores that grow with the position of the key (ALiBi,
    arXiv 2108.12409) instead of positions."""

    KEYS = {
        "width": "hidden_size", "layers": "n_layer", "heads": "n_head", "vocab": "vocab_size", "context": "seq_length",
        "norm_eps": "layer_norm_epsilon",
    }  # fmt: skip
    WEIGHTS = Names(
        "transformer.h.{}", qkv="self_attention.query_key_value", out="self_attention.dense", up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h", embedding="transformer.word_embeddings",
        embedding_norm="transformer.word_embeddings_layernorm", final_norm="transformer.ln_f",
    )  # fmt: skip

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        config.seq_length = getattr(config, "seq_length", BLOOM_CONTEXT)
        return super().facts(config)

    def attention_of(self, layer: int) -> Attention:
        return replace(super().attention_of(layer), slopes=slopes(self.heads))


def slopes(heads: int) -> tuple[float, ...]:
    """Return the slope of each head: powers of 2^(-8/n) for n heads, n a power of 2; further heads have every second
    power for 2n heads."""
    count = 2 ** math.floor(math.log2(heads))
    first = [2.0 ** (-8 * index / count) for index in range(1, count + 1)]
    return tuple(first + [2.0 ** (-4 * index / count) for index in range(1, 2 * (heads - count), 2)])


TIED = {"tie_word_embeddings": True}
FAMILIES = (
    family(
        "gpt2", Gpt2Architecture, "GPT2",
        {
            "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False, **TIED,
            "activation_function": get_args(Activation),
        },
        ("n_ctx", "reorder_and_upcast_attn"),
        model_name="GPT2LMHeadModel",
    ),
    family(
        "gpt_neo", GptNeoArchitecture, "GPTNeo", {"activation_function": "gelu_new", **TIED},
        ("attention_types", "attention_layers"),
    ),
    family(
        "gpt_neox", GptNeoxArchitecture, "GPTNeoX", {"hidden_act": "gelu", "attention_bias": True},
        ("rotary_pct", "rotary_emb_base"),
    ),
    family(
        "phi", PhiArchitecture, "Phi", {"hidden_act": "gelu_new", "qk_layernorm": False, "tie_word_embeddings": False},
        ("num_key_value_heads",),
    ),
    family(
        "bloom", BloomArchitecture, "Bloom",
        {"apply_residual_connection_post_layernorm": False, "slow_but_exact": False, **TIED},
        (
            "n_embed", "num_attention_heads", "num_hidden_layers", "offset_alibi", "bias_dropout_fusion",
            "attention_softmax_in_fp32", "masked_softmax_fusion", "skip_bias_add", "skip_bias_add_qkv",
        ),
    ),
)  # fmt: skip
