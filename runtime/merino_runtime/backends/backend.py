"""The interface of every backend."""
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from merino_runtime.errors import MerinoError

VERIFIED_IDS = 8  # ids per run when a text is scored: each is a row of logits, which are kept for each length


class Backend:
    """A model with its KV cache, which is allocated once. It runs one generation at a time; `fork` makes more backends.

    `changes` counts changes of the cache. A generation compares it between its tokens, and raises if anyone else, such
    as another generation, changed the cache: its next token would follow other text.

    Logits are a view that the next call overwrites: copy them to keep them. After a call that failed or was
    interrupted the cache holds `ids` as before the call, and the backend can be used.
    """
    engine = ""  # name, version and processor, for records: "onnxruntime 1.32.0 CPU"
    context = 0  # KV slots
    vocab = 0
    decode_threads = prefill_threads = 1  # of the CPU
    replays_graph = True  # whether a decode step costs the CPU a single call, as it should
    changes = 0  # grows by at least 1 with each `prefill`, `step`, `truncate` and `fill`
    extends_fast = True  # whether a prefill into a filled cache costs as much per id as one into an empty cache
    verifies = False  # whether `verify` exists: one run of the graph returns the logits of several positions
    adapters: Sequence[str] = ()  # names of the graph's LoRA adapters
    adapter = -1  # index of the one that computed the cache and computes the next run; -1: none
    ids: List[int]  # in the cache, in order; callers do not change the list
    _model: Any = None  # what forks share; None: this backend is closed

    def _open_model(self) -> Any:
        if self._model is None:
            raise MerinoError("this backend is closed. Open another one, or close it later.")
        return self._model

    @property
    def length(self) -> int:
        """Return the number of filled cache slots."""
        return len(self.ids)

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Add ids [n] to the cache. Return the logits [vocab] after the last one. Long prompts run in chunks, which
        bounds the memory of activations."""
        raise NotImplementedError

    def step(self, token_id: int) -> np.ndarray:
        """Decode: add one id to the cache. Return logits [vocab]."""
        raise NotImplementedError

    def logits_from(self, first: int, ids: Sequence[int]) -> Iterator[np.ndarray]:
        """Add ids [n] to the cache. Yield the logits [m, vocab] after each of them from ids[first] on, as a view: one
        or several per run of the graph."""
        check_whole("the first position", first)
        check_prefill(self, ids)
        yield self.prefill(ids[:first + 1])[None]
        if not self.verifies:
            for token_id in ids[first + 1:]:
                yield self.step(token_id)[None]
            return
        for start in range(first + 1, len(ids), VERIFIED_IDS):
            yield self.verify(ids[start:start + VERIFIED_IDS])

    def embed(self, ids: Sequence[int]) -> np.ndarray:
        """Add ids [n] to the cache. Return the sum of their last hidden states [width]."""
        raise NotImplementedError

    def verify(self, ids: Sequence[int]) -> np.ndarray:
        """Decode several ids [n] in one run: add them to the cache. Return the logits [n, vocab] after each of them."""
        raise NotImplementedError

    def truncate(self, length: int) -> None:
        """Keep the first `length` slots and free the others. Raise MerinoError if fewer are filled."""
        raise NotImplementedError

    def adapter_of(self, name: Optional[str]) -> int:
        """Return the index of an adapter; -1 for None. Raise MerinoError if there is none with this name."""
        if name is None:
            return -1
        if name not in self.adapters:
            there = f"it has {', '.join(self.adapters)}" if self.adapters else "it has none"
            raise MerinoError(f"this bundle has no adapter {name!r:.80}: {there}. Name one of them, or export with "
                              "--set adapters=FOLDER.")
        return list(self.adapters).index(name)

    def select(self, name: Optional[str]) -> None:
        """Compute with an adapter from now on; None: with none. A cache that was computed otherwise is emptied."""
        index = self.adapter_of(name)
        if index != self.adapter:
            self.truncate(0)
            self.adapter = index

    def filled(self) -> Tuple[List[int], Dict[str, np.ndarray]]:
        """Return a copy of the ids and of the filled slots, by name [1, heads, length, head_size]."""
        raise NotImplementedError

    def fill(self, ids: Sequence[int], arrays: Iterable[np.ndarray]) -> None:
        """Replace the cache by what `filled` returned, arrays in its order. If `arrays` raises, the cache is empty."""
        raise NotImplementedError

    def fork(self) -> "Backend":
        """Return a backend with a copy of this cache over the same weights, for a generation beside this one. The two
        are closed separately, in any order, and may run in two threads. Another thread may run this backend meanwhile:
        the copy is its state before or after a run, never between."""
        raise NotImplementedError

    def rows(self, count: int) -> List["Backend"]:
        """Return backends with empty caches over the same weights, each closed separately and all used by one thread.
        If the graph accepts a batch, they decode together: see `step_ahead`."""
        rows = [self.fork() for _ in range(count)]
        for row in rows:
            row.truncate(0)
        return rows

    def step_ahead(self, steps: Sequence[Tuple["Backend", int]]) -> List["Backend"]:  # noqa: ARG002
        """Compute the decode steps of several `rows` with an id each, this backend among them, in one run of the graph.
        The caches do not change: `step` of a row with its id then returns at once, unless its cache has changed. Return
        the rows whose step was computed; none if the graph accepts no batch."""
        return []

    def copy_prefix(self, source: "Backend", length: int) -> None:
        """Replace the cache by the first ids of another backend over the same weights."""
        ids, arrays = source.filled()
        self.fill(ids[:length], [entries[:, :, :length] for entries in arrays.values()])

    def close(self) -> None:
        """Free the cache, and the weights with the last fork. Every other call raises MerinoError afterwards."""
        raise NotImplementedError


def unit(vector: np.ndarray) -> np.ndarray:
    """Return the vector [width] with length 1."""
    return vector / max(float(np.linalg.norm(vector)), 1e-30)


def check_whole(what: str, value: Any) -> None:
    """Raise MerinoError unless it is an integer, Python's or numpy's."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise MerinoError(f"{what} is {value!r:.80}, and must be an integer. Give one.")


