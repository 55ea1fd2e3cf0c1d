"""The decoder of text of Gemma 3n: Gemma 3's layers, with a table of embeddings for each layer.

Several streams of the residual run beside each other. A layer computes the first one and predicts the others (AltUp,
arXiv 2301.13310). A matrix of low rank runs beside the attention (LAuReL, arXiv 2411.07501). The gates of the first
layers are sparse. The last layers have no keys and values, and read those of an earlier layer.
"""

from collections.abc import Iterator
from dataclasses import replace
from statistics import NormalDist
from typing import Annotated, Any, ClassVar

from pydantic import Field

from merino_edge.families.equal_layers import GatedGeometry, Windowed, family
from merino_edge.families.gemma import GELU
from merino_edge.families.graph_ops import Attention, GraphOps, KvLayer, Norm
from merino_edge.families.operators import Operator, activation, attention, embed, head, linear, norm
from merino_edge.families.rotary import Positive
from merino_runtime.errors import MerinoError

LEAST = 1e-5  # the least mean square of a stream
Part = Annotated[int, Field(ge=1, le=1 << 20)]


class Gemma3nArchitecture(Windowed, GatedGeometry):
    """A decoder of the Gemma 3n kind.

    Attributes:
        local_rope_theta: of layers with the window.
        shared_layers: the last layers, each of which reads the cache of the last layer of its kind before them.
        streams: of the residual.
        rank: of the matrix beside the attention.
        layer_width, layer_vocab: of each layer's table. A token that it does not have takes its first row.
        sparsity: of each layer, the share of zeros in its gates, if these were normally distributed.
        scaled: whether the computed stream is scaled before it gates the table's row.
    """

    KEYS = {
        **GatedGeometry.KEYS, "logit_softcap": "final_logit_softcapping", "shared_layers": "num_kv_shared_layers",
        "streams": "altup_num_inputs", "rank": "laurel_rank", "layer_width": "hidden_size_per_layer_input",
        "layer_vocab": "vocab_size_per_layer_input", "scaled": "altup_correct_scale",
        "sparsity": "activation_sparsity_pattern",
    }  # fmt: skip
    NORMED_HEADS = True
    LISTED = "windowed"
    attention_scale: ClassVar[float] = 1.0

    local_rope_theta: Positive
    shared_layers: Annotated[int, Field(ge=0)]
    streams: Annotated[int, Field(ge=2, le=16)]
    rank: Part
    layer_width: Part
    layer_vocab: Part
    sparsity: tuple[Annotated[float, Field(ge=0, lt=1)], ...]
    scaled: bool
    logit_softcap: Positive

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        widths = set(config.intermediate_size)
        if len(widths) > 1:
            raise MerinoError(f"intermediate_size has {sorted(widths)}, supported is one width for all layers")
        first = config.num_hidden_layers - config.num_kv_shared_layers
        if not set(config.layer_types[first:]) <= set(config.layer_types[:first]):
            raise MerinoError("layer_types has a layer that reads another's cache, and no layer before it writes that")
        return {**super().facts(config), "ffn_width": widths.pop()}

    @property
    def kv_layers(self) -> list[tuple[int, int]]:
        return [(self.kv_heads, self.head_size)] * (self.layers - self.shared_layers)

    @property
    def operators(self) -> list[Operator]:
        return list(operators(self))

    def build_graph(self, graph: GraphOps) -> None:
        build(graph, self)

    def decoder(self) -> None:
        """There is none: `build` writes the graph."""

    def cache_of(self, layer: int) -> KvLayer:
        """Return the cache layer that a layer writes, or that it reads if it is shared."""
        own = self.layers - self.shared_layers
        same = [index for index in range(own) if self.windowed[index] == self.windowed[layer]]
        return KvLayer(layer if layer < own else same[-1], self.kv_heads, self.head_size)

    def attention_of(self, layer: int) -> Attention:
        values = Norm("", None, self.norm_eps, self.head_size)
        shared = layer >= self.layers - self.shared_layers
        return replace(super().attention_of(layer), value_norm=values, shared=shared)


