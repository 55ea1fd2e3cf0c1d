"""OPT (Zhang et al., arXiv 2205.01068), the baseline."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from merino_edge.families.equal_layers import EqualLayers, MultiHead, family
from merino_edge.families.graph_ops import GraphOps
from merino_edge.families.pre_norm import Names, ffn, linear

ROOT = "model.decoder"


class OptArchitecture(MultiHead, EqualLayers):
    """OPT: learned positions, LayerNorm with biases, ReLU, norms before or behind attention and FFN.

    Attributes:
        embed_width: of the embedding; if it is not `width`, one projection stands before the layers and one behind.
        pre_norm: whether the norms stand before attention and FFN, and one before the head; else they stand behind.
    """

    KEYS = {
        **EqualLayers.KEYS, "ffn_width": "ffn_dim", "embed_width": "word_embed_proj_dim",
        "pre_norm": "do_layer_norm_before",
    }  # fmt: skip
    WEIGHTS = Names(
        f"{ROOT}.layers.{{}}", "self_attn_layer_norm", out="self_attn.out_proj", ffn_norm="final_layer_norm", up="fc1",
        down="fc2", embedding=f"{ROOT}.embed_tokens", positions=f"{ROOT}.embed_positions",
        final_norm=f"{ROOT}.final_layer_norm",
    )  # fmt: skip
    ACTIVATION = "relu"
    NORM = "layer"
    GATED = False
    BIASES = ("qkv", "out", "ffn")
    POSITION_OFFSET = 2  # the first position is row 2 of the position embedding
    LAST_ALONE = False
    norm_eps: ClassVar[float] = 1e-5  # torch's default, which OPT keeps

    embed_width: Annotated[int, Field(ge=8, le=65_536)]
    pre_norm: bool

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads or self.head_size % 8:
            raise ValueError(f"width {self.width} does not split into {self.heads} heads of a multiple of 8")
        return self

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        facts = super().facts(config)
        return {**facts, "embed_width": facts["embed_width"] or facts["width"]}

    def words(self) -> dict[str, Any]:
        return {**super().words(), "dropout": 0.0}

    def build_graph(self, graph: GraphOps) -> None:
        build_opt(graph, self)

    def decoder(self) -> None:
        """There is none: `build_opt` writes the graph."""


def build_opt(graph: GraphOps, arch: OptArchitecture) -> None:
    """Write the whole graph: ids to logits of the last position."""
    table = f"{arch.WEIGHTS.embedding}.weight"
    x = graph.embed(table)
    if arch.embed_width != arch.width:
        x = graph.linear(x, f"{ROOT}.project_in.weight")
    x = graph.add(x, graph.embed_positions(f"{arch.WEIGHTS.positions}.weight", arch.POSITION_OFFSET))
    for layer in map(arch.layer_of, range(arch.layers)):
        assert layer.attention_norm and layer.ffn_norm
        before = graph.norm(x, layer.attention_norm) if arch.pre_norm else x
        mixed = graph.attention(linear(graph, before, layer.qkv), layer.cache, layer.attention)
        attended = linear(graph, mixed, layer.out)
        if arch.pre_norm:
            normed, x = graph.add_norm(attended, x, layer.ffn_norm)
            x = graph.add(ffn(graph, layer, normed), x)
        else:
            x, _ = graph.add_norm(attended, x, layer.attention_norm)
            x, _ = graph.add_norm(ffn(graph, layer, x), x, layer.ffn_norm)
    x = graph.last(x)
    if arch.pre_norm:
        x = graph.norm(x, arch.norm(arch.WEIGHTS.final_norm))
    if arch.embed_width != arch.width:
        x = graph.linear(x, f"{ROOT}.project_out.weight")
    graph.head(x, table)


SUPPORTED = {
    "activation_function": "relu", "enable_bias": True, "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True, "_remove_final_layer_norm": False,
}  # fmt: skip
FAMILY = family("opt", OptArchitecture, "OPT", SUPPORTED, ("init_std",))
