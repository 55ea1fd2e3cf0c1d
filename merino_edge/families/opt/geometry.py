"""The geometry of OPT (Zhang et al., arXiv 2205.01068): the baseline that goes through the same door as our models."""

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from merino_edge.families.operators import Operator, activation, attention, embed, head, linear, norm

POSITION_OFFSET = 2  # OPT's learned positions begin at row 2


class OptArchitecture(BaseModel):
    """Field for field what `transformers.OPTConfig` says of an OPT model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: Annotated[int, Field(ge=8)]
    layers: Annotated[int, Field(ge=1)]
    heads: Annotated[int, Field(ge=1)]
    ffn_width: Annotated[int, Field(ge=8)]
    embed_width: Annotated[int, Field(ge=8)]
    vocab: Annotated[int, Field(ge=2)]
    context: Annotated[int, Field(ge=2)]
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
    def operators(self) -> list[Operator]:
        return list(decoder_operators(self))

    @property
    def kv_layers(self) -> list[tuple[int, int]]:
        return [(self.heads, self.head_size)] * self.layers

    def shape(self) -> str:
        return f"{self.layers} layers of {self.width}, FFN {self.ffn_width}"


OPT_350M = OptArchitecture(
    width=1024, layers=24, heads=16, ffn_width=4096, embed_width=512, vocab=50272, context=2048, pre_norm=False
)
OPT_125M = OptArchitecture(
    width=768, layers=12, heads=12, ffn_width=3072, embed_width=768, vocab=50272, context=2048, pre_norm=True
)


def layer_operators(arch: OptArchitecture) -> Iterator[Operator]:
    """Attention and FFN with biases and two LayerNorms; where the norms stand does not change the counts."""
    width, ffn = arch.width, arch.ffn_width
    yield norm(width, affine=2)
    yield linear(width, 3 * width, bias=True, held=width)
    yield attention(width, arch.heads, held=width)
    yield linear(width, width, bias=True, held=width)
    yield norm(width, affine=2, held=width)
    yield linear(width, ffn, bias=True, held=width)
    yield activation(ffn, held=width)
    yield linear(ffn, width, bias=True, held=width)


def decoder_operators(arch: OptArchitecture) -> Iterator[Operator]:
    yield embed(arch.vocab, arch.embed_width)
    if arch.embed_width != arch.width:
        yield linear(arch.embed_width, arch.width)
    yield embed(arch.context + POSITION_OFFSET, arch.width, held=arch.width)
    for _ in range(arch.layers):
        yield from layer_operators(arch)
    if arch.pre_norm:
        yield norm(arch.width, affine=2, final=True)
    if arch.embed_width != arch.width:
        yield linear(arch.width, arch.embed_width, final=True)
    yield head(arch.embed_width, arch.vocab)
