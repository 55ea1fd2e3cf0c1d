"""The geometry of a MeRino decoder, and the operators it consists of.

Leaves to others: the weights (`model`), the graph (`export`), the search (`design`).
Source of the shape: MeRino, arXiv 2403.07921 (blocks of width, FFN ratio and depth: known; the rest as marked).
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from merino_edge.families.operators import Operator, activation, attention, embed, head, linear, norm


class Block(BaseModel):
    """`depth` layers of one width and FFN ratio; a shared block uses one layer's weights `depth` times."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: Annotated[int, Field(ge=32, le=8192, multiple_of=32)]
    ffn_ratio: Annotated[float, Field(ge=0.5, le=8)]
    depth: Annotated[int, Field(ge=1, le=64)]
    shared: bool = False

    @property
    def ffn_width(self) -> int:
        return round(self.width * self.ffn_ratio)

    @model_validator(mode="after")
    def _whole_ffn(self) -> Self:
        if self.ffn_width != self.width * self.ffn_ratio:
            raise ValueError(f"ffn_ratio {self.ffn_ratio} of width {self.width} is not a whole number of channels")
        return self


class Architecture(BaseModel):
    """A decoder: blocks whose widths never shrink, a vocabulary, the size of a head, the longest context in tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blocks: Annotated[tuple[Block, ...], Field(min_length=1, max_length=16)]
    vocab: Annotated[int, Field(ge=2, le=1_000_000)]
    head_size: Annotated[int, Field(ge=8, le=256, multiple_of=8)] = 64
    context: Annotated[int, Field(ge=2, le=131_072)] = 1024

    @model_validator(mode="after")
    def _fits(self) -> Self:
        widths = [block.width for block in self.blocks]
        if widths != sorted(widths):
            raise ValueError(f"widths must not shrink from block to block, found {widths}")
        bad = [width for width in widths if width % self.head_size]
        if bad:
            raise ValueError(f"each width must be a multiple of head_size {self.head_size}, found {bad}")
        return self

    @property
    def operators(self) -> list[Operator]:
        return list(decoder_operators(self))

    @property
    def kv_layers(self) -> list[tuple[int, int]]:
        """(heads, head_size) of each cache layer; a shared layer has one cache per use."""
        return [
            (block.width // self.head_size, self.head_size) for block in self.blocks for _ in range(block.depth)
        ]

    def shape(self) -> str:
        """For people: `384x1.5x4 512x1.5x5s`, width x FFN ratio x depth, `s` where shared."""
        return " ".join(f"{b.width}x{b.ffn_ratio:g}x{b.depth}{'s' if b.shared else ''}" for b in self.blocks)


def layer_operators(
    width: int, ffn_width: int, heads: int, *, own: bool = True, final: bool = False
) -> Iterator[Operator]:
    """One pre-norm layer: RMSNorm, packed QKV, attention, output, RMSNorm, up, GELU, down; no biases."""
    yield norm(width, own=own)
    yield linear(width, 3 * width, own=own, held=width)
    yield attention(width, heads, held=width)
    yield linear(width, width, own=own, held=width, final=final)
    yield norm(width, own=own, held=width, final=final)
    yield linear(width, ffn_width, own=own, held=width, final=final)
    yield activation(ffn_width, held=width, final=final)
    yield linear(ffn_width, width, own=own, held=width, final=final)


def block_operators(block: Block, head_size: int, *, last: bool = False) -> Iterator[Operator]:
    """`last`: the decoder's last block, whose last layer goes on with one position once its cache is written."""
    for use in range(block.depth):
        own = use == 0 or not block.shared
        final = last and use == block.depth - 1
        layer = layer_operators(block.width, block.ffn_width, block.width // head_size, own=own, final=final)
        yield from layer if own else again(layer)


def again(layer: Iterable[Operator]) -> Iterator[Operator]:
    """A layer whose weights were used just before: between two uses of a matrix all of the layer's are read."""
    ops = list(layer)
    between = sum(op.matrix for op in ops)
    return (replace(op, reread=between) if op.matrix else op for op in ops)


def transition_operators(before: int, after: int, *, final: bool = False) -> Iterator[Operator]:
    """The projection where the width changes; nothing where it does not."""
    if before != after:
        yield linear(before, after, final=final)


def end_operators(first: int, last: int, vocab: int) -> Iterator[Operator]:
    """Embedding, final norm, the way back to the embedding's width, and the tied head."""
    yield embed(vocab, first)
    yield norm(last, final=True)
    yield from transition_operators(last, first, final=True)
    yield head(first, vocab)


def decoder_operators(arch: Architecture) -> Iterator[Operator]:
    first, last = arch.blocks[0].width, arch.blocks[-1].width
    for index, block in enumerate(arch.blocks):
        yield from transition_operators(arch.blocks[max(0, index - 1)].width, block.width)
        yield from block_operators(block, arch.head_size, last=index == len(arch.blocks) - 1)
    yield from end_operators(first, last, arch.vocab)
