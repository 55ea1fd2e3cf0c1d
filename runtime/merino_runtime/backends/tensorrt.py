"""TensorRT on an NVIDIA GPU: a KV cache in device memory, filled by strided copies of each run's new entries.

The graph is a `portable` one (docs/formats.md): it reads caches of fixed shape with a mask, and returns the new keys
and values, which are copied to their position on the device. So no input is ever an output. A decode step is one
replay of a CUDA graph (inputs to the GPU, the network, logits back), and mostly one copy. A prefill runs in chunks of
one fixed length. `tensorrt_model` holds what sessions share, and the memory of one.
Why it is so: docs/decisions/export.md.
"""
import contextlib
from typing import Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from merino_runtime.backends.backend import Backend, check_prefill, check_step, check_truncate
from merino_runtime.backends.cuda import MB, ON_DEVICE, TO_DEVICE, TO_HOST, raising_cuda_faults
from merino_runtime.backends.engine_build import DECODE, PREFILL
from merino_runtime.backends.tensorrt_model import Model, Phase, SessionMemory
from merino_runtime.errors import MerinoError


class TensorRtBackend(Backend):
    """One user of the model, which it closes, also if the GPU has no memory for the cache and this raises
    MerinoError."""
    def __init__(self, model: Model) -> None:
        bundle = model.bundle
        self.context, self.vocab, self.engine = bundle.context, bundle.vocab, model.engine_name
        self._model: Optional[Model] = model
        self._cuda, self._stream = model.cuda, model.stream
        self.ids: List[int] = []  # of the filled slots; all other state follows from it
        self._logits = np.zeros(bundle.vocab, dtype=model.tensors["logits"].dtype)  # [vocab]
        self._slots = np.arange(bundle.context)
        self._graph = 0  # the decode step as a CUDA graph; 0: none yet, or none at all
        self._decoded = self._tried_capture = False
        try:
            with model.lock, raising_cuda_faults(f"allocating a KV cache of {bundle.kv_bytes / MB:.0f} MB"):
                self._memory = SessionMemory(model)
        except BaseException:
            model.close()
            raise

    @property
    def replays_graph(self) -> bool:  # type: ignore[override]
        return bool(self._graph)

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        self._open_model()
        check_prefill(self, ids)
        longest = self._memory.phases[PREFILL].length
        for start in range(0, len(ids), longest):
            part = ids[start:start + longest]
            logits = self._run(DECODE if len(part) == 1 else PREFILL, part)
        return logits

    def step(self, token_id: int) -> np.ndarray:
        self._open_model()
        check_step(self, token_id)
        return self._run(DECODE, [token_id])

    def truncate(self, length: int) -> None:
        model = self._open_model()
        check_truncate(self, length)
        with model.lock:
            self.changes += 1
            del self.ids[length:]

    def filled(self) -> Tuple[List[int], Dict[str, np.ndarray]]:
        model = self._open_model()
        with model.lock, self._raising_faults("reading the KV cache"):
            return self.ids[:], {field.name: self._memory.read_cache(field)[:, :, :self.length].copy()
                                  for field in self._memory.caches}

    def fill(self, ids: Sequence[int], arrays: Iterable[np.ndarray]) -> None:
        model = self._open_model()
        self.truncate(0)
        with model.lock, self._raising_faults("writing the KV cache"):
            left = list(self._memory.caches)
            for entries in arrays:  # [1, heads, len(ids), head_size]
                field = left.pop(0)
                array = np.zeros(field.shape, field.dtype)
                array[:, :, :len(ids)] = entries
                self._memory.write_cache(field, array)
            assert not left, "arrays that fill a cache are as many as it has"
            self.ids.extend(ids)

    def fork(self) -> "TensorRtBackend":
        model = self._open_model().shared()
        twin = TensorRtBackend(model)
        try:
            with model.lock, self._raising_faults("copying the KV cache"):
                memory = self._memory
                self._cuda.memcpy(twin._memory.base, memory.base, memory.cache_bytes, ON_DEVICE, self._stream)
                self._cuda.synchronize(self._stream)
                twin.ids.extend(self.ids)
        except BaseException:
            twin.close()
            raise
        return twin

    def close(self) -> None:
        model, self._model = self._model, None
        if model is None:
            return
        self.ids = []
        with model.lock:
            self._cuda.settle(self._stream)
            self._graph = 0
            model.owners = [None if owner is self else owner for owner in model.owners]
            self._memory.close()
        model.close()

    def _run(self, number: int, ids: Sequence[int]) -> np.ndarray:
        """Run the graph over ids, at most as many as the phase takes. Return logits [vocab]. `ids` changes last and
        all other state follows from it, so the cache is valid after an interrupt at any line."""
        model, phase = self._open_model(), self._memory.phases[number]
        doing = "a decode step" if number == DECODE else f"a prefill of {len(ids)} ids"
        with model.lock, self._raising_faults(doing):
            self.changes += 1
            self._write_inputs(phase, ids)
            self._compute(number, len(ids))
            if not np.isfinite(self._logits).all():
                self._clear_free_slots()
                self._compute(number, len(ids))
                if not np.isfinite(self._logits).all():
                    position = self.length + len(ids) - 1
                    raise MerinoError(f"the model's logits at position {position} are not finite: the weights, their "
                                      f"format or the engine's ({model.precision}) overflow. Check with "
                                      "`selftest`, build the engine again in fp32 (`build-engine` without --fp16), or "
                                      "run on the CPU: MERINO_BACKEND=onnxruntime.")
            self.ids.extend(ids)
        return self._logits

    def _write_inputs(self, phase: Phase, ids: Sequence[int]) -> None:
        """Write the inputs of a run that ends with `ids`. Before these it repeats ids of the cache, whose slots are
        then masked. If the cache has too few, it starts with padding that no other id attends to: its position is the
        context's last."""
        end = self.length + len(ids)
        start = max(0, end - phase.length)  # position of the first id that is none of these
        padding = phase.length - (end - start)
        arrays = phase.arrays
        arrays["input_ids"][0, :padding] = 0
        arrays["input_ids"][0, padding:] = [*self.ids[start:], *ids]
        if "position_ids" in arrays:
            arrays["position_ids"][0, :padding] = self.context - 1
            arrays["position_ids"][0, padding:] = self._slots[start:end]
        arrays["attention_mask"][0] = self._slots < start

    def _compute(self, number: int, count: int) -> None:
        """Copy the inputs to the GPU, run the network, move the new entries of the last `count` ids into the cache, and
        copy the logits back. Steps are enqueued one by one if the engine cannot be captured as a CUDA graph."""
        phase, stream = self._memory.phases[number], self._stream
        if number == DECODE and self._decoded and not self._tried_capture:
            self._tried_capture = True
            self._graph = self._cuda.captured(stream, lambda: self._enqueue(DECODE), self._memory.resources)
        if number == DECODE and self._graph:
            self._cuda.launch(self._graph, stream)
        else:
            self._enqueue(number)
        for copy in phase.copies:
            skipped = (phase.length - count) * copy.entry
            self._cuda.memcpy_2d(
                to=copy.to + self.length * copy.entry, to_pitch=copy.to_pitch,
                source=copy.source + skipped, pitch=copy.pitch,
                width=count * copy.entry, height=copy.rows, kind=ON_DEVICE, stream=stream)
        self._cuda.synchronize(stream)
        self._decoded = self._decoded or number == DECODE
        np.copyto(self._logits, self._memory.logits)

    def _enqueue(self, number: int) -> None:
        model, memory = self._open_model(), self._memory
        phase, bound = memory.phases[number], model.bound[number]
        if model.owners[number] is not self:
            model.owners[number] = None
            bound.set_addresses(phase.addresses)
            model.owners[number] = self
        self._cuda.memcpy(phase.device, phase.host, phase.input_bytes, TO_DEVICE, self._stream)
        bound.enqueue(self._stream)
        self._cuda.memcpy(memory.pinned, memory.logits_at, memory.logits_bytes, TO_HOST, self._stream)

    def _clear_free_slots(self) -> None:
        """Zero the free slots. The graph multiplies masked slots by a weight of 0, and 0 x NaN is NaN: what a dropped
        id left in a slot must not reach later sums."""
        for copy in self._memory.phases[DECODE].copies:
            self._cuda.memset_2d(
                address=copy.to + self.length * copy.entry, pitch=copy.to_pitch, value=0,
                width=(self.context - self.length) * copy.entry, height=copy.rows, stream=self._stream)
        self._cuda.synchronize(self._stream)

    @contextlib.contextmanager
    def _raising_faults(self, doing: str) -> Iterator[None]:
        """Settle the stream if the body fails, so that nothing on it still writes. Raise MerinoError for a
        CudaError."""
        try:
            with raising_cuda_faults(doing):
                yield
        except BaseException:
            self._cuda.settle(self._stream)
            raise
