"""The memory of one session of a TensorRT model: one allocation on the GPU, one of pinned host memory.

On the GPU lie the KV caches, the new entries of a run, the logits, and the inputs of decode and of prefill; in pinned
memory the logits and both phases' inputs once more. No address ever changes, so a CUDA graph can hold them.
"""
import contextlib
import ctypes
from typing import Dict, Iterable, List, NamedTuple, Sequence, Tuple

import numpy as np

from merino_runtime.backends.cuda import TO_DEVICE, TO_HOST
from merino_runtime.backends.device_memory import Field, Layout, StridedCopy, aligned, cache_copies, laid_out
from merino_runtime.backends.tensorrt_model import Model, released

PAST, PRESENT = "past_key_values.", "present."


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
        self.caches = [Field(name, tensors[name].dtype, tensors[name].shape) for name in _ordered_caches(tensors)]
        layout = laid_out(self.caches)
        self.cache_at, self.cache_bytes = layout.offsets, layout.size
        fresh = {length: laid_out([Field(each.name, each.dtype, (1, each.shape[1], length, each.shape[3]))
                                   for each in self.caches], aligned(layout.size)) for length in model.lengths}
        inputs = {length: _inputs(model, length) for length in model.lengths}
        logits = Field("logits", tensors["logits"].dtype, (model.bundle.vocab,))
        self.logits_bytes = logits.size
        logits_at = aligned(max(each.size for each in fresh.values()))
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
        self.phases = [self._phase(length, inputs[length], fresh[length], start, pinned)
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

    def _phase(self, length: int, fields: Sequence[Field], fresh: Layout, start: Tuple[int, int],
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
            addresses[field.name.replace(PAST, PRESENT)] = self.base + fresh.offsets[field.name]
        copies = cache_copies(self.caches, self.cache_at, fresh.offsets, length)
        return Phase(length, arrays, self.pinned + host, self.base + device, inputs.size, addresses, copies)

    def read_cache(self, field: Field) -> np.ndarray:
        """A copy of a whole cache [1, heads, context, head_size]. Raises CudaError."""
        array = np.empty(field.shape, field.dtype)
        self._through_pinned(field, array, TO_HOST)
        return array

    def write_cache(self, field: Field, array: np.ndarray) -> None:
        """Replaces a whole cache [1, heads, context, head_size]. Raises CudaError."""
        self._through_pinned(field, array, TO_DEVICE)

    def _through_pinned(self, field: Field, array: np.ndarray, kind: int) -> None:
        device, cuda = self.base + self.cache_at[field.name], self._cuda
        host = cuda.host_alloc(field.size)
        try:
            pinned = _bytes_at(host, field.size)
            flat = array.reshape(-1).view(np.uint8)
            if kind == TO_DEVICE:
                pinned[:] = flat
                cuda.memcpy(device, host, field.size, kind, self._stream)
            else:
                cuda.memcpy(host, device, field.size, kind, self._stream)
            cuda.synchronize(self._stream)
            if kind == TO_HOST:
                flat[:] = pinned
        finally:
            released(cuda.synchronize, self._stream)
            released(cuda.free_host, host)

    def close(self) -> None:
        """The stream must be at rest."""
        self.logits, self.phases = np.zeros(0), []  # no array may outlive the memory it shows
        self._resources.close()


def _bytes_at(address: int, size: int) -> np.ndarray:
    """Pinned memory as an array of bytes. It must not outlive that memory."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def _inputs(model: Model, length: int) -> List[Field]:
    """The inputs that the host writes: ids, mask, positions."""
    return [Field(name, tensor.dtype, tuple(length if axis < 0 else axis for axis in tensor.shape))
            for name, tensor in model.tensors.items() if tensor.is_input and not name.startswith(PAST)]


def _ordered_caches(tensors: Iterable[str]) -> List[str]:
    """Names of the inputs that hold keys and values, in the order of the layers, the key before the value."""
    def order(name: str) -> Tuple[int, str]:
        _, layer, part = name.split(".")
        return int(layer), part

    return sorted((name for name in tensors if name.startswith(PAST)), key=order)
