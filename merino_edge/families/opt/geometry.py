"""The geometry of OPT (Zhang et al., arXiv 2205.01068), the baseline."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from merino_edge.families.geometry import LayerShape
from merino_edge.families.operators import Operator
from merino_edge.families.uniform import UniformGeometry
from merino_runtime.bundle_schema import LARGEST_VOCAB, LONGEST_CONTEXT

POSITION_OFFSET = 2  # the first position is row 2 of OPT's table of positions


class OptArchitecture(BaseModel):
    """A decoder of equal layers with LayerNorm, ReLU, biases and learned positions.

    Attributes:
        embed_width: of the embedding; where it is not `width`, a projection stands before the layers and one behind.
        pre_norm: whether the norms stand before attention and FFN, and one before the head; else they stand behind.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    def operators(self) -> list[Operator]:
        return as_uniform(self).operators

    @property
    def kv_layers(self) -> list[tuple[int, int]]:
        return as_uniform(self).kv_layers

    @property
    def layer_shapes(self) -> list[LayerShape]:
        return as_uniform(self).layer_shapes

    def shape(self) -> str:
        return as_uniform(self).shape()


def as_uniform(arch: OptArchitecture) -> UniformGeometry:
    """The same decoder in the terms that all families of equal layers share."""
    return UniformGeometry(
        layers=arch.layers, width=arch.width, heads=arch.heads, kv_heads=arch.heads, head_size=arch.head_size,
        ffn_width=arch.ffn_width, vocab=arch.vocab, context=arch.context, gated=False, norm="layer",
        final_norm=arch.pre_norm, query_key_norm=False, biases=("qkv", "out", "ffn"), positions="learned",
        position_offset=POSITION_OFFSET, tied=True, embed_width=arch.embed_width,
    )  # fmt: skip
