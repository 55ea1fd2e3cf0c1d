"""The walk through OPT (arXiv 2205.01068): learned positions, LayerNorm with biases, ReLU, norms before or after."""

from merino_edge.families.graph_ops import GraphOps, KvLayer, Norm, plain_attention
from merino_edge.families.opt.geometry import POSITION_OFFSET, OptArchitecture

EPS = 1e-5  # of LayerNorm: torch's default, which OPT keeps
ROOT = "model.decoder"


def walk_opt(graph: GraphOps, arch: OptArchitecture) -> None:
    """Write the whole graph: ids to logits of the last position."""
    x = graph.embed(f"{ROOT}.embed_tokens.weight")
    if arch.embed_width != arch.width:
        x = graph.linear(x, f"{ROOT}.project_in.weight")
    x = graph.add(x, graph.embed_positions(f"{ROOT}.embed_positions.weight", POSITION_OFFSET))
    layer = walk_pre_norm_layer if arch.pre_norm else walk_post_norm_layer
    for index in range(arch.layers):
        x = layer(graph, f"{ROOT}.layers.{index}", x, KvLayer(index, arch.heads, arch.head_size))
    x = graph.last(x)
    if arch.pre_norm:
        x = graph.norm(x, layer_norm(f"{ROOT}.final_layer_norm"))
    if arch.embed_width != arch.width:
        x = graph.linear(x, f"{ROOT}.project_out.weight")
    graph.head(x, f"{ROOT}.embed_tokens.weight")


def walk_post_norm_layer(graph: GraphOps, at: str, x: str, cache: KvLayer) -> str:
    x, _ = graph.add_norm(self_attention(graph, at, x, cache), x, layer_norm(f"{at}.self_attn_layer_norm"))
    x, _ = graph.add_norm(ffn(graph, at, x), x, layer_norm(f"{at}.final_layer_norm"))
    return x


def walk_pre_norm_layer(graph: GraphOps, at: str, x: str, cache: KvLayer) -> str:
    attended = self_attention(graph, at, graph.norm(x, layer_norm(f"{at}.self_attn_layer_norm")), cache)
    normed, x = graph.add_norm(attended, x, layer_norm(f"{at}.final_layer_norm"))
    return graph.add(ffn(graph, at, normed), x)


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
