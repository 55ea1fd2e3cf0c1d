"""The walk through a MeRino decoder: which operations, in which order, on which weights of the state dict."""

from merino_edge.families.graph_ops import Dialect, KvLayer, Norm
from merino_edge.families.merino.architecture import Architecture


def walk_merino(graph: Dialect, arch: Architecture, *, theta: float, eps: float) -> None:
    """Pre-norm layers. The sum of a sublayer and its residual is left to the norm that follows it."""
    x, delta = graph.embed("embed_tokens.weight"), None
    use, uses = 0, sum(block.depth for block in arch.blocks)
    before = arch.blocks[0].width
    for index, block in enumerate(arch.blocks):
        if block.width != before:
            x, delta = graph.linear(graph.add(x, delta) if delta else x, f"blocks.{index}.enter.weight"), None
        for layer in range(block.depth):
            at = f"blocks.{index}.layers.{0 if block.shared else layer}"
            cache = KvLayer(use, block.width // arch.head_size, arch.head_size)
            use += 1
            x, delta = walk_layer(graph, at, x, delta, cache, theta=theta, eps=eps, final=use == uses)
        before = block.width
    assert delta is not None
    normed, _ = graph.add_norm(delta, x, Norm("norm.weight", None, eps))
    if arch.blocks[-1].width != arch.blocks[0].width:
        normed = graph.linear(normed, "leave.weight")
    graph.head(normed, "embed_tokens.weight")


def walk_layer(
    graph: Dialect, at: str, x: str, delta: str | None, cache: KvLayer, *, theta: float, eps: float, final: bool
) -> tuple[str, str]:
    """One layer on the residual `x` and what is still to be added to it; returns the same pair.

    The final layer goes on with the last position alone once the cache is written: nothing else is asked of it.
    """
    norm = Norm(f"{at}.attention_norm.weight", None, eps)
    normed, x = graph.add_norm(delta, x, norm) if delta else (graph.norm(x, norm), x)
    mixed = graph.attention(graph.linear(normed, f"{at}.attention.qkv.weight"), cache, theta)
    if final:
        mixed, x = graph.last(mixed), graph.last(x)
    attended = graph.linear(mixed, f"{at}.attention.out.weight")
    normed, x = graph.add_norm(attended, x, Norm(f"{at}.ffn_norm.weight", None, eps))
    hidden = graph.activation(graph.linear(normed, f"{at}.up.weight"), "gelu")
    return x, graph.linear(hidden, f"{at}.down.weight")
