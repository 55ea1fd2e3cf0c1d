"""Weights in blocks as a source has them stored, so that a graph of equal blocks can take them without a second
rounding."""

from typing import NamedTuple, Protocol

import numpy as np


class Blocks(NamedTuple):
    """A matrix [rows, columns] whose rows are cut into blocks: weight = level * scale + minimum, exactly.

    `bits`: the fewest that hold all levels, from -2^(bits - 1) to 2^(bits - 1) - 1.
    """

    levels: np.ndarray  # int8 [rows, columns / block, block]
    scales: np.ndarray  # float32 [rows, columns / block]
    minimums: np.ndarray | None  # float32 [rows, columns / block]; None where all are 0
    bits: int

    @property
    def block(self) -> int:
        return int(self.levels.shape[-1])

    def rows(self, order: np.ndarray) -> "Blocks":
        """With its rows in another order; a block lies within a row."""
        minimums = None if self.minimums is None else self.minimums[order]
        return Blocks(self.levels[order], self.scales[order], minimums, self.bits)

    def cut(self, block: int) -> "Blocks":
        """The same weights in smaller blocks, of which several then share a scale."""
        parts = self.block // block
        minimums = None if self.minimums is None else self.minimums.repeat(parts, axis=1)
        levels = self.levels.reshape(len(self.levels), -1, block)
        return Blocks(levels, self.scales.repeat(parts, axis=1), minimums, self.bits)


class BlockSource(Protocol):
    """Where the blocks come from, by the names of the state dict; matrices are [out, in] as the graph has them."""

    def kind(self, name: str) -> str:
        """The type in which the source has it, for people."""

    def blocks(self, name: str) -> Blocks | None:
        """None where the source has it in float, or in blocks of another form."""
