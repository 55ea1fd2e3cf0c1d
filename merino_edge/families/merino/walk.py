"""The walk through a MeRino decoder: which operations, in which order, on which weights of the state dict."""

from merino_edge.families.graph_ops import Attention, GraphOps, KvLayer, Norm
from merino_edge.families.merino.geometry import Architecture
from merino_edge.families.rotary import Rotary


def walk_merino(graph: GraphOps, arch: Architecture) -> None:
    """Write the whole graph: ids to logits of the last position.

    The sum of a sublayer's output `delta` and its residual `x` is not written where it arises, but by the norm that
    follows, so that a dialect can fuse the two.
    """
    x, delta = graph.embed("embed_tokens.weight"), None
    use, uses = 0, sum(block.depth for block in arch.blocks)
    before = arch.blocks[0].width
    for index, block in enumerate(arch.blocks):
        if block.width != before:
            x, delta = graph.linear(graph.add(x, delta) if delta else x, f"blocks.{index}.enter.weight"), None
        attention = Attention(
            block.width // arch.head_size, arch.head_size**-0.5, Rotary(arch.rope_theta, arch.head_size)
        )
        for layer in range(block.depth):
            at = f"blocks.{index}.layers.{0 if block.shared else layer}"
            cache = KvLayer(use, block.kv_width(arch.head_size) // arch.head_size, arch.head_size)
            use += 1
            x, delta = walk_layer(graph, arch, at, x, delta, cache, attention, final=use == uses)
        before = block.width
    assert delta is not None
    normed, _ = graph.add_norm(delta, x, Norm("norm.weight", None, arch.rms_norm_eps))
    if arch.blocks[-1].width != arch.blocks[0].width:
        normed = graph.linear(normed, "leave.weight")
    graph.head(normed, "embed_tokens.weight")


def walk_layer(
    graph: GraphOps, arch: Architecture, at: str, x: str, delta: str | None, cache: KvLayer, attention: Attention,
    *, final: bool,
) -> tuple[str, str]:
    """One layer, with weights named `at`.*; (x, delta) before it -> (x, delta) after it.

    The final layer computes only the last position once its keys and values are cached: only its logits are wanted.
    """
    attention_norm = Norm(f"{at}.attention_norm.weight", None, arch.rms_norm_eps)
    ffn_norm = Norm(f"{at}.ffn_norm.weight", None, arch.rms_norm_eps)
    normed, x = graph.add_norm(delta, x, attention_norm) if delta else (graph.norm(x, attention_norm), x)
    mixed = graph.attention(graph.linear(normed, f"{at}.attention.qkv.weight"), cache, attention)
    if final:
        mixed, x = graph.last(mixed), graph.last(x)
    attended = graph.linear(mixed, f"{at}.attention.out.weight")
    normed, x = graph.add_norm(attended, x, ffn_norm)
    hidden = graph.activation(graph.linear(normed, f"{at}.up.weight"), "gelu")
    return x, graph.linear(hidden, f"{at}.down.weight")
