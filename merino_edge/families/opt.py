"""OPT (Zhang et al., arXiv 2205.01068), the baseline: learned positions, LayerNorm with biases, ReLU, norms before or
behind attention and FFN.
"""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from merino_edge.families.family import Family
from merino_edge.families.geometry import EqualLayers, Keys, UniformGeometry, facts_by, words_by
from merino_edge.families.graph_ops import GraphOps, KvLayer, Norm, plain_attention
from merino_runtime.bundle.schema import LARGEST_VOCAB, LONGEST_CONTEXT

POSITION_OFFSET = 2  # the first position is row 2 of OPT's position embedding
KEYS: Keys = {
    "width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads", "ffn_width": "ffn_dim",
    "vocab": "vocab_size", "context": "max_position_embeddings", "pre_norm": "do_layer_norm_before",
}  # fmt: skip
EPS = 1e-5  # of LayerNorm: torch's default, which OPT keeps
ROOT = "model.decoder"


class OptArchitecture(EqualLayers):
    """A decoder of equal layers with LayerNorm, ReLU, biases and learned positions.

    Attributes:
        embed_width: of the embedding; where it is not `width`, a projection stands before the layers and one behind.
        pre_norm: whether the norms stand before attention and FFN, and one before the head; else they stand behind.
    """

    width: Annotated[int, Field(ge=8, le=65_536)]
    layers: Annotated[int, Field(ge=1, le=1024)]
    heads: Annotated[int, Field(ge=1, le=65_536)]
    ffn_width: Annotated[int, Field(ge=8, le=1_048_576)]
    embed_width: Annotated[int, Field(ge=8, le=65_536)]
    vocab: Annotated[int, Field(ge=2, le=LARGEST_VOCAB)]
    context: Annotated[int, Field(ge=2, le=LONGEST_CONTEXT)]
    pre_norm: bool

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads or (self.width // self.heads) % 8:
            raise ValueError(f"width {self.width} does not split into {self.heads} heads of a multiple of 8")
        return self

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def counts(self) -> UniformGeometry:
        return UniformGeometry(
            layers=self.layers, width=self.width, heads=self.heads, kv_heads=self.heads, head_size=self.head_size,
            ffn_width=self.ffn_width, vocab=self.vocab, context=self.context, gated=False, norm="layer",
            final_norm=self.pre_norm, query_key_norm=False, biases=("qkv", "out", "ffn"), positions="learned",
            position_offset=POSITION_OFFSET, tied=True, embed_width=self.embed_width,
        )  # fmt: skip


def build_opt(graph: GraphOps, arch: OptArchitecture) -> None:
    """Write the whole graph: ids to logits of the last position."""
    x = graph.embed(f"{ROOT}.embed_tokens.weight")
    if arch.embed_width != arch.width:
        x = graph.linear(x, f"{ROOT}.project_in.weight")
    x = graph.add(x, graph.embed_positions(f"{ROOT}.embed_positions.weight", POSITION_OFFSET))
    for index in range(arch.layers):
        at, cache = f"{ROOT}.layers.{index}", KvLayer(index, arch.heads, arch.head_size)
        norms = layer_norm(f"{at}.self_attn_layer_norm"), layer_norm(f"{at}.final_layer_norm")
        if arch.pre_norm:
            attended = self_attention(graph, at, graph.norm(x, norms[0]), cache)
            normed, x = graph.add_norm(attended, x, norms[1])
            x = graph.add(ffn(graph, at, normed), x)
        else:
            x, _ = graph.add_norm(self_attention(graph, at, x, cache), x, norms[0])
            x, _ = graph.add_norm(ffn(graph, at, x), x, norms[1])
    x = graph.last(x)
    if arch.pre_norm:
        x = graph.norm(x, layer_norm(f"{ROOT}.final_layer_norm"))
    if arch.embed_width != arch.width:
        x = graph.linear(x, f"{ROOT}.project_out.weight")
    graph.head(x, f"{ROOT}.embed_tokens.weight")


def self_attention(graph: GraphOps, at: str, x: str, cache: KvLayer) -> str:
    names = [f"{at}.self_attn.{part}_proj" for part in "qkv"]
    qkv = graph.packed_linear(x, [f"{name}.weight" for name in names], [f"{name}.bias" for name in names])
    mixed = graph.attention(qkv, cache, plain_attention(cache))
    return graph.linear(mixed, f"{at}.self_attn.out_proj.weight", f"{at}.self_attn.out_proj.bias")


def ffn(graph: GraphOps, at: str, x: str) -> str:
    hidden = graph.activation(graph.linear(x, f"{at}.fc1.weight", f"{at}.fc1.bias"), "relu")
    return graph.linear(hidden, f"{at}.fc2.weight", f"{at}.fc2.bias")


def layer_norm(at: str) -> Norm:
    return Norm(f"{at}.weight", f"{at}.bias", EPS)


def config_words(geometry: OptArchitecture) -> dict[str, Any]:
    return {**words_by(KEYS, geometry), "word_embed_proj_dim": geometry.embed_width, "dropout": 0.0}


def geometry_of(config: Any) -> OptArchitecture:
    return OptArchitecture(**facts_by(KEYS, config), embed_width=config.word_embed_proj_dim or config.hidden_size)


FAMILY = Family(
    name="opt",
    geometry=OptArchitecture,
    build_graph=build_opt,
    config_name="OPTConfig",
    model_name="OPTForCausalLM",
    supported={
        "activation_function": "relu", "enable_bias": True, "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": True, "_remove_final_layer_norm": False,
    },
    keys=frozenset(KEYS.values()) | {
        "word_embed_proj_dim", "dropout", "activation_dropout", "layerdrop", "init_std",
    },
    config_words=config_words,
    geometry_of=geometry_of,
)  # fmt: skip
