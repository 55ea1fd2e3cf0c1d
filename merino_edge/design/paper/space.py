"""The paper's space of decoders: blocks with a width, an FFN ratio and a depth each, and with shared layers or not.

Known: the variables, and sharing. Recalled: widths in steps of 64, ratios in steps of 0.5, four blocks, at most ten
layers each. Own choices: twelve layers, a fixed number of blocks, and `growth`. The effectiveness is computed for each
block separately, so a search that may add blocks would always add as many as it can. Attention has as many KV heads as
query heads, as far as known.
"""

from dataclasses import dataclass

from merino_edge.families.designed import Architecture, Block
from merino_edge.families.operators import GROUP


@dataclass(frozen=True)
class PaperSpace:
    """Widths never shrink from block to block; a learned projection changes them.

    `growth`: the last block is at most this many times as wide as the first. The embedding is as wide as the first
    block and tied to the head, so it limits the rank of the logits (the softmax bottleneck, Yang et al. 2018). The
    score ignores that rank: without this limit a tight latency budget gives an embedding of 64 channels.
    """

    widths: tuple[int, ...] = tuple(range(64, 1025, 64))
    ffn_ratios: tuple[float, ...] = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
    depths: tuple[int, ...] = tuple(range(1, 13))
    growth: float = 2.0
    blocks: int = 4
    vocab: int = 50257
    head_size: int = 64

    def layers(self) -> list[tuple[int, float]]:
        """Every (width, FFN ratio) whose rows can be cut into quantization groups."""
        pairs = [(width, ratio) for width in self.widths for ratio in self.ffn_ratios]
        return [(width, ratio) for width, ratio in pairs if width * ratio % GROUP == 0]

    def options(self) -> list[Block]:
        """Every block."""
        return [
            Block(width=width, ffn_ratio=ratio, depth=depth, shared=shared)
            for width, ratio in self.layers() for depth in self.depths for shared in (False, True)
            if depth > 1 or not shared
        ]  # fmt: skip

    def smallest(self) -> list[Block]:
        """Return the narrowest and shallowest block, with shared layers (if it has several) and without."""
        sizes = {block: (block.width, block.ffn_ratio, block.depth) for block in self.options()}
        return [block for block, size in sizes.items() if size == min(sizes.values())]

    def architecture(self, blocks: tuple[Block, ...], context: int) -> Architecture:
        return Architecture(blocks=blocks, vocab=self.vocab, head_size=self.head_size, context=context)


PAPER_SPACE = PaperSpace()
