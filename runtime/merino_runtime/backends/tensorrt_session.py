"""The memory of one session of a TensorRT model: one allocation on the GPU, one of pinned host memory.

The GPU holds the KV caches, the new entries of a run, the logits, and the inputs of decode and of prefill. Pinned
memory holds the logits and both phases' inputs too. No address ever changes, so a CUDA graph can hold them.
"""
import contextlib
import ctypes
from typing import Dict, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np

from merino_runtime.backends.cuda import TO_DEVICE, TO_HOST
from merino_runtime.backends.tensorrt_model import Model, released

PAST, PRESENT = "past_key_values.", "present."
ALIGNMENT = 256  # of every address that TensorRT is given


class Field(NamedTuple):
    name: str
    dtype: str
    shape: Tuple[int, ...]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


class Layout(NamedTuple):
    offsets: Dict[str, int]  # in the order of the fields
    size: int


class StridedCopy(NamedTuple):
    """Copies one row per head. The starts of the rows are a pitch apart, in the cache and in the new entries."""
    to: int  # offset of the cache's row
    source: int  # offset of the new entries' row
    to_pitch: int  # context * entry
    pitch: int  # new ids * entry
    entry: int  # bytes of one id's key or value in one head
    rows: int


def laid_out(fields: Sequence[Field], start: int = 0) -> Layout:
    """Return the fields one after the other, each at a multiple of ALIGNMENT."""
    offsets, end = {}, start
    for field in fields:
        offsets[field.name] = aligned(end)
        end = offsets[field.name] + field.size
    return Layout(offsets, end)


def aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def cache_copies(caches: Sequence[Field], cache_at: Dict[str, int], new_at: Dict[str, int], count: int
                 ) -> List[StridedCopy]:
    """Return the copies that move new entries [1, heads, count, head_size] into caches [1, heads, context, head_size].
    new_at: by the name of the cache.

    There is one copy per cache; neighbors that touch in both places are joined, so a model whose heads have one size
    usually needs one copy for all its layers.
    """
    copies: List[StridedCopy] = []
    for field in caches:
        _, heads, context, head_size = field.shape
        entry = head_size * np.dtype(field.dtype).itemsize
        copy = StridedCopy(to=cache_at[field.name], source=new_at[field.name], to_pitch=context * entry,
                           pitch=count * entry, entry=entry, rows=heads)
        if copies:
            last = copies[-1]
            joined = last._replace(to=last.to + last.rows * last.to_pitch, source=last.source + last.rows * last.pitch,
                                   rows=heads)
            if joined == copy:  # it starts where the last one ends, in both places
                copies[-1] = last._replace(rows=last.rows + heads)
                continue
        copies.append(copy)
    return copies


class Phase(NamedTuple):
    """One kind of run: decode or prefill."""
    length: int  # ids
    arrays: Dict[str, np.ndarray]  # of the inputs, pinned: [1, length] or [1, context]
    host: int  # address of the inputs in pinned memory
    device: int  # and in the GPU's
    input_bytes: int
    addresses: Dict[str, int]  # of all inputs and outputs of the engine
    copies: List[StridedCopy]  # of new entries into the caches


