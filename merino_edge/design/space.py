"""The search space of decoders: one option (width, FFN ratio, depth, sharing, KV heads) per block."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from merino_edge.families.designed import Block
from merino_edge.families.operators import GROUP_SIZES, Operator, embed
from merino_runtime.errors import MerinoError

FULL: tuple[int | None, ...] = (None,)
GROUPED: tuple[int | None, ...] = (1, 2, 4, 8, 16, 32, None)


@dataclass(frozen=True)
class Space:
    """Widths in steps of 64, ratios in steps of 0.5, four blocks (recalled); at most twelve layers (recalled: ten).

    Sharing is known. Own choices: a fixed number of `blocks`, `growth`, `kv_heads`. The effectiveness is computed for
    each block separately, so a search that may add blocks would always add as many as it can.

    `growth`: the last block is at most this many times as wide as the first. The embedding is as wide as the first
    block and tied to the head, so it limits the rank of the logits (the softmax bottleneck, Yang et al. 2018). The
    score ignores that rank: without this limit a tight latency budget gives an embedding of 64 channels.
    `narrow_head_size`: head size if the result has a narrow block; None: `head_size` everywhere.
    `kv_heads`: possible numbers of KV heads of a block, as far as they divide its query heads; None: as many as query
    heads.
    `padded`: a change of width pads or drops channels of the residual, without weights, so widths may shrink too, and
    `growth` bounds each width by the first. Else it is a learned projection, and widths never shrink.
    """

    widths: tuple[int, ...] = tuple(range(64, 1025, 64))
    ffn_ratios: tuple[float, ...] = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
    depths: tuple[int, ...] = tuple(range(1, 13))
    growth: float = 2.0
    blocks: int = 4
    vocab: int = 50257
    head_size: int = 64
    narrow_head_size: int | None = 32
    kv_heads: tuple[int | None, ...] = GROUPED
    padded: bool = False

    def options(self) -> tuple[Block, ...]:
        """Every block of the space whose rows can be cut into quantization groups."""
        return every_block(replace(self, vocab=2))

    def kv_heads_of(self, width: int) -> list[int]:
        """The possible numbers of KV heads of a block of this width, fewest first."""
        heads = width // self.head_size
        return sorted({heads if count is None else count for count in self.kv_heads if heads % (count or 1) == 0})

    @property
    def smallest_block(self) -> Block:
        return min(self.options(), key=size)

    @property
    def largest_table(self) -> Operator:
        return embed(self.vocab, max(self.widths))


@lru_cache(maxsize=8)  # called for each regime of a board
def every_block(space: Space) -> tuple[Block, ...]:
    return tuple(
        Block(width=width, ffn_ratio=ratio, depth=depth, shared=shared, kv_heads=kv_heads)
        for width in space.widths
        for kv_heads in space.kv_heads_of(width)
        for ratio in space.ffn_ratios
        if width * ratio % GROUP_SIZES[-1] == 0
        for depth in space.depths
        for shared in (False, True)
        if depth > 1 or not shared
    )


def size(block: Block) -> tuple[float, ...]:
    """Sort key: costs grow with width, ratio, depth and KV heads, and fall with sharing."""
    return block.width, block.ffn_ratio, block.depth, not block.shared, block.kv_heads or block.width


def kv_heads_named(words: Sequence[str]) -> tuple[int | None, ...]:
    """`Space.kv_heads` from the user's words: numbers, and `full` for as many as query heads.

    Raises MerinoError for a number that is no power of two: then no decoder might be smallest in every budget.
    """
    known = {"full" if count is None else str(count): count for count in GROUPED}
    bad = [word for word in words if word not in known]
    if bad:
        raise MerinoError(f"--kv-heads {', '.join(bad)} is not allowed: choose from {', '.join(known)}")
    return tuple(known[word] for word in words)


def spaced(
    step: int, blocks: int, vocab: int, head_size: int | None = None, kv_heads: tuple[int | None, ...] = GROUPED,
    padded: bool = False,
) -> Space:
    """Widths from 64 to 1024 in steps of 64 or 32. Without a head size: 64, then 32 if the result is narrow; 32 for
    steps of 32. `padded`: FFN ratios begin at 0.5.

    Raises MerinoError where the head size does not divide the widths.
    """
    if head_size is not None and step % head_size:
        raise MerinoError(f"--head-size {head_size} does not divide widths in steps of {step}: take 32, or steps of 64")
    return Space(
        widths=tuple(range(64, 1025, step)), blocks=blocks, vocab=vocab,
        head_size=head_size or step, narrow_head_size=None if head_size else 32,
        kv_heads=kv_heads, padded=padded,
        ffn_ratios=(0.5, *Space.ffn_ratios) if padded else Space.ffn_ratios,
    )  # fmt: skip


SEARCHED = spaced(64, Space.blocks, Space.vocab, padded=True)  # the default, for the measured law