def operators(arch: Gemma3nArchitecture) -> Iterator[Operator]:
    """Yield the operators. The small matrices that route the streams are floats in each format, so they are counted as
    vectors."""
    width, ffn, table, streams = arch.width, arch.ffn_width, arch.layers * arch.layer_width, arch.streams
    queries, cached = arch.heads * arch.head_size, arch.kv_heads * arch.head_size
    also, router = streams * width, width * (streams + 1)
    yield embed(arch.vocab, width)
    yield embed(arch.layer_vocab, table)
    yield linear(width, table)
    yield Operator("norm", vector=arch.layer_width, live=2 * table, vectors=table)
    yield from [linear(width, width, also_live=also)] * (streams - 1)
    for layer in range(arch.layers):
        own, final = layer < arch.layers - arch.shared_layers, layer == arch.layers - 1
        yield Operator("norm", vector=router + streams**3, live=3 * also, vectors=also)
        yield norm(width, also_live=also)
        yield linear(width, queries + 2 * cached * own, also_live=also)
        for normed in (queries, cached)[: 1 + own]:
            yield Operator("norm", vector=arch.head_size, live=queries + 2 * cached + also, vectors=normed)
        yield attention(queries, arch.heads, kv_width=cached * own, also_live=also)
        yield linear(queries, width, also_live=also, final=final)
        yield linear(width, arch.rank, also_live=also, final=final)
        yield linear(arch.rank, width, also_live=also, final=final)
        yield from [norm(width, also_live=also, final=final)] * 3
        yield linear(width, 2 * ffn, also_live=also, final=final)
        yield activation(ffn, also_live=ffn + also, final=final)
        yield linear(ffn, width, also_live=also, final=final)
        yield norm(width, also_live=also, final=final)
        yield Operator("norm", vector=streams**2 + width, live=3 * also, vectors=also, final=final)
        yield linear(width, arch.layer_width, also_live=also, final=final)
        yield linear(arch.layer_width, width, also_live=also, final=final)
        yield norm(width, also_live=also, final=final)
    yield from [linear(width, width, also_live=also, final=True)] * (streams - 1)
    yield norm(width, final=True)
    yield head(width, arch.vocab, own=not arch.tied)


def build(graph: GraphOps, arch: Gemma3nArchitecture) -> None:
    """Write the whole graph: ids to logits of the last position."""
    width, count, size = arch.width, arch.streams, arch.layer_width
    # 1. The embedding, and each layer's input [1, T, size] from its table and from the embedding.
    x = graph.scale(graph.embed("model.embed_tokens.weight"), width**0.5)
    below = arch.layer_vocab if arch.layer_vocab < arch.vocab else None
    rows = graph.scale(graph.embed("model.embed_tokens_per_layer.weight", below), size**0.5)
    projected = graph.scale(graph.linear(x, "model.per_layer_model_projection.weight"), width**-0.5)
    inputs = [
        graph.scale(graph.add(graph.norm(part, arch.norm("model.per_layer_projection_norm")), row), 0.5**0.5)
        for part, row in zip(*(graph.split(one, [size] * arch.layers) for one in (projected, rows)), strict=True)
    ]
    # 2. The streams, [1, T, count * width].
    others = [graph.linear(x, f"model.altup_projections.{index}.weight") for index in range(count - 1)]
    streams = graph.concat(as_large(graph, x, others))
    # 3. The layers.
    for layer in range(arch.layers):
        streams = build_layer(graph, arch, layer, streams, inputs[layer])
    # 4. The mean of the streams, and the head.
    x, *others = graph.split(streams, [width] * count)
    others = [graph.linear(one, f"model.altup_unembed_projections.{index}.weight") for index, one in enumerate(others)]
    first, *rest = as_large(graph, x, others)
    for stream in rest:
        first = graph.add(first, stream)
    normed = graph.norm(graph.scale(first, 1 / count), arch.norm("model.norm"))
    graph.head(normed, "model.embed_tokens.weight" if arch.tied else "lm_head.weight", softcap=arch.logit_softcap)


