"""How weights of a state dict lie in the graph, where a family stores them in another order than the graph multiplies.

A `Layout` has both directions: an exported graph can be read back, and torch gets what a quantised graph stands for.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from merino_edge.families.graph_ops import Weights


class Layout(NamedTuple):
    """`to_state(to_graph(weight))` is the weight."""

    to_graph: Callable[[np.ndarray], np.ndarray]
    to_state: Callable[[np.ndarray], np.ndarray]


KeyOrder = Callable[[Any], np.ndarray | None]  # (the family's geometry) -> channels of a head, None: as they are
LayoutOf = Callable[[Any, str], Layout | None]  # (the family's geometry, a name) -> None where both are alike

TRANSPOSED = Layout(np.transpose, np.transpose)  # [in, out] in the state dict
ABOVE_ONE = Layout(lambda weight: 1 + weight, lambda weight: weight - 1)  # what a norm's factor is more than 1


def alike(_geometry: Any, _name: str) -> Layout | None:
    """For a family whose state dict has all weights as the graph has them."""
    return None


def permuted(order: np.ndarray) -> Layout:
    """Rows of a matrix, or elements of a vector; `order[i]` is the row of the state dict that the graph has at i."""
    back = np.argsort(order)
    return Layout(lambda weight: weight[order], lambda weight: weight[back])


class GraphWeights(Mapping[str, np.ndarray]):
    """The weights of a state dict as the graph has them; a matrix is laid out when it is asked for, and not kept."""

    def __init__(self, state: Weights, layout: Callable[[str], Layout | None]):
        self._state, self._layout = state, layout
        self._vectors: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        found, layout = self._state[name], self._layout(name)
        if layout is None:
            return found
        if found.ndim > 1:
            return layout.to_graph(found)
        return self._vectors.setdefault(name, layout.to_graph(found))

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)
