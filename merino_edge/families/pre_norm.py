"""The graph builder of most published decoders: norms before or behind attention and FFN, or both.

A family defines the weights and the switches of its `Decoder`. It may share this graph builder and need not.
"""

from dataclasses import dataclass
from typing import NamedTuple

from merino_edge.families.graph_ops import Attention, Delta, GraphOps, KvLayer, Norm


@dataclass(frozen=True)
class Linear:
    """Names of one or several matrices with one input, joined along their outputs, and of their biases."""

    weights: tuple[str, ...]
    biases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        qkv: queries, keys and values, in that order.
        convolution: the taps of a gated convolution, which replaces the attention; `qkv` and `out` are its matrices.
        delta: gated DeltaNet, which replaces the attention too.
        attention_taps, ffn_taps: causal taps behind these norms, and the cache layers of their inputs.
        up: into the FFN; if it is `gated`, the matrix of the activated half is the first.
        attention_norm, ffn_norm: before attention and FFN; None if there is none. If attention and FFN are parallel, an
            FFN without a norm reads the input of the attention.
        norm_behind_attention, norm_behind_ffn: on the output that is added to the residual; None if there is none.
    """

    cache: KvLayer
    attention: Attention
    attention_norm: Norm | None
    qkv: Linear
    out: Linear
    ffn_norm: Norm | None
    up: Linear
    down: Linear
    activation: str
    gated: bool
    norm_behind_attention: Norm | None = None
    norm_behind_ffn: Norm | None = None
    convolution: str | None = None
    delta: Delta | None = None
    attention_taps: tuple[str, KvLayer] | None = None
    ffn_taps: tuple[str, KvLayer] | None = None


@dataclass(frozen=True)
class Decoder:
    """A whole one.

    Attributes:
        head: the LM head's matrix, which may be the embedding.
        positions: the position embedding and the row of the first one; None for a family without.
        parallel: whether attention and FFN of a layer read the same residual, and are added to it together.
        embedding_factor, residual_factor, logit_factor: on the embedding, on each sublayer's output, on the logits.
        embedding_norm: on the embedding.
        head_bias, logit_softcap: of the logits; see `GraphOps.head`.
    """

    embedding: str
    head: str
    layers: tuple[Layer, ...]
    final_norm: Norm
    positions: tuple[str, int] | None = None
    parallel: bool = False
    embedding_factor: float = 1.0
    residual_factor: float = 1.0
    logit_factor: float = 1.0
    embedding_norm: Norm | None = None
    head_bias: str | None = None
    logit_softcap: float | None = None


class Names(NamedTuple):
    """Names of the weights in a state dict. Those of a layer follow `layer`. Matrices with one input are in one string.
    A norm that a family does not have is empty."""

    layer: str = "model.layers.{}"
    attention_norm: str = "input_layernorm"
    qkv: str = "self_attn.q_proj self_attn.k_proj self_attn.v_proj"
    query_norm: str = "self_attn.q_norm"
    key_norm: str = "self_attn.k_norm"
    out: str = "self_attn.o_proj"
    norm_behind_attention: str = ""
    ffn_norm: str = "post_attention_layernorm"
    up: str = "mlp.gate_proj mlp.up_proj"
    down: str = "mlp.down_proj"
    norm_behind_ffn: str = ""
    embedding: str = "model.embed_tokens"
    embedding_norm: str = ""
    positions: str = ""
    final_norm: str = "model.norm"
    head: str = "lm_head"


LLAMA = Names()
NORMS_BEHIND = Names(
    attention_norm="", norm_behind_attention="post_attention_layernorm", ffn_norm="",
    norm_behind_ffn="post_feedforward_layernorm",
)  # fmt: skip


def build_decoder(graph: GraphOps, decoder: Decoder) -> None:
    """Write the whole graph: ids to logits of the last position.

    The norm that follows writes the sum of a sublayer's output `delta` and its residual `x`, so that a dialect can fuse
    the two. Behind the last attention only the last position is computed, since only its logits are needed.
    """
    embedded = normed_behind(graph, graph.embed(decoder.embedding), decoder.embedding_norm)
    x, delta = scaled(graph, embedded, decoder.embedding_factor), None
    if decoder.positions:
        x = graph.add(x, graph.embed_positions(*decoder.positions))
    for layer in decoder.layers:
        x, delta = build_layer(graph, decoder, layer, x, delta)
    normed, _ = residual_norm(graph, x, delta, decoder.final_norm)
    normed = scaled(graph, normed, decoder.logit_factor)
    graph.head(normed, decoder.head, decoder.head_bias, decoder.logit_softcap)


def build_layer(graph: GraphOps, decoder: Decoder, layer: Layer, x: str, delta: str | None) -> tuple[str, str]:
    """Return (x, delta) before the layer -> (x, delta) after it."""
    normed, x = residual_norm(graph, x, delta, layer.attention_norm)
    packed = linear(graph, tapped(graph, normed, layer.attention_taps), layer.qkv)
    if layer.convolution:
        mixed = graph.gated_taps(packed, layer.convolution, layer.cache)
    elif layer.delta:
        mixed = graph.delta(packed, layer.delta)
    else:
        mixed = graph.attention(packed, layer.cache, layer.attention)
    if layer == decoder.layers[-1]:
        mixed, x = graph.last(mixed), graph.last(x)
        normed = graph.last(normed) if decoder.parallel and not layer.ffn_norm else normed
    attended = normed_behind(graph, linear(graph, mixed, layer.out), layer.norm_behind_attention)
    attended = scaled(graph, attended, decoder.residual_factor)
    if not decoder.parallel:
        normed, x = residual_norm(graph, x, attended, layer.ffn_norm)
    elif layer.ffn_norm:
        normed = graph.norm(x, layer.ffn_norm)
    fed = normed_behind(graph, ffn(graph, layer, tapped(graph, normed, layer.ffn_taps)), layer.norm_behind_ffn)
    fed = scaled(graph, fed, decoder.residual_factor)
    return x, graph.add(attended, fed) if decoder.parallel else fed


def tapped(graph: GraphOps, x: str, taps: tuple[str, KvLayer] | None) -> str:
    return graph.taps(x, *taps) if taps else x


def ffn(graph: GraphOps, layer: Layer, x: str) -> str:
    hidden = linear(graph, x, layer.up)
    hidden = graph.gated(hidden, layer.activation) if layer.gated else graph.activation(hidden, layer.activation)
    return linear(graph, hidden, layer.down)


def linear(graph: GraphOps, x: str, matrices: Linear) -> str:
    return graph.packed_linear(x, list(matrices.weights), list(matrices.biases) or None)


def residual_norm(graph: GraphOps, x: str, delta: str | None, norm: Norm | None) -> tuple[str, str]:
    """Return (norm(x + delta), x + delta), if there is a delta and a norm."""
    if norm:
        return graph.add_norm(delta, x, norm) if delta else (graph.norm(x, norm), x)
    total = graph.add(delta, x) if delta else x
    return total, total


def normed_behind(graph: GraphOps, x: str, norm: Norm | None) -> str:
    return graph.norm(x, norm) if norm else x


def scaled(graph: GraphOps, x: str, factor: float) -> str:
    return graph.scale(x, factor) if factor != 1.0 else x
