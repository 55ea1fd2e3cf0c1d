"""The default space: decoders of equal layers, as an engineer would train them.

A layer is an attention and an FFN; a decoder repeats it `depth` times between embedding and head. Weight format and
vocabulary belong to the request (`designer`).
"""

from dataclasses import dataclass
from typing import NamedTuple

from merino_edge.design.axes import attention, ffn, mixer, ngrams, taps
from merino_edge.families.designed import Architecture, Block, Ngrams


@dataclass(frozen=True)
class Space:
    """The values of each axis of a layer, and the numbers of layers. `kv_heads`: None: as many as query heads; numbers
    that do not divide a width's query heads are left out there."""

    widths: tuple[int, ...] = tuple(range(32, 2049, 32))
    depths: tuple[int, ...] = tuple(range(3, 65))  # the law was fitted from 3 layers on
    ffn_ratios: tuple[float, ...] = ffn.RATIOS
    gated: tuple[bool, ...] = ffn.GATED
    kv_heads: tuple[int | None, ...] = attention.KV_HEADS
    attention_every: tuple[int, ...] = mixer.EVERY
    taps: tuple[bool, ...] = taps.TAPS
    ngrams: tuple[tuple[Ngrams, ...], ...] = ngrams.TABLES

    def attentions(self) -> list[tuple[int, int]]:
        """Every (width, KV heads)."""
        return [(width, count) for width in self.widths for count in attention.kv_heads_of(width, self.kv_heads)]

    def ffns(self) -> list[tuple[int, float, bool]]:
        """Every (width, FFN ratio, gated)."""
        return [
            (width, ratio, gated)
            for width in self.widths for ratio in self.ffn_ratios if ffn.fits(width, ratio) for gated in self.gated
        ]  # fmt: skip


SPACE = Space()


class Layer(NamedTuple):
    """A kind of layer."""

    width: int
    kv_heads: int
    ffn_ratio: float
    gated: bool
    attention_every: int = 1  # of the layers of this kind; the others are gated convolutions
    taps: bool = False


def architecture(layer: Layer, depth: int, vocab: int, context: int, tables: tuple[Ngrams, ...] = ()) -> Architecture:
    size = attention.head_size(layer.width)
    heads = None if layer.kv_heads * size == layer.width else layer.kv_heads
    block = Block(
        width=layer.width, ffn_ratio=layer.ffn_ratio, depth=depth, kv_heads=heads, gated=layer.gated,
        attention_every=layer.attention_every,
    )  # fmt: skip
    return Architecture(blocks=(block,), vocab=vocab, head_size=size, context=context, taps=layer.taps, ngrams=tables)