def check_prefill(backend: Backend, ids: Sequence[int]) -> None:
    """Raise MerinoError for ids that do not fit the free slots, or that the model does not have."""
    if not hasattr(ids, "__len__") or not hasattr(ids, "__getitem__") or isinstance(ids, dict):
        raise MerinoError(f"the ids of a prompt are {ids!r:.80}, and must be a list of integers. Give one.")
    count, free = len(ids), backend.context - backend.length
    if not 0 < count <= free:
        raise MerinoError(
            f"a prefill of {count} ids does not fit: {backend.length} of the {backend.context} cache slots "
            f"are filled, {free} free, and it takes at least 1 id. Shorten the "
            "prompt, or export with a longer --context.")
    for token_id in ids:
        check_whole("an id of the prompt", token_id)
    if not 0 <= min(ids) <= max(ids) < backend.vocab:
        raise MerinoError(f"prompt ids are from {min(ids)} to {max(ids)}, the model has 0 to "
                          f"{backend.vocab - 1}. Use the tokenizer of this model.")


def check_step(backend: Backend, token_id: int) -> None:
    """Raise MerinoError if the id does not exist, or if the cache is full."""
    check_whole("the token id", token_id)
    if not 0 <= token_id < backend.vocab:
        raise MerinoError(f"token id {token_id} does not exist, the model has 0 to {backend.vocab - 1}. Use ids of "
                          "this model's tokenizer.")
    if backend.length >= backend.context:
        raise MerinoError(f"the KV cache is full: all {backend.context} slots are filled. Request fewer "
                          "tokens, or export with a longer --context.")


def check_truncate(backend: Backend, length: int) -> None:
    """Raise MerinoError if fewer slots are filled."""
    check_whole("the length", length)
    if not 0 <= length <= backend.length:
        raise MerinoError(f"the cache cannot be truncated to {length} ids, it holds {backend.length}. Allowed: 0 to "
                          f"{backend.length}.")
