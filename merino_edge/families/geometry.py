"""The interface of a model's geometry: its operators, its graph, and its keys of config.json, both ways. Also the
operators of a decoder of equal layers.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from merino_edge.families.graph_ops import GraphOps
from merino_edge.families.operators import Operator, activation, attention, embed, head, linear, norm
from merino_edge.families.pre_norm import Decoder
from merino_edge.families.weights import Layout


class LayerShape(NamedTuple):
    """One use of a layer: channels of the residual stream, channels inside the FFN, query heads."""

    width: int
    ffn_width: int
    heads: int


class Geometry(Protocol):
    """A frozen pydantic model; each family has its own, with fields of its own."""

    @property
    def vocab(self) -> int:
        """Rows of the embedding, and logits."""

    @property
    def context(self) -> int:
        """The longest sequence in tokens."""

    @property
    def embed_width(self) -> int:
        """Channels of the embedding."""

    @property
    def operators(self) -> list[Operator]:
        """The operators in order of execution. Shared weights appear at each use."""

    @property
    def kv_layers(self) -> list[tuple[int, int]]:
        """(KV heads, head size) of each cache layer. A shared layer has one cache per use."""

    @property
    def layer_shapes(self) -> list[LayerShape]:
        """The shapes of layers in order of use. A shared layer appears at each use."""

    def shape(self) -> str:
        """Return one line for people."""

    def model_dump(self, *, mode: str = "python") -> dict[str, Any]:
        """Return the `architecture` object of bundle.json; as JSON has it with mode `json`."""

    @classmethod
    def model_validate(cls, obj: Any) -> Self:
        """Build the geometry from such an object. Raise pydantic's ValidationError."""

    @classmethod
    def of_config(cls, config: Any) -> Self:
        """Return the geometry of transformers' configuration. Raise MerinoError or ValidationError for one that cannot
        be exported."""

    def words(self) -> dict[str, Any]:
        """Return arguments of transformers' configuration."""

    def build_graph(self, graph: GraphOps) -> None:
        """Write the whole graph: ids to logits of the last position."""

    def decoder(self) -> Decoder | None:
        """Return the names and roles of the weights, if `build_decoder` writes the graph; else None."""

    def layout(self, name: str) -> Layout | None:
        """Return how a weight of the state dict lies in the graph; None if both are alike."""

    def key_order(self) -> np.ndarray | None:
        """Return which channel of torch's keys the graph has at each place of a head; None if both are alike."""


Keys = Mapping[str, str]  # by field of a geometry: the key of config.json with the same value


def words_by(keys: Keys, geometry: Any) -> dict[str, Any]:
    """Return arguments of transformers' configuration: lists as config.json has them, with 1 and 0 for booleans."""
    values = {key: getattr(geometry, field) for field, key in keys.items()}
    return {
        key: [int(part) if isinstance(part, bool) else part for part in value] if isinstance(value, tuple) else value
        for key, value in values.items()
    }


def facts_by(keys: Keys, config: Any) -> dict[str, Any]:
    """Return fields of a geometry."""
    return {field: getattr(config, key) for field, key in keys.items()}


def attention_operators(arch: Any, final: bool, *, gated: bool = False) -> Iterator[Operator]:
    """Yield the operators of an attention of `EqualLayers`. `gated`: whether the first matrix also computes a gate."""
    width, queries, cached = arch.width, arch.heads * arch.head_size, arch.kv_heads * arch.head_size
    packed = (2 if gated else 1) * queries + 2 * cached
    yield linear(width, packed, bias="qkv" in arch.biases, also_live=width)
    if kind := arch.head_norms(0):
        for normed in (queries, cached):
            live = queries + 2 * cached + normed + width
            vector = {"whole": normed, "plain": 0}.get(str(kind), arch.head_size)
            yield Operator("norm", vector=vector, live=live, vectors=normed)
    yield attention(queries, arch.heads, kv_width=cached, also_live=width)
    yield linear(queries, width, bias="out" in arch.biases, also_live=width, final=final)


def decoder_operators(arch: Any) -> Iterator[Operator]:
    """Yield all operators of `EqualLayers`. The places of the norms, and an FFN beside the attention, do not change the
    counts."""
    width, embedded, ffn, names = arch.width, arch.embed_width, arch.ffn_width, arch.WEIGHTS
    affine, biased = 2 if arch.NORM == "layer" else 1, "ffn" in arch.biases
    norms = names.attention_norm, names.norm_behind_attention, names.ffn_norm, names.norm_behind_ffn
    count = sum(map(bool, norms))
    yield embed(arch.vocab, embedded)
    if names.embedding_norm:
        yield norm(embedded, affine=affine)
    if embedded != width:
        yield linear(embedded, width)
    if names.positions:
        yield embed(arch.context + arch.POSITION_OFFSET, width, also_live=width)
    for layer in range(arch.layers):
        final = arch.LAST_ALONE and layer == arch.layers - 1
        yield norm(width, affine=affine)
        yield from arch.mixer(layer, final)
        yield from [norm(width, affine=affine, also_live=width, final=final)] * (count // 2)
        yield linear(width, 2 * ffn if arch.GATED else ffn, bias=biased, also_live=width, final=final)
        yield activation(ffn, also_live=width + ffn if arch.GATED else width, final=final)
        yield linear(ffn, width, bias=biased, also_live=width, final=final)
        if count == 4:
            yield norm(width, affine=affine, also_live=width, final=final)
    if getattr(arch, "pre_norm", True):
        yield norm(width, affine=affine, final=True)
    if embedded != width:
        yield linear(width, embedded, final=True)
    yield head(embedded, arch.vocab, own=not getattr(arch, "tied", True), bias=arch.HEAD_BIAS)
