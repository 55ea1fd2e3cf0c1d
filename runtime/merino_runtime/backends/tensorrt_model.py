"""A TensorRT model that forks share: the engine with its weights, one stream, the memory that its kernels use.

Each of the engine's two profiles has an execution context. They never run at the same time, so they share their
scratch memory, and `lock` is held around each run: TensorRT 8.2 allows no second context for a profile.
"""
import contextlib
import threading
from typing import Any, Callable, Dict, List, NamedTuple, Optional

from merino_runtime.backends.cuda import Cuda, CudaError, open_cuda, raising_cuda_faults
from merino_runtime.backends.engine_build import DECODE, PREFILL, Report, chunk_ids, ensure_engine, key_of
from merino_runtime.backends.engine_file import opened_plan
from merino_runtime.backends.tensorrt_versions import BoundEngine, Tensor, TensorRt, open_tensorrt, tensors_of
from merino_runtime.bundle import Bundle
from merino_runtime.bundle.requirements import version_tuple
from merino_runtime.errors import MerinoError


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
    rejected = None
    with raising_cuda_faults("opening the engine"):
        # 1. The stored engine.
        for precision in sorted({"fp16", bundle.precision}):
            try:
                model = _opened(bundle, trt, cuda, precision)
            except NotLoadedError as error:
                report(f"TensorRT does not load the engine ({error}): it is built again")
                rejected = precision
                continue
            if model is not None:
                return model
        # 2. A new engine.
        precision = rejected or bundle.precision
        ensure_engine(bundle, trt, cuda, precision, report, rebuild=rejected is not None)
        try:
            model = _opened(bundle, trt, cuda, precision)
        except NotLoadedError as error:
            raise MerinoError(f"TensorRT {trt.version} does not load the engine that it built for {bundle.name!r}: "
                              f"{error}. Stop programs that use the GPU, or run on the CPU: --backend onnxruntime."
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
        with opened_plan(bundle, key) as plan:
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
    stream = cuda.stream_create()
    stack.callback(released, cuda.stream_destroy, stream)
    scratch = cuda.malloc(max(1, engine.device_memory_size))
    stack.callback(released, cuda.free, scratch)
    stack.callback(released, cuda.synchronize, stream)  # first of all
    bound: List[BoundEngine] = []
    stack.callback(bound.clear)
    for profile, length in ((DECODE, 1), (PREFILL, chunk)):
        bound.append(BoundEngine(trt, engine, profile, scratch, stream))
        for name, tensor in tensors.items():
            if tensor.is_input and -1 in tensor.shape:
                bound[-1].set_shape(name, tuple(length if axis < 0 else axis for axis in tensor.shape))
    cuda.synchronize(stream)  # the change of the profile
    return Loaded(stream, tensors, bound)


def captured(cuda: Cuda, stream: int, enqueue: Callable[[], None]) -> int:
    """Return what `enqueue` puts on the stream as an executable CUDA graph; 0 if this version or a layer of the engine
    cannot be captured. Call this after a run: then TensorRT has allocated what it needs."""
    graph = executable = 0
    with contextlib.suppress(CudaError, MerinoError):
        cuda.begin_capture(stream)
        try:
            enqueue()
        finally:
            graph = cuda.end_capture(stream)
        executable = cuda.instantiate(graph)
    if graph:
        released(cuda.graph_destroy, graph)
    return executable


def released(free: Callable[[int], None], what: int) -> None:
    """Free a resource at the end of its use. A lost GPU has freed it, or never will."""
    with contextlib.suppress(CudaError):
        free(what)


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