class SessionMemory:
    """Allocated at once, or not at all. Raises CudaError."""

    def __init__(self, model: Model) -> None:
        self._cuda, self._stream = model.cuda, model.stream
        tensors = model.tensors
        names = [name.split(".") for name in tensors if name.startswith(PAST)]
        names.sort(key=lambda parts: (int(parts[1]), parts[2]))  # by layer, the key before the value
        self.caches = [Field(name, tensors[name].dtype, tensors[name].shape) for name in map(".".join, names)]
        layout = laid_out(self.caches)
        self.cache_at, self.cache_bytes = layout.offsets, layout.size
        entries = {length: laid_out([cache._replace(shape=(1, cache.shape[1], length, cache.shape[3]))
                                     for cache in self.caches], aligned(layout.size)) for length in model.lengths}
        inputs = {length: [Field(name, tensor.dtype, tuple(length if axis < 0 else axis for axis in tensor.shape))
                           for name, tensor in tensors.items() if tensor.is_input and not name.startswith(PAST)]
                  for length in model.lengths}  # that the host writes: ids, mask, positions
        logits = Field("logits", tensors["logits"].dtype, (model.bundle.vocab,))
        self.logits_bytes = logits.size
        logits_at = aligned(max(layout.size for layout in entries.values()))
        end, pinned_end = aligned(logits_at + logits.size), aligned(logits.size)
        starts: List[Tuple[int, int]] = []
        for length in model.lengths:
            size = aligned(laid_out(inputs[length]).size)
            starts.append((end, pinned_end))
            end, pinned_end = end + size, pinned_end + size
        self._resources = self._allocated(end, pinned_end)
        pinned = _bytes_at(self.pinned, pinned_end)
        self.logits = pinned[:logits.size].view(logits.dtype)  # [vocab]
        self.logits_at = self.base + logits_at
        self.phases = [self._phase(length, inputs[length], entries[length], start, pinned)
                       for length, start in zip(model.lengths, starts)]

    def _allocated(self, size: int, pinned_size: int) -> contextlib.ExitStack:
        cuda = self._cuda
        with contextlib.ExitStack() as stack:
            self.base = cuda.malloc(size)
            stack.callback(released, cuda.free, self.base)
            self.pinned = cuda.host_alloc(pinned_size)
            stack.callback(released, cuda.free_host, self.pinned)
            stack.callback(released, cuda.synchronize, self._stream)  # first of all
            # A slot is read with a weight of 0 before it is filled, and 0 x NaN is NaN.
            cuda.memset(self.base, 0, size, self._stream)
            cuda.synchronize(self._stream)
            return stack.pop_all()

    def _phase(self, length: int, fields: Sequence[Field], entries: Layout, start: Tuple[int, int],
               pinned: np.ndarray) -> Phase:
        device, host = start
        inputs = laid_out(fields)
        arrays, addresses = {}, {"logits": self.logits_at}
        for field in fields:
            at = inputs.offsets[field.name]
            flat = pinned[host + at:host + at + field.size]
            flat[:] = 0
            arrays[field.name] = flat.view(field.dtype).reshape(field.shape)
            addresses[field.name] = self.base + device + at
        for field in self.caches:
            addresses[field.name] = self.base + self.cache_at[field.name]
            addresses[field.name.replace(PAST, PRESENT)] = self.base + entries.offsets[field.name]
        copies = cache_copies(self.caches, self.cache_at, entries.offsets, length)
        return Phase(length, arrays, host=self.pinned + host, device=self.base + device, input_bytes=inputs.size,
                     addresses=addresses, copies=copies)

    def read_cache(self, field: Field) -> np.ndarray:
        """Return a copy of a whole cache [1, heads, context, head_size]. Raise CudaError."""
        with self._pinned_copy(field) as (host, pinned):
            self._cuda.memcpy(host, self.base + self.cache_at[field.name], field.size, TO_HOST, self._stream)
            self._cuda.synchronize(self._stream)
            return pinned.view(field.dtype).reshape(field.shape).copy()

    def write_cache(self, field: Field, array: np.ndarray) -> None:
        """Replace a whole cache [1, heads, context, head_size]. Raise CudaError."""
        with self._pinned_copy(field) as (host, pinned):
            pinned[:] = array.reshape(-1).view(np.uint8)
            self._cuda.memcpy(self.base + self.cache_at[field.name], host, field.size, TO_DEVICE, self._stream)
            self._cuda.synchronize(self._stream)

    @contextlib.contextmanager
    def _pinned_copy(self, field: Field) -> Iterator[Tuple[int, np.ndarray]]:
        """Yield the address and the bytes of pinned memory for a cache."""
        host = self._cuda.host_alloc(field.size)
        try:
            yield host, _bytes_at(host, field.size)
        finally:
            released(self._cuda.synchronize, self._stream)
            released(self._cuda.free_host, host)

    def close(self) -> None:
        """Free the memory. The stream must be idle."""
        self.logits, self.phases = np.zeros(0), []  # no array may outlive the memory it shows
        self._resources.close()


def _bytes_at(address: int, size: int) -> np.ndarray:
    """Return pinned memory as an array of bytes, which must not outlive that memory."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
