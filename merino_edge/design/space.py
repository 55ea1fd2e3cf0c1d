"""The space of decoders that a search chooses from: one option (width, FFN ratio, depth, shared) per block."""

from dataclasses import dataclass

from merino_edge.families.designed import Block
from merino_edge.families.operators import BLOCKS, Operator, embed
from merino_runtime.errors import MerinoError


@dataclass(frozen=True)
class Space:
    """Widths in steps of 64, ratios in steps of 0.5, four blocks (recalled); at most twelve layers (recalled: ten).

    Sharing is known. `blocks` is the exact number of blocks (ours): the effectiveness counts each block by itself, so a
    search that may add blocks would always add as many as it can.

    `growth` (ours): the last block is at most this many times as wide as the first. The embedding is as wide as the
    first block and is the head too, so it caps the rank of the logits (the softmax bottleneck, Yang et al. 2018). The
    score does not see that rank: without the cap a tight limit on latency gives an embedding of 64 channels.
    `narrow_head_size`: head size where the result has a narrow block; None: `head_size` everywhere.
    """

    widths: tuple[int, ...] = tuple(range(64, 1025, 64))
    ffn_ratios: tuple[float, ...] = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
    depths: tuple[int, ...] = tuple(range(1, 13))
    growth: float = 2.0
    blocks: int = 4
    vocab: int = 50257
    head_size: int = 64
    narrow_head_size: int | None = 32

    def options(self) -> list[Block]:
        """Every block of the space whose matrix rows can be cut into quantisation blocks."""
        return [
            Block(width=width, ffn_ratio=ratio, depth=depth, shared=shared)
            for width in self.widths
            for ratio in self.ffn_ratios
            if width * ratio % BLOCKS[-1] == 0
            for depth in self.depths
            for shared in (False, True)
            if depth > 1 or not shared
        ]

    @property
    def smallest_block(self) -> Block:
        return Block(width=min(self.widths), ffn_ratio=min(self.ffn_ratios), depth=min(self.depths))

    @property
    def largest_table(self) -> Operator:
        return embed(self.vocab, max(self.widths))


def spaced(step: int, blocks: int, vocab: int, head_size: int | None = None) -> Space:
    """Widths from 64 to 1024 in steps of 64 or 32. Without a head size: 64 and 32 in turn, or 32 where steps need it.

    Raises MerinoError where heads do not divide the widths.
    """
    if head_size is not None and step % head_size:
        raise MerinoError(f"--head-size {head_size} does not divide widths in steps of {step}: take 32, or steps of 64")
    return Space(
        widths=tuple(range(64, 1025, step)), blocks=blocks, vocab=vocab,
        head_size=head_size or step, narrow_head_size=None if head_size else 32,
    )  # fmt: skip
