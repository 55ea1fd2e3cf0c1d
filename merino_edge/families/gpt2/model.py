"""GPT-2 in transformers' form, which transformers itself has."""

from collections.abc import Mapping
from typing import Any

from transformers import GPT2Config, GPT2LMHeadModel

from merino_edge.families.gpt2.geometry import Activation, Gpt2Architecture
from merino_runtime.errors import MerinoError

MODEL = GPT2LMHeadModel
SUPPORTED: Mapping[str, Any] = {
    "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
    "tie_word_embeddings": True,
}  # fmt: skip
KEYS = frozenset({
    "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "layer_norm_epsilon", "activation_function",
    "n_ctx", "embd_pdrop", "resid_pdrop", "attn_pdrop", "reorder_and_upcast_attn", "summary_type", "summary_use_proj",
    "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
})  # fmt: skip
LOADER = None
ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_erf", "relu": "relu",
}  # fmt: skip


def config_of(geometry: Gpt2Architecture, **keys: Any) -> GPT2Config:
    return GPT2Config(
        n_embd=geometry.width,
        n_layer=geometry.layers,
        n_head=geometry.heads,
        n_inner=geometry.ffn_width,
        vocab_size=geometry.vocab,
        n_positions=geometry.context,
        layer_norm_epsilon=geometry.norm_eps,
        activation_function=next(word for word, kind in ACTIVATIONS.items() if kind == geometry.activation),
        **keys,
    )


def geometry_of(config: GPT2Config) -> Gpt2Architecture:
    if config.activation_function not in ACTIVATIONS:
        known = ", ".join(map(repr, ACTIVATIONS))
        raise MerinoError(f"activation_function is {config.activation_function!r}, supported are {known}")
    return Gpt2Architecture(
        width=config.n_embd,
        layers=config.n_layer,
        heads=config.n_head,
        ffn_width=config.n_inner or 4 * config.n_embd,
        vocab=config.vocab_size,
        context=config.n_positions,
        norm_eps=config.layer_norm_epsilon,
        activation=ACTIVATIONS[config.activation_function],
    )
