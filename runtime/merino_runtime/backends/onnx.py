"""ONNX Runtime on the CPU: a KV cache bound to the graph by pointer, over sessions that forks share.

All arrays that a decode step reads or writes are allocated when the backend opens. The two dialects
(docs/formats.md) differ in who writes the cache: a `fused` graph writes it in place; a `portable` graph returns the new
entries and the host copies them into it.
"""
import threading
from collections import deque
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from merino_runtime.backends.backend import Backend, check_prefill, check_step, check_truncate, check_whole
from merino_runtime.backends.onnx_arrays import ADAPTER, Rows, States, bind_caches, bind_input, bind_output, caches
from merino_runtime.backends.onnx_session import Model, first_line
from merino_runtime.bundle import embedding_size, returns_all_logits
from merino_runtime.bundle.fit import reporting_memory
from merino_runtime.bundle.requirements import version_tuple
from merino_runtime.bundle.schema import EMBEDDING
from merino_runtime.errors import MerinoError
from merino_runtime.io.memory import is_out_of_memory

PREFILL_CHUNK_IDS = 256  # ids per run of a prefill; the memory of activations is proportional to it
FIRST_LOGITS = "first_logits"  # optional input: the first position whose logits are returned
FIRST_CHUNKED_GQA = (1, 20)  # earlier versions of GroupQueryAttention take several ids only into an empty cache


