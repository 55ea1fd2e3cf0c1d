"""The interface of a model's geometry, and the geometry of decoders whose layers are equal.

One function counts the operators of all decoders of equal layers, which differ only in switches: biases, kinds of norm,
learned or rotary positions, a gated FFN, fewer KV heads than query heads, a head with its own weights.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from merino_edge.families.operators import Operator, activation, attention, embed, head, linear, norm

Count = Annotated[int, Field(gt=0)]
Biased = Literal["qkv", "out", "ffn"]


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


class UniformGeometry(BaseModel):
    """A decoder of equal layers.

    Attributes:
        kv_heads: KV heads; fewer than `heads` in grouped-query attention (GQA, Ainslie et al. 2023).
        head_size: channels of a head; `heads * head_size` need not be `width`.
        gated: whether the FFN has a third matrix, whose output multiplies the first one's (SwiGLU, Shazeer 2020).
        norm: LayerNorm (`layer`) has two parameters per channel, RMSNorm (`rms`) one.
        final_norm: whether a norm stands before the head.
        query_key_norm: whether queries and keys are normed, with one parameter per channel of a head; `whole`: per
            channel of all heads; `plain`: without parameters.
        biases: which matrices have one: packed queries, keys and values; attention's output; those of the FFN.
        positions: `learned` is an embedding of `context` + `position_offset` rows, of which the first are never read.
        tied: whether the head is the embedding.
        embed_width: of the embedding; where it is not `width`, a projection stands before the layers and one behind.
        norms: of a layer: 2 stand before or behind attention and FFN, 4 do both, 1 is shared by both.
        embedding_norm, head_bias: whether the embedding is normed, and whether the head has a bias.
        last_alone: whether the graph computes only the last position behind the last attention; else from the final
            norm on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    layers: Count
    width: Count
    heads: Count
    kv_heads: Count
    head_size: Count
    ffn_width: Count
    vocab: Count
    context: Count
    gated: bool
    norm: Literal["layer", "rms"]
    final_norm: bool
    query_key_norm: bool | Literal["whole", "plain"]
    biases: Annotated[tuple[Biased, ...], Field(strict=False)]
    positions: Literal["learned", "rotary"]
    position_offset: Annotated[int, Field(ge=0)]
    tied: bool
    embed_width: Count
    norms: Literal[1, 2, 4] = 2
    embedding_norm: bool = False
    head_bias: bool = False
    last_alone: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        return self

    @property
    def operators(self) -> list[Operator]:
        return list(decoder_operators(self, lambda _, final: attention_operators(self, final)))

    @property
    def kv_layers(self) -> list[tuple[int, int]]:
        return [(self.kv_heads, self.head_size)] * self.layers

    @property
    def layer_shapes(self) -> list[LayerShape]:
        return [LayerShape(self.width, self.ffn_width, self.heads)] * self.layers

    @property
    def query_width(self) -> int:
        return self.heads * self.head_size

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_size

    def shape(self) -> str:
        return f"{self.layers} layers of {self.width}, FFN {'gated ' if self.gated else ''}{self.ffn_width}"


class EqualLayers(BaseModel):
    """A family's own geometry, of equal layers: it implements `Geometry` by its counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def counts(self) -> UniformGeometry:
        """The same decoder in the terms that all such families share."""
        raise NotImplementedError

    @property
    def operators(self) -> list[Operator]:
        return list(decoder_operators(self.counts, self.mixer))

    def mixer(self, layer: int, final: bool) -> Iterable[Operator]:  # noqa: ARG002 - layers of a family may differ
        """Return the operators that mix the positions in a layer. `final`: whether it computes one position only
        behind them."""
        return attention_operators(self.counts, final)

    @property
    def kv_layers(self) -> list[tuple[int, int]]:
        return self.counts.kv_layers

    @property
    def layer_shapes(self) -> list[LayerShape]:
        return self.counts.layer_shapes

    def shape(self) -> str:
        return self.counts.shape()


Keys = Mapping[str, str]  # by field of a geometry: the key of config.json with the same value


def words_by(keys: Keys, geometry: Any) -> dict[str, Any]:
    """Return arguments of transformers' configuration."""
    return {key: getattr(geometry, field) for field, key in keys.items()}


def facts_by(keys: Keys, config: Any) -> dict[str, Any]:
    """Return fields of a geometry."""
    return {field: getattr(config, key) for field, key in keys.items()}


def attention_operators(geometry: UniformGeometry, final: bool, *, gated: bool = False) -> Iterator[Operator]:
    """Yield the operators of an attention. `gated`: whether its first matrix also computes a gate of its output."""
    width, queries, cached = geometry.width, geometry.query_width, geometry.kv_width
    packed = (2 if gated else 1) * queries + 2 * cached
    yield linear(width, packed, bias="qkv" in geometry.biases, also_live=width)
    if geometry.query_key_norm:
        for normed in (queries, cached):
            live = queries + 2 * cached + normed + width
            vector = {"whole": normed, "plain": 0}.get(str(geometry.query_key_norm), geometry.head_size)
            yield Operator("norm", vector=vector, live=live, vectors=normed)
    yield attention(queries, geometry.heads, kv_width=cached, also_live=width)
    yield linear(queries, width, bias="out" in geometry.biases, also_live=width, final=final)


def layer_operators(geometry: UniformGeometry, mixer: Iterable[Operator], final: bool) -> Iterator[Operator]:
    """Yield one layer. Where the norms stand, and whether the FFN runs beside the attention, does not change the
    counts."""
    width, ffn = geometry.width, geometry.ffn_width
    affine = 2 if geometry.norm == "layer" else 1
    yield norm(width, affine=affine)
    yield from mixer
    for _ in range(geometry.norms // 2):
        yield norm(width, affine=affine, also_live=width, final=final)
    biased = "ffn" in geometry.biases
    yield linear(width, 2 * ffn if geometry.gated else ffn, bias=biased, also_live=width, final=final)
    yield activation(ffn, also_live=width + ffn if geometry.gated else width, final=final)
    yield linear(ffn, width, bias=biased, also_live=width, final=final)
    if geometry.norms == 4:
        yield norm(width, affine=affine, also_live=width, final=final)


def decoder_operators(
    geometry: UniformGeometry, mixer: Callable[[int, bool], Iterable[Operator]]
) -> Iterator[Operator]:
    width, embedded = geometry.width, geometry.embed_width
    yield embed(geometry.vocab, embedded)
    affine = 2 if geometry.norm == "layer" else 1
    if geometry.embedding_norm:
        yield norm(embedded, affine=affine)
    if embedded != width:
        yield linear(embedded, width)
    if geometry.positions == "learned":
        yield embed(geometry.context + geometry.position_offset, width, also_live=width)
    for layer in range(geometry.layers):
        final = geometry.last_alone and layer == geometry.layers - 1
        yield from layer_operators(geometry, mixer(layer, final), final)
    if geometry.final_norm:
        yield norm(width, affine=affine, final=True)
    if embedded != width:
        yield linear(width, embedded, final=True)
    yield head(embedded, geometry.vocab, own=not geometry.tied, bias=geometry.head_bias)