def as_large(graph: GraphOps, x: str, others: list[str]) -> list[str]:
    """Return x, and the other streams with the root mean square of x at each position."""
    size = graph.rms(x)
    return [x, *(graph.multiply(one, graph.divide(size, graph.rms(one, LEAST))) for one in others)]


def build_layer(graph: GraphOps, arch: Gemma3nArchitecture, layer: int, streams: str, row: str) -> str:
    """Return the streams [1, T, streams * width] behind a layer. `row`: the layer's own input."""
    at, width, attended = f"model.layers.{layer}", arch.width, arch.attention_of(layer)
    sizes = [width, (arch.streams - 1) * width]

    def weight(name: str) -> str:
        return f"{at}.{name}.weight"

    def times(x: str, *names: str) -> str:
        return graph.packed_linear(x, [weight(name) for name in names])

    def normed(x: str, name: str) -> str:
        return graph.norm(x, arch.norm(f"{at}.{name}"))

    def routed(x: str, coefficients: str) -> str:
        scaled = graph.scale(normed(x, "altup.router_norm"), 1 / width)
        router = graph.activation(graph.float_linear(scaled, weight("altup.modality_router")), "tanh")
        return graph.float_linear(router, weight(coefficients))

    # 1. Predict the streams from each other.
    factors = routed(graph.split(streams, sizes)[0], "altup.prediction_coefs")
    streams = graph.add(streams, graph.mix(streams, factors, arch.streams))
    x = graph.split(streams, sizes)[0]
    # 2. Attention, beside it the matrix of low rank.
    before = normed(x, "input_layernorm")
    packed = times(before, *(f"self_attn.{part}_proj" for part in ("q" if attended.shared else "qkv")))
    mixed = graph.attention(packed, arch.cache_of(layer), attended)
    if layer == arch.layers - 1:
        mixed, x, before, streams, row = (graph.last(one) for one in (mixed, x, before, streams, row))
    low = normed(times(times(before, "laurel.linear_left"), "laurel.linear_right"), "laurel.post_laurel_norm")
    attn = graph.add(x, normed(times(mixed, "self_attn.o_proj"), "post_attention_layernorm"))
    attn = graph.scale(graph.add(attn, graph.add(before, low)), 0.5**0.5)
    # 3. The FFN.
    hidden = times(normed(attn, "pre_feedforward_layernorm"), "mlp.gate_proj", "mlp.up_proj")
    if sparsity := arch.sparsity[layer]:
        gate, up = graph.split(hidden, [arch.ffn_width] * 2)
        gate = graph.centered(gate)
        gate = graph.add(gate, graph.scale(graph.rms(gate), -NormalDist().inv_cdf(sparsity)))
        hidden = graph.multiply(graph.activation(graph.activation(gate, "relu"), "gelu"), up)
    else:
        hidden = graph.gated(hidden, "gelu")
    fed = graph.add(attn, normed(times(hidden, "mlp.down_proj"), "post_feedforward_layernorm"))
    # 4. Correct the predicted streams by what the layer computed.
    change = graph.add(fed, graph.scale(x, -1.0))
    change = graph.mix(change, graph.shift(routed(fed, "altup.correction_coefs"), 1.0), 1)
    computed, others = graph.split(graph.add(streams, change), sizes)
    # 5. Add the layer's own input to all streams but the first.
    gate = graph.weigh(computed, f"{at}.altup.correct_output_scale") if arch.scaled else computed
    gate = graph.multiply(graph.activation(times(gate, "per_layer_input_gate"), "gelu"), row)
    more = normed(times(gate, "per_layer_projection"), "post_per_layer_input_norm")
    return graph.concat([computed, graph.add(others, graph.concat([more] * (arch.streams - 1)))])


FAMILY = family(
    "gemma3n_text", Gemma3nArchitecture, "Gemma3n", {**GELU, "altup_active_idx": 0},
    ("rope_local_base_freq", "altup_coef_clip"), config_name="Gemma3nTextConfig",
)  # fmt: skip
