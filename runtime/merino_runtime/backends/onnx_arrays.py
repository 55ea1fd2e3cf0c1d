"""The arrays to which ONNX Runtime's graph is bound: KV caches of one sequence or of several, and recurrent states."""
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from merino_runtime.backends.backend import Backend, check_step
from merino_runtime.backends.onnx_session import Model, first_line
from merino_runtime.bundle import Bundle
from merino_runtime.bundle.schema import STATE_COPIES, STATES
from merino_runtime.errors import MerinoError

Arrays = Dict[str, np.ndarray]  # by the name of the input that reads them
ADAPTER = "adapter"  # optional input: the index of each sequence's LoRA adapter, -1 for none
MOST_KEPT = STATE_COPIES - 2  # states of earlier prefixes
MOST_IDLE = 3  # rows between two others: a run of the graph for more rows takes less time than a second run


def bind_input(binding: Any, name: str, array: np.ndarray, shape: Sequence[int] = ()) -> None:
    """Bind an array as an input. shape: of its first elements; empty: the array's own."""
    binding.bind_input(name, "cpu", 0, element_type(array), list(shape or array.shape), array.ctypes.data)


def bind_output(binding: Any, name: str, array: np.ndarray) -> None:
    binding.bind_output(name, "cpu", 0, element_type(array), list(array.shape), array.ctypes.data)


def bind_caches(binding: Any, past: Arrays, present: Arrays) -> None:
    """Bind the caches as inputs and outputs, both by the name of the input that reads the past. They are the same
    arrays if the graph writes the cache in place."""
    for name, cache in past.items():
        bind_input(binding, name, cache)
        bind_output(binding, name.replace("past_key_values", "present"), present[name])


def caches(bundle: Bundle, count: int) -> Arrays:
    """Return empty KV caches [count, heads, context, head_size], by the name of the input that reads each. The schema
    of bundle.json ensures that their shapes are lengths."""
    return {port.name: np.zeros((count, *map(int, port.shape[1:])), dtype=port.dtype) for port in bundle.inputs
            if port.name.startswith("past_key_values.")}


def element_type(array: np.ndarray) -> Any:
    """Return the type for a binding: onnxruntime 1.10 only knows int64 as `long long`; later versions know both
    names."""
    return np.longlong if array.dtype == np.int64 else array.dtype.type


class Rows:
    """Decodes several sequences together: their KV caches are rows of one buffer, and one run of the graph computes a
    step of each. A step reads all weights once, for any number of rows.

    A run computes adjacent rows. An idle row between two others receives an id too: its entry is written to the first
    free slot of its cache, which its own next entry overwrites. backends: one for each row, which the caller makes of
    `row`.
    """

    def __init__(self, model: Model, count: int) -> None:
        bundle, self._session = model.bundle, model.decode_session
        self._context, ports = bundle.context, {port.name: port for port in bundle.inputs}
        self.backends: List[Any] = []
        self._caches = caches(bundle, count)
        self._ids = np.zeros((count, 1), ports["input_ids"].dtype)
        self._positions = np.zeros((count, 1), np.int64)
        self._has_positions = "position_ids" in ports
        self._adapters = np.full(count, -1, np.int64) if bundle.adapters else None
        self._mask = np.zeros(count * bundle.context, ports["attention_mask"].dtype)
        self._logits = np.zeros((count, 1, bundle.vocab), np.float32)
        self._bindings: Dict[Tuple[int, int], Any] = {}  # by the first row and the one behind the last

    def row(self, index: int) -> Arrays:
        """Return the cache of one row, [1, heads, context, head_size] each: contiguous, as a graph with a batch of one
        requires."""
        return {name: cache[index:index + 1] for name, cache in self._caches.items()}

    def step(self, steps: Sequence[Tuple[Backend, int]]) -> List[Backend]:
        """Do what `Backend.step_ahead` says. A row that is not near another one is left to its own `step`."""
        token_ids = {}
        for backend, token_id in steps:
            check_step(backend, token_id)
            token_ids[self.backends.index(backend)] = token_id
        runs = [run for run in self._runs(sorted(token_ids)) if len(run) > 1]
        for run in runs:
            self._run(run[0], run[-1] + 1, token_ids)
        return [self.backends[row] for run in runs for row in run]

    def _runs(self, rows: Sequence[int]) -> List[List[int]]:
        """Return the rows in order, split where too many idle ones are between two of them, or one that is full."""
        runs = [[rows[0]]]
        for row in rows[1:]:
            idle = self.backends[runs[-1][-1] + 1:row]
            if len(idle) > MOST_IDLE or any(backend.length == self._context for backend in idle):
                runs.append([])
            runs[-1].append(row)
        return runs

    def _run(self, first: int, end: int, token_ids: Dict[int, int]) -> None:
        lengths = np.array([backend.length for backend in self.backends[first:end]])
        count, total = end - first, int(lengths.max()) + 1
        self._ids[first:end, 0] = [token_ids.get(row, 0) for row in range(first, end)]
        self._positions[first:end, 0] = lengths
        if self._adapters is not None:
            self._adapters[first:end] = [backend.adapter for backend in self.backends[first:end]]
        mask = self._mask[:count * total].reshape(count, total)
        mask[:] = np.arange(total) <= lengths[:, None]
        binding = self._binding(first, end)
        bind_input(binding, "attention_mask", mask)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            raise MerinoError(f"onnxruntime failed on a step of {count} sequences: {first_line(error)}. Check the "
                              "bundle with `info --check` and `selftest`, or export it again.") from error
        for row in range(first, end):
            # Where logits are not finite, the row's own `step` raises the error.
            if row in token_ids and np.isfinite(self._logits[row]).all():
                self.backends[row].computed_ahead(token_ids[row], self._logits[row, 0])

    def _binding(self, first: int, end: int) -> Any:
        """Return the binding of all inputs and outputs except the mask."""
        if (first, end) not in self._bindings:
            binding = self._bindings[first, end] = self._session.io_binding()
            bind_input(binding, "input_ids", self._ids[first:end])
            if self._has_positions:
                bind_input(binding, "position_ids", self._positions[first:end])
            if self._adapters is not None:
                bind_input(binding, ADAPTER, self._adapters[first:end])
            bind_output(binding, "logits", self._logits[first:end])
            rows = {name: cache[first:end] for name, cache in self._caches.items()}
            bind_caches(binding, rows, rows)
        return self._bindings[first, end]


class States:
    """Recurrent states of one sequence, beside its KV cache: what layers of linear attention keep of all ids so far.

    A state cannot be truncated like a KV cache. So copies of it are kept at the ends of prefills. After a truncation
    the longest copy within the remaining ids is used, and the backend computes the ids behind it again.
    """

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
        """Return the number of ids that the state includes."""
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
