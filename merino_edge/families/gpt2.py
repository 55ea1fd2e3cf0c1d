"""GPT-2 (Radford et al. 2019), as Cerebras-GPT (arXiv 2304.03208) has it too."""

from typing import Any, Literal

from merino_edge.families.biased import BiasedGeometry, build_biased, linear, transformer_decoder
from merino_edge.families.family import Family
from merino_edge.families.geometry import Keys, facts_by, words_by
from merino_edge.families.graph_ops import KvLayer, plain_attention
from merino_edge.families.pre_norm import Decoder, Layer
from merino_edge.families.weights import TRANSPOSED, Layout
from merino_runtime.errors import MerinoError

Activation = Literal["gelu", "gelu_erf", "relu"]
ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_erf", "relu": "relu",
}  # fmt: skip


KEYS: Keys = {
    "width": "n_embd", "layers": "n_layer", "heads": "n_head", "vocab": "vocab_size", "context": "n_positions",
    "norm_eps": "layer_norm_epsilon",
}  # fmt: skip


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



def layout(_geometry: Gpt2Architecture, name: str) -> Layout | None:
    """Return the layout of a weight. Matrices of layers are [in, out] in the state dict."""
    return TRANSPOSED if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")) else None


def config_words(geometry: Gpt2Architecture) -> dict[str, Any]:
    activation = next(word for word, kind in ACTIVATIONS.items() if kind == geometry.activation)
    return {**words_by(KEYS, geometry), "n_inner": geometry.ffn_width, "activation_function": activation}


def geometry_of(config: Any) -> Gpt2Architecture:
    if config.activation_function not in ACTIVATIONS:
        known = ", ".join(map(repr, ACTIVATIONS))
        raise MerinoError(f"activation_function is {config.activation_function!r}, supported are {known}")
    activation, ffn_width = ACTIVATIONS[config.activation_function], config.n_inner or 4 * config.n_embd
    return Gpt2Architecture(**facts_by(KEYS, config), ffn_width=ffn_width, activation=activation)


FAMILY = Family(
    name="gpt2",
    geometry=Gpt2Architecture,
    build_graph=build_biased,
    config_name="GPT2Config",
    model_name="GPT2LMHeadModel",
    supported={
        "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    keys=frozenset(KEYS.values()) | {
        "n_inner", "activation_function", "n_ctx", "embd_pdrop", "resid_pdrop", "attn_pdrop", "reorder_and_upcast_attn",
        "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
    },
    config_words=config_words,
    geometry_of=geometry_of,
    layout=layout,
)  # fmt: skip
