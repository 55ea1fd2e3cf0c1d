"""A TensorRT model that forks share, and the memory of one of its sessions.

The model has the engine with its weights, one stream, and the memory that its kernels use. Each of the engine's two
profiles has an execution context. They never run at the same time, so they share their scratch memory, and `lock` is
held around each run: TensorRT 8.2 allows no second context for a profile.

A session has the KV caches, the logits, and for decode and prefill each the new entries and the inputs of a run. The
host writes inputs and reads logits in pinned memory. No address ever changes, so a CUDA graph can hold them.
"""
import contextlib
import ctypes
import threading
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from merino_runtime.backends.cuda import TO_DEVICE, TO_HOST, Cuda, open_cuda, raising_cuda_faults
from merino_runtime.backends.engine_build import DECODE, PREFILL, Report, chunk_ids, ensure_engine, key_of
from merino_runtime.backends.engine_file import opened_plan
from merino_runtime.backends.tensorrt_versions import BoundEngine, Tensor, TensorRt, open_tensorrt, tensors_of
from merino_runtime.bundle import Bundle
from merino_runtime.bundle.requirements import version_tuple
from merino_runtime.errors import MerinoError

PAST, PRESENT = "past_key_values.", "present."
ALIGNMENT = 256  # of every address that TensorRT is given


class Model:
    """An engine, ready to run. Its last user closes it."""

    def __init__(self, bundle: Bundle, cuda: Cuda, precision: str, engine_name: str, loaded: "Loaded",
                 resources: contextlib.ExitStack) -> None:
        self.bundle, self.cuda, self.precision, self.engine_name = bundle, cuda, precision, engine_name
        self.lock = threading.RLock()  # held while a run is on the stream
        self.stream, self.tensors, self.bound = loaded
        self.lengths = (1, chunk_ids(bundle))  # ids of a run, by the number of the profile
        self.owners: List[Any] = [None, None]  # whose addresses are set, by the number of the profile
        self._resources, self._users = resources, 1

    def shared(self) -> "Model":
        """Return this model for one more user, which closes it too."""
        with self.lock:
            self._users += 1
        return self

    def close(self) -> None:
        with self.lock:
            self._users -= 1
            if self._users == 0:
                self.owners = [None, None]
                self._resources.close()


def open_model(bundle: Bundle, report: Report) -> Model:
    """Open the stored engine of this bundle, with float16 kernels if `build-engine --fp16` made it. Build one first if
    there is no sound one. Raise MerinoError."""
    trt = open_tensorrt()
    cuda = open_cuda(version_tuple(trt.version))
    precision, rejected = bundle.precision, False
    with raising_cuda_faults("opening the engine"):
        # 1. The stored engine.
        for stored in sorted({"fp16", bundle.precision}):
            try:
                model = _opened(bundle, trt, cuda, stored)
                if model is not None:
                    return model
            except NotLoadedError as error:
                report(f"TensorRT does not load the engine ({error}): it is built again")
                precision, rejected = stored, True
        # 2. A new engine.
        ensure_engine(bundle, trt, cuda, precision, report, rebuild=rejected)
        try:
            model = _opened(bundle, trt, cuda, precision)
        except NotLoadedError as error:
            raise MerinoError(f"TensorRT {trt.version} does not load the engine that it built for {bundle.name!r}: "
                              f"{error}. Stop programs that use the GPU, or run on the CPU: MERINO_BACKEND=onnxruntime."
                              ) from error
    if model is None:
        raise MerinoError(f"the engine of {bundle.name!r} that was just built is gone or damaged. Check the disk, then "
                          "run this again.")
    return model


class NotLoadedError(Exception):
    """TensorRT cannot make an engine of a plan."""


def _opened(bundle: Bundle, trt: TensorRt, cuda: Cuda, precision: str) -> Optional[Model]:
    """Return the model of the stored engine; None if there is no sound one. Raise NotLoadedError, MerinoError or
    CudaError, after freeing everything."""
    key = key_of(bundle, trt, cuda, precision)
    with contextlib.ExitStack() as stack:
        with opened_plan(bundle, key) as (_, plan):
            if plan is None:
                return None
            engine = engine_of(stack, trt, plan)
        check_tensors(bundle, tensors_of(trt, engine))
        loaded = bind(stack, trt, cuda, engine, key.chunk)
        engine_name = f"tensorrt {trt.version} {precision} {key.gpu}"  # for records
        return Model(bundle, cuda, precision, engine_name, loaded=loaded, resources=stack.pop_all())


