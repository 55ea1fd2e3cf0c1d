"""OPT in transformers' form, which transformers itself has."""

from collections.abc import Mapping
from typing import Any

from transformers import OPTConfig, OPTForCausalLM

from merino_edge.families.opt.geometry import OptArchitecture

MODEL = OPTForCausalLM
SUPPORTED: Mapping[str, Any] = {
    "activation_function": "relu",
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True,
    "_remove_final_layer_norm": False,
}

KEYS = frozenset({
    "hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_dim", "word_embed_proj_dim", "vocab_size",
    "max_position_embeddings", "do_layer_norm_before", "dropout", "activation_dropout", "layerdrop", "init_std",
})  # fmt: skip
LOADER = None


def config_of(geometry: OptArchitecture, **keys: Any) -> OPTConfig:
    return OPTConfig(
        hidden_size=geometry.width,
        num_hidden_layers=geometry.layers,
        num_attention_heads=geometry.heads,
        ffn_dim=geometry.ffn_width,
        word_embed_proj_dim=geometry.embed_width,
        vocab_size=geometry.vocab,
        max_position_embeddings=geometry.context,
        do_layer_norm_before=geometry.pre_norm,
        dropout=0.0,
        **keys,
    )


def geometry_of(config: OPTConfig) -> OptArchitecture:
    return OptArchitecture(
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        ffn_width=config.ffn_dim,
        embed_width=config.word_embed_proj_dim or config.hidden_size,
        vocab=config.vocab_size,
        context=config.max_position_embeddings,
        pre_norm=config.do_layer_norm_before,
    )
