"""Recurrent states of one sequence, beside its KV cache: what layers of linear attention keep of all ids so far.

A state cannot be truncated like a KV cache. So copies of it are kept at the ends of prefills. After a truncation the
longest copy within the remaining ids is used, and the backend computes the ids behind it again.
"""
from typing import Any, Dict, List, Tuple

import numpy as np

from merino_runtime.backends.onnx_rows import bind_input, bind_output
from merino_runtime.bundle import Bundle
from merino_runtime.bundle.schema import STATE_COPIES, STATES

Arrays = Dict[str, np.ndarray]  # by the name of the input
MOST_KEPT = STATE_COPIES - 2


class States:
    """length: the number of ids that the state includes."""

    def __init__(self, bundle: Bundle) -> None:
        ports = [port for port in bundle.inputs if port.name.startswith(STATES)]
        # The schema of bundle.json ensures that their shapes are lengths.
        now, behind = ({port.name: np.zeros(tuple(map(int, port.shape)), port.dtype) for port in ports}
                       for _ in range(2))
        # Replaced as a whole, so that an interrupt leaves a state and its length that belong together: the length, the
        # state, and the arrays that the next run writes.
        self._state: Tuple[int, Arrays, Arrays] = (0, now, behind)
        self._kept: List[Tuple[int, Arrays]] = []  # the oldest first

    def __bool__(self) -> bool:
        return bool(self._state[1])

    @property
    def length(self) -> int:
        return self._state[0]

    def bind(self, binding: Any) -> None:
        _, now, behind = self._state
        for name, array in now.items():
            bind_input(binding, name, array)
            bind_output(binding, name.replace("past", "present", 1), behind[name])

    def computed(self, length: int) -> None:
        """Take over the state that a run has written, which includes `length` ids."""
        _, now, behind = self._state
        self._state = length, behind, now

    def keep(self) -> None:
        """Keep a copy of the state."""
        length, now, _ = self._state
        kept = [one for one in self._kept if one[0] < length]
        self._kept = [*kept[1 - MOST_KEPT:], (length, {name: array.copy() for name, array in now.items()})]

    def truncate(self, length: int) -> None:
        """Forget all ids from `length` on, and those behind the longest copy if the state includes more."""
        self._kept = [one for one in self._kept if one[0] <= length]
        if self.length > length:
            self._restore(self._kept[-1:])

    def copy(self, source: "States", length: int) -> None:
        """Replace the state by the longest one of `source` that includes at most `length` ids."""
        self._kept = []
        known = [*source._kept, source._state[:2]]
        self._restore(sorted((one for one in known if one[0] <= length), key=lambda one: one[0])[-1:])
        if self.length:
            self.keep()

    def _restore(self, found: List[Tuple[int, Arrays]]) -> None:
        """Copy a state, or the empty one if none is found."""
        _, now, behind = self._state
        for name, array in behind.items():
            array[...] = found[0][1][name] if found else 0
        self._state = found[0][0] if found else 0, behind, now