class Loaded(NamedTuple):
    """An engine whose shapes are set."""
    stream: int
    tensors: Dict[str, Tensor]
    bound: List[BoundEngine]  # by the number of the profile


def engine_of(stack: contextlib.ExitStack, trt: TensorRt, plan: Any) -> Any:
    """Return the engine of a plan, a buffer that is only needed meanwhile. `stack` frees it. Raise NotLoadedError."""
    objects: List[Any] = [trt.module.Runtime(trt.logger)]
    stack.callback(objects.pop)  # runs last: the runtime must outlive its engine
    objects.append(objects[0].deserialize_cuda_engine(plan))
    stack.callback(objects.pop)
    if objects[1] is None:
        raise NotLoadedError(trt.why())
    return objects[1]


def bind(stack: contextlib.ExitStack, trt: TensorRt, cuda: Cuda, engine: Any, chunk: int) -> Loaded:
    """Return both profiles of an engine, for 1 and for `chunk` ids, on a new stream. `stack` frees them. Raise
    MerinoError or CudaError."""
    tensors = tensors_of(trt, engine)
    stream = cuda.stream_create(stack)
    scratch = cuda.malloc(max(1, engine.device_memory_size), stack)
    stack.callback(cuda.settle, stream)  # first of all
    bound: List[BoundEngine] = []
    stack.callback(bound.clear)
    for profile, length in ((DECODE, 1), (PREFILL, chunk)):
        bound.append(BoundEngine(trt, engine, profile, scratch, stream))
        for name, tensor in tensors.items():
            if tensor.is_input and -1 in tensor.shape:
                bound[-1].set_shape(name, tuple(length if axis < 0 else axis for axis in tensor.shape))
    cuda.synchronize(stream)  # the change of the profile
    return Loaded(stream, tensors, bound)


def check_tensors(bundle: Bundle, tensors: Dict[str, Tensor]) -> None:
    """Raise MerinoError if the engine has other inputs or outputs than bundle.json lists. An axis with a name may have
    any length, and TensorRT 8.2 has int32 where the graph has int64."""
    ports = {port.name: port for port in (*bundle.inputs, *bundle.outputs)}
    wrong = sorted(set(ports) ^ set(tensors))
    for name in sorted(set(ports) & set(tensors)):
        port, tensor = ports[name], tensors[name]
        shape = tuple(-1 if isinstance(axis, str) else axis for axis in port.shape)
        if tensor.shape != shape or tensor.dtype not in (port.dtype, port.dtype.replace("int64", "int32")):
            wrong.append(name)
    if wrong:
        raise MerinoError(f"the engine and bundle.json disagree about {', '.join(wrong[:5])}. Export the bundle again.")


class Field(NamedTuple):
    name: str
    dtype: str
    shape: Tuple[int, ...]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


class StridedCopy(NamedTuple):
    """Copies one row per head. The starts of the rows are a pitch apart, in the cache and in the new entries."""
    to: int  # address of the cache's row
    source: int  # address of the new entries' row
    to_pitch: int  # context * entry
    pitch: int  # new ids * entry
    entry: int  # bytes of one id's key or value in one head
    rows: int


class Phase(NamedTuple):
    """One kind of run: decode or prefill."""
    length: int  # ids
    arrays: Dict[str, np.ndarray]  # of the inputs, pinned: [1, length] or [1, context]
    host: int  # address of the inputs in pinned memory
    device: int  # and in the GPU's
    input_bytes: int
    addresses: Dict[str, int]  # of all inputs and outputs of the engine
    copies: List[StridedCopy]  # of new entries into the caches


