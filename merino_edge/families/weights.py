"""Weights of a source as the graph takes them: the layout of a state dict's weights in the graph, and matrices that a
source has stored in blocks, so that a graph of equal blocks can take them without a second rounding.

A family may store weights in another order than the graph multiplies. A `Layout` has both directions: an exported graph
can be read back, and torch gets the dequantized weights of a quantized graph.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from merino_edge.families.graph_ops import Weights


class Layout(NamedTuple):
    """`to_state(to_graph(weight))` is the weight."""

    to_graph: Callable[[np.ndarray], np.ndarray]
    to_state: Callable[[np.ndarray], np.ndarray]


ROW_BLOCK = 4096  # rows that are copied at once, because an embedding may have a GB; whole tiles
TRANSPOSED = Layout(np.transpose, np.transpose)  # [in, out] in the state dict
ABOVE_ONE = Layout(lambda weight: 1 + weight, lambda weight: weight - 1)  # a norm's factor, minus 1 in the state dict


def permuted(order: np.ndarray) -> Layout:
    """Return rows of a matrix, or elements of a vector; `order[i]` is the row of the state dict that the graph has at
    i."""
    back = np.argsort(order)
    return Layout(lambda weight: weight[order], lambda weight: weight[back])


class GraphWeights(Mapping[str, np.ndarray]):
    """The weights of a state dict as the graph has them, matrices [out, in]. A weight is laid out at each access.
    Setting a value writes it into the arrays of the state dict."""

    def __init__(self, state: Weights, layout: Callable[[str], Layout | None]):
        self._state, self._layout = state, layout

    def __getitem__(self, name: str) -> np.ndarray:
        weight, layout = self._state[name], self._layout(name)
        return layout.to_graph(weight) if layout else weight

    def __setitem__(self, name: str, value: np.ndarray) -> None:
        layout = self._layout(name)
        self._state[name][...] = layout.to_state(value) if layout else value

    def fill(self, name: str, part: Callable[[slice], np.ndarray]) -> None:
        """Set a matrix to `part` of all its rows, which is asked for a few at a time where the state dict has the
        graph's order."""
        state = self._state[name]
        if self._layout(name):
            self[name] = part(slice(0, len(self[name])))
            return
        for first in range(0, len(state), ROW_BLOCK):
            state[first : first + ROW_BLOCK] = part(slice(first, min(first + ROW_BLOCK, len(state))))

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


def model_weights(model: Any, layout: Callable[[str], Layout | None]) -> GraphWeights:
    """Return the weights of a torch model in float32, which share its memory."""
    return GraphWeights({name: tensor.float().numpy() for name, tensor in model.state_dict().items()}, layout)


class Blocks(NamedTuple):
    """A matrix [rows, columns] whose rows are cut into blocks: weight = level * scale + minimum, exactly.

    `bits`: the fewest that hold all levels, from -2^(bits - 1) to 2^(bits - 1) - 1.
    """

    levels: np.ndarray  # int8 [rows, columns / block, block]
    scales: np.ndarray  # float32 [rows, columns / block]
    minimums: np.ndarray | None  # float32 [rows, columns / block]; None if all are 0
    bits: int

    @property
    def block(self) -> int:
        return int(self.levels.shape[-1])

    def rows(self, order: np.ndarray) -> "Blocks":
        """Return the blocks with rows in another order; a block lies within a row."""
        minimums = None if self.minimums is None else self.minimums[order]
        return Blocks(self.levels[order], self.scales[order], minimums, self.bits)

    def cut(self, block: int) -> "Blocks":
        """Return the same weights in smaller blocks, of which several then share a scale."""
        parts = self.block // block
        minimums = None if self.minimums is None else self.minimums.repeat(parts, axis=1)
        levels = self.levels.reshape(len(self.levels), -1, block)
        return Blocks(levels, self.scales.repeat(parts, axis=1), minimums, self.bits)


class BlockSource(Protocol):
    """The source of blocks, by the names of the state dict; matrices are [out, in] as the graph has them."""

    def kind(self, name: str) -> str:
        """Return the type in which the source has it, for people."""

    def bits(self, name: str) -> int | None:
        """Return the bits of a level, without reading the matrix; None without blocks of equal steps."""

    def blocks(self, name: str) -> Blocks | None:
        """Arrays that the caller may change. None if the source has it in float, or in blocks of another form."""