class OnnxBackend(Backend):
    """ONNX Runtime with a KV cache. cache: arrays to use, by the name of the input that reads them; None: new ones.
    rows: the rows that this backend is one of."""

    def __init__(self, model: Model, cache: Optional[Dict[str, np.ndarray]] = None, rows: Optional[Rows] = None
                 ) -> None:
        # 1. What the bundle, the graph and the version allow.
        bundle = model.bundle
        self.context, self.vocab = bundle.context, bundle.vocab
        self.prefill_threads, self.decode_threads = model.threads.prefill, model.threads.decode
        self.engine = f"onnxruntime {model.version} CPU"
        self._model: Optional[Model] = model
        self._prefill_session, self._decode_session = model.prefill_session, model.decode_session
        self._fused, self._all_logits = bundle.dialect == "fused", returns_all_logits(bundle)
        self._ports = {port.name: port for port in (*bundle.inputs, *bundle.outputs)}
        self._states, self.adapters = States(bundle), bundle.adapters
        self.extends_fast = not self._fused or version_tuple(model.version) >= FIRST_CHUNKED_GQA
        optional = [node.name for node in self._decode_session.get_overridable_initializers()]
        self.verifies = FIRST_LOGITS in optional and self.extends_fast and not self._states
        # 2. The cache, and what it holds.
        with reporting_memory(bundle, "allocating the KV cache", model.threads.sessions):
            # [1, heads, context, head_size] each, by the name of the input that reads it
            self.cache = caches(bundle, 1) if cache is None else cache
        self.ids: List[int] = []  # of the filled slots; all other state follows from it
        # Held while ids and cache disagree, so that a fork copies a state that agrees. Before Python 3.10 an interrupt
        # at the end of a `with` can leave its lock held (bpo-29988). The same thread can take an RLock again.
        self._lock = threading.RLock()
        self._rows = rows
        self._ahead: Optional[Tuple[int, int, np.ndarray]] = None  # `changes`, an id, its logits [vocab]
        # 3. The arrays of a decode step, and their bindings.
        self._logits = np.zeros((1, 1, bundle.vocab), dtype=self._ports["logits"].dtype)
        self._finite = np.zeros(self._logits.shape, dtype=bool)  # [1, 1, vocab]
        # fused: all ones, of which the first `total` are bound. portable: 1 for a filled slot, else 0.
        self._mask = np.ones((1, bundle.context), dtype=self._ports["attention_mask"].dtype)
        self._slots = np.arange(bundle.context)
        self._decode_id = np.zeros((1, 1), dtype=self._ports["input_ids"].dtype)
        self._adapter = np.full(1, -1, dtype=np.int64)
        self._decode_position = np.zeros((1, 1), dtype=np.int64)
        self._decode_binding, self._decode_new = self._bind(
            self._decode_session, self._decode_id, self._decode_position, self._logits)
        self._guess_bindings: Dict[int, Tuple[Any, ...]] = {}  # by the number of ids

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        return deque(self._chunks(ids), maxlen=1)[0][-1]

    def logits_from(self, first: int, ids: Sequence[int]) -> Iterator[np.ndarray]:
        if not self._all_logits:
            yield from super().logits_from(first, ids)
            return
        check_whole("the first position", first)
        seen = 0
        for logits in self._chunks(ids):  # [m, vocab]
            if seen + len(logits) > first:
                yield logits[max(0, first - seen):]
            seen += len(logits)

    def _chunks(self, ids: Sequence[int]) -> Iterator[np.ndarray]:
        """Add ids to the cache. Yield the logits [m, vocab] of each run: of its last id, or of all if the graph returns
        them."""
        for part in self._parts(ids):
            if len(part) == 1:
                yield self.step(part[0])[None]
                continue
            yield self._run_part(part)

    def _parts(self, ids: Sequence[int]) -> List[Sequence[int]]:
        """Return the ids of each run of a prefill."""
        self._open_model()
        check_prefill(self, ids)
        chunk = PREFILL_CHUNK_IDS if self.extends_fast else 1 if self.ids else len(ids)
        return [ids[start:start + chunk] for start in range(0, len(ids), chunk)]

    def _run_part(self, ids: Sequence[int], embedding: Optional[np.ndarray] = None) -> np.ndarray:
        self._catch_up()
        logits = self._run_prefill(self.length, ids, embedding)
        self._states.keep()
        return logits

    def embed(self, ids: Sequence[int]) -> np.ndarray:
        total, one = np.zeros((2, 1, embedding_size(self._open_model().bundle)), np.float32)
        for part in self._parts(ids):
            self._run_part(part, one)
            total += one
        return total[0]

    def _catch_up(self) -> None:
        """Compute the ids again that recurrent states lack after a truncation."""
        if self._states and self._states.length != self.length:
            self._states.truncate(self.length)  # after an interrupt they may include an id more
            while self._states.length < self.length:
                start = self._states.length
                self._run_prefill(start, self.ids[start:start + PREFILL_CHUNK_IDS])
            self._states.keep()

    def _run_prefill(self, start: int, ids: Sequence[int], embedding: Optional[np.ndarray] = None) -> np.ndarray:
        """Compute ids from position `start` on, and the sum of their last hidden states into `embedding`."""
        id_array = np.array(ids, dtype=self._decode_id.dtype)[None]  # [1, count]
        positions = np.arange(start, start + len(ids), dtype=np.int64)[None]  # [1, count]
        model = self._open_model()
        with reporting_memory(model.bundle, f"the prefill of {len(ids)} ids", model.threads.sessions):
            logits = np.zeros((1, len(ids), self.vocab), self._logits.dtype) if self._all_logits else self._logits
            binding, new = self._bind(self._prefill_session, id_array, positions, logits, start)
            if embedding is not None:
                bind_output(binding, EMBEDDING, embedding)
        return self._run(self._prefill_session, binding, new, id_array, logits, start)

    def step(self, token_id: int) -> np.ndarray:
        self._open_model()
        check_step(self, token_id)
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[:2] == (self.changes, token_id):
            with self._lock:
                self.changes += 1
                self.ids.append(token_id)
            return ahead[2]
        self._catch_up()
        self._decode_id[0, 0] = token_id
        self._decode_position[0, 0] = self.length
        if self._fused:
            bind_input(self._decode_binding, "attention_mask", self._mask, (1, self.length + 1))
        return self._run(self._decode_session, self._decode_binding, self._decode_new, self._decode_id, self._logits,
                         self.length)[0]

    def verify(self, ids: Sequence[int]) -> np.ndarray:
        self._open_model()
        check_prefill(self, ids)
        count = len(ids)
        if count not in self._guess_bindings:
            self._guess_bindings[count] = self._bind_guesses(count)
        binding, new, id_array, positions, _, logits = self._guess_bindings[count]
        id_array[0] = ids
        positions[0] = np.arange(self.length, self.length + count)
        if self._fused:
            bind_input(binding, "attention_mask", self._mask, (1, self.length + count))
        return self._run(self._decode_session, binding, new, id_array, logits, self.length)

    def _bind_guesses(self, count: int) -> Tuple[Any, ...]:
        """Return a binding, the arrays of new entries, ids, positions, the first position whose logits are returned,
        and logits [1, count, vocab]. A fused graph returns them as a batch [count, 1, vocab]."""
        id_array = np.zeros((1, count), self._decode_id.dtype)
        positions, first = np.zeros((1, count), np.int64), np.array([-count], np.int64)
        logits = np.zeros((1, count, self.vocab), self._logits.dtype)
        bound = logits.reshape(count, 1, self.vocab) if self._fused else logits
        binding, new = self._bind(self._decode_session, id_array, positions, bound)
        bind_input(binding, FIRST_LOGITS, first)
        return binding, new, id_array, positions, first, logits

    def truncate(self, length: int) -> None:
        self._open_model()
        check_truncate(self, length)
        with self._lock:
            self.changes += 1
            del self.ids[length:]
            self._states.truncate(length)

    def filled(self) -> Tuple[List[int], Dict[str, np.ndarray]]:
        bundle = self._open_model().bundle
        if self._states:
            raise MerinoError(f"the cache of {bundle.name!r} is not stored, because its layers have recurrent states. "
                              "Leave the cache file out: the prompt is computed again.")
        with self._lock:
            return self.ids[:], {name: cache[:, :, :self.length].copy() for name, cache in self.cache.items()}

    def fill(self, ids: Sequence[int], arrays: Iterable[np.ndarray]) -> None:
        self.truncate(0)
        with self._lock:
            left = list(self.cache.values())
            for entries in arrays:  # [1, heads, len(ids), head_size]
                left.pop(0)[:, :, :len(ids)] = entries
            assert not left, "arrays that fill a cache are as many as it has"
            self.ids.extend(ids)

    def fork(self) -> "OnnxBackend":
        twin = OnnxBackend(self._open_model())
        with self._lock:
            twin.copy_prefix(self, self.length)
        return twin

    def rows(self, count: int) -> List[Backend]:
        model = self._open_model()
        ids = next(port for port in model.decode_session.get_inputs() if port.name == "input_ids")
        if isinstance(ids.shape[0], int):  # its batch axis has no name: a batch of one
            return super().rows(count)
        with reporting_memory(model.bundle, f"allocating {count} KV caches", model.threads.sessions):
            rows = Rows(model, count)
        rows.backends = [OnnxBackend(model, rows.row(index), rows) for index in range(count)]
        return rows.backends

    def step_ahead(self, steps: Sequence[Tuple[Backend, int]]) -> List[Backend]:
        self._open_model()
        return self._rows.step(steps) if self._rows is not None else []

    def computed_ahead(self, token_id: int, logits: np.ndarray) -> None:
        """Store the logits [vocab] of a step that `Rows` computed: `step` returns them if it is the next call."""
        self._ahead = self.changes, token_id, logits

    def copy_prefix(self, source: Backend, length: int) -> None:
        assert isinstance(source, OnnxBackend)
        self.truncate(0)
        self.adapter = source.adapter
        with self._lock:
            for name, cache in source.cache.items():  # [1, heads, context, head_size]
                self.cache[name][:, :, :length] = cache[:, :, :length]
            self.ids.extend(source.ids[:length])
            self._states.copy(source._states, length)

    def close(self) -> None:
        self._rows = self._ahead = None
        self._model = self._prefill_session = self._decode_session = self._decode_binding = None
        self.cache, self._decode_new, self._guess_bindings, self.ids = {}, {}, {}, []

    def _run(self, session: Any, binding: Any, new: Dict[str, np.ndarray], ids: np.ndarray, logits: np.ndarray,
             start: int) -> np.ndarray:
        """Run the graph over ids [1, count] from position `start` on. Return `logits`, which are bound, without their
        first axis. `ids` changes last and all other state follows from it, so the cache is valid after an interrupt at
        any line."""
        with self._lock:
            self.changes += 1
            end = start + ids.shape[1]
            self._states.bind(binding)
            self._adapter[0] = self.adapter
            if not self._fused:
                self._mask[0] = self._slots < start
            self._compute(session, binding, ids.shape[1])
            if not self._fused and not self._all_finite(logits):
                # A portable graph multiplies masked slots by an attention weight of 0, and 0 x NaN is NaN: an entry of
                # a dropped id would reach every later sum. A fused graph does not read slots past its length.
                for cache in self.cache.values():  # [1, heads, context, head_size]
                    cache[:, :, start:] = 0
                self._compute(session, binding, ids.shape[1])
            if not self._all_finite(logits):
                raise MerinoError(f"the model's logits at position {end - 1} are not finite: the weights or their "
                                  "format overflow. Check the bundle with `selftest`, or export in another "
                                  "--precision.")
            for name, entries in new.items():  # entries [1, heads, count, head_size]
                self.cache[name][:, :, start:end] = entries
            self._states.computed(end)
            self.ids[start:end] = ids[0].tolist()
            return logits[0]

    def _compute(self, session: Any, binding: Any, count: int) -> None:
        model, doing = self._open_model(), "a decode step" if count == 1 else f"the prefill of {count} ids"
        with reporting_memory(model.bundle, doing, model.threads.sessions):
            try:
                session.run_with_iobinding(binding)
            except Exception as error:  # onnxruntime's exceptions have no base of their own
                if is_out_of_memory(error):
                    raise
                raise MerinoError(f"onnxruntime failed on {count} ids with {self.length} cached: {first_line(error)}. "
                                  "Check the bundle with `info --check` and `selftest`, or export it again."
                                  ) from error

    def _all_finite(self, logits: np.ndarray) -> bool:
        finite = self._finite if logits.shape == self._finite.shape else None
        return bool(np.isfinite(logits, out=finite).all())

    def _bind(self, session: Any, ids: np.ndarray, positions: np.ndarray, logits: np.ndarray, start: int = 0
              ) -> Tuple[Any, Dict[str, np.ndarray]]:
        """Return a binding of all inputs and outputs, and the arrays of new entries by the name of their cache (none if
        the graph writes the cache). ids, positions [1, count], logits [1, 1 or count, vocab]: the caller keeps them
        alive, because they are bound by pointer."""
        count = ids.shape[1]
        binding = session.io_binding()
        new = {} if self._fused else {
            name: np.zeros((1, cache.shape[1], count, cache.shape[3]), dtype=cache.dtype)
            for name, cache in self.cache.items()}
        bind_input(binding, "input_ids", ids)
        mask_length = start + count if self._fused else self.context
        bind_input(binding, "attention_mask", self._mask, (1, mask_length))
        if "position_ids" in self._ports:
            bind_input(binding, "position_ids", positions)
        if self.adapters:
            bind_input(binding, ADAPTER, self._adapter)
        bind_output(binding, "logits", logits)
        bind_caches(binding, self.cache, self.cache if self._fused else new)
        return binding, new