def laid_out(fields: Sequence[Field]) -> Tuple[Dict[str, int], int]:
    """Return the offsets of the fields, one after the other, each at a multiple of ALIGNMENT; and the size of all."""
    offsets, end = {}, 0
    for field in fields:
        offsets[field.name] = end
        end += -(-field.size // ALIGNMENT) * ALIGNMENT
    return offsets, end


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


class SessionMemory:
    """Allocated completely, or not at all. Raise CudaError."""

    def __init__(self, model: Model) -> None:
        self._cuda, self._stream, tensors = model.cuda, model.stream, model.tensors
        names = [name.split(".") for name in tensors if name.startswith(PAST)]
        names.sort(key=lambda parts: (int(parts[1]), parts[2]))  # by layer, the key before the value
        self.caches = [Field(name, tensors[name].dtype, tensors[name].shape) for name in map(".".join, names)]
        logits = Field("logits", tensors["logits"].dtype, (model.bundle.vocab,))
        offsets, self.cache_bytes = laid_out(self.caches)
        with contextlib.ExitStack() as stack:
            self.base = self._cuda.malloc(self.cache_bytes, stack)
            self.cache_at = {name: self.base + offset for name, offset in offsets.items()}
            self.logits_bytes, self.logits_at = logits.size, self._cuda.malloc(logits.size, stack)
            self.pinned = self._cuda.host_alloc(logits.size, stack)
            self.logits = _bytes_at(self.pinned, logits.size).view(logits.dtype)  # [vocab]
            self.phases = [self._phase(model, length, stack) for length in model.lengths]
            stack.callback(self._cuda.settle, self._stream)  # first of all
            # A slot is read with a weight of 0 before it is filled, and 0 x NaN is NaN.
            self._cuda.memset(self.base, 0, self.cache_bytes, self._stream)
            self._cuda.synchronize(self._stream)
            self.resources = stack.pop_all()

    def _phase(self, model: Model, length: int, stack: contextlib.ExitStack) -> Phase:
        # 1. The new entries, by the name of their cache.
        new_at, size = laid_out([cache._replace(shape=(1, cache.shape[1], length, cache.shape[3]))
                                 for cache in self.caches])
        entries = self._cuda.malloc(size, stack)
        new_at = {name: entries + offset for name, offset in new_at.items()}
        # 2. The inputs that the host writes: ids, mask, positions.
        fields = [Field(name, tensor.dtype, tuple(length if axis < 0 else axis for axis in tensor.shape))
                  for name, tensor in model.tensors.items() if tensor.is_input and not name.startswith(PAST)]
        input_at, size = laid_out(fields)
        device, host = self._cuda.malloc(size, stack), self._cuda.host_alloc(size, stack)
        pinned = _bytes_at(host, size)
        pinned[:] = 0
        arrays = {field.name: pinned[input_at[field.name]:][:field.size].view(field.dtype).reshape(field.shape)
                  for field in fields}
        # 3. The addresses of all.
        addresses = {"logits": self.logits_at, **self.cache_at}
        addresses.update((name, device + offset) for name, offset in input_at.items())
        addresses.update((name.replace(PAST, PRESENT), address) for name, address in new_at.items())
        return Phase(length, arrays, host, device, size, addresses,
                     cache_copies(self.caches, self.cache_at, new_at, length))

    def read_cache(self, field: Field) -> np.ndarray:
        """Return a copy of a whole cache [1, heads, context, head_size]. Raise CudaError."""
        with self._pinned_copy(field) as (host, pinned):
            self._cuda.memcpy(host, self.cache_at[field.name], field.size, TO_HOST, self._stream)
            self._cuda.synchronize(self._stream)
            return pinned.view(field.dtype).reshape(field.shape).copy()

    def write_cache(self, field: Field, array: np.ndarray) -> None:
        """Replace a whole cache [1, heads, context, head_size]. Raise CudaError."""
        with self._pinned_copy(field) as (host, pinned):
            pinned[:] = array.reshape(-1).view(np.uint8)
            self._cuda.memcpy(self.cache_at[field.name], host, field.size, TO_DEVICE, self._stream)
            self._cuda.synchronize(self._stream)

    @contextlib.contextmanager
    def _pinned_copy(self, field: Field) -> Iterator[Tuple[int, np.ndarray]]:
        """Yield the address and the bytes of pinned memory for a cache."""
        with contextlib.ExitStack() as stack:
            host = self._cuda.host_alloc(field.size, stack)
            stack.callback(self._cuda.settle, self._stream)
            yield host, _bytes_at(host, field.size)

    def close(self) -> None:
        """Free the memory. The stream must be idle."""
        self.logits, self.phases = np.zeros(0), []  # no array may outlive the memory it shows
        self.resources.close()


def _bytes_at(address: int, size: int) -> np.ndarray:
    """Return pinned memory as an array of bytes, which must not outlive that memory."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
