"""What the forks of one TensorRT model share: the engine with its weights, one stream, the memory its kernels use.

The two profiles of the engine have an execution context each. They never run at the same time, so they share their
scratch memory, and `lock` is held around each run: TensorRT 8.2 allows no second context for a profile.
"""
import contextlib
import threading
from typing import Any, Callable, Dict, List, NamedTuple, Optional

from merino_runtime.backends.cuda import Cuda, CudaError, raising_cuda_faults
from merino_runtime.backends.engine_build import DECODE, PREFILL, Report, chunk_ids, ensure_engine, key_of
from merino_runtime.backends.engine_file import opened_plan
from merino_runtime.backends.gpu import open_cuda
from merino_runtime.backends.tensorrt_versions import BoundEngine, Tensor, TensorRt, open_tensorrt, tensors_of
from merino_runtime.bundle import Bundle, Port
from merino_runtime.bundle.requirements import version_tuple
from merino_runtime.errors import MerinoError


class Model:
    """An engine, ready to run. Closed by its last user."""

    def __init__(self, bundle: Bundle, trt: TensorRt, cuda: Cuda, precision: str, stream: int,
                 tensors: Dict[str, Tensor], bound: List[BoundEngine], resources: contextlib.ExitStack) -> None:
        self.bundle, self.trt, self.cuda, self.precision = bundle, trt, cuda, precision
        self.lock = threading.RLock()  # held while a run is on the stream
        self.stream, self.tensors = stream, tensors
        self.bound = bound  # by the number of the profile
        self.lengths = (1, chunk_ids(bundle))  # ids of a run, by the number of the profile
        self.owners: List[Any] = [None, None]  # whose addresses are set, by the number of the profile
        self.engine_name = ""  # for records
        self._resources, self._users = resources, 1

    def shared(self) -> "Model":
        """For one more user, which closes it too."""
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
    """Opens the engine that is kept for this bundle, of float16 kernels where `build-engine --fp16` left one; builds
    one first where none is sound. Raises MerinoError."""
    trt = open_tensorrt()
    cuda = open_cuda(version_tuple(trt.version))
    refused = None
    with raising_cuda_faults("opening the engine"):
        for precision in sorted({"fp16", bundle.precision}):
            try:
                model = _opened(bundle, trt, cuda, precision)
            except NotLoadedError as error:
                report(f"TensorRT does not load the engine ({error}): it is built again")
                refused = precision
                continue
            if model is not None:
                return model
        precision = refused or bundle.precision
        ensure_engine(bundle, trt, cuda, precision, report, rebuild=refused is not None)
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
    """TensorRT would not make an engine of a plan."""


def _opened(bundle: Bundle, trt: TensorRt, cuda: Cuda, precision: str) -> Optional[Model]:
    """None where no sound engine is kept. Raises NotLoadedError, MerinoError, CudaError; nothing is left then."""
    key = key_of(bundle, trt, cuda, precision)
    with contextlib.ExitStack() as stack:
        with opened_plan(bundle, key) as plan:
            if plan is None:
                return None
            engine = engine_of(stack, trt, plan)
        check_tensors(bundle, tensors_of(trt, engine))
        loaded = bind(stack, trt, cuda, engine, key.chunk)
        model = Model(bundle, trt, cuda, precision, loaded.stream, loaded.tensors, loaded.bound, stack.pop_all())
        model.engine_name = f"tensorrt {trt.version} {precision} {key.gpu}"
        return model


class Loaded(NamedTuple):
    """An engine whose shapes are set."""
    stream: int
    tensors: Dict[str, Tensor]
    bound: List[BoundEngine]  # by the number of the profile


def engine_of(stack: contextlib.ExitStack, trt: TensorRt, plan: Any) -> Any:
    """The engine of a plan, a buffer that is needed meanwhile; freed with `stack`. Raises NotLoadedError."""
    runtime = trt.module.Runtime(trt.logger)
    objects: List[Any] = [runtime]  # in the order of their making: freed from the end
    stack.callback(_freed_from_the_end, objects)
    objects.append(runtime.deserialize_cuda_engine(plan))
    if objects[-1] is None:
        raise NotLoadedError(trt.why())
    return objects[-1]


def bind(stack: contextlib.ExitStack, trt: TensorRt, cuda: Cuda, engine: Any, chunk: int) -> Loaded:
    """Both profiles of an engine, for 1 and for `chunk` ids, on a stream of their own; freed with `stack`. Raises
    MerinoError, CudaError."""
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
        _set_shapes(bound[-1], tensors, length)
    cuda.synchronize(stream)  # the change of the profile
    return Loaded(stream, tensors, bound)


def captured(cuda: Cuda, stream: int, enqueue: Callable[[], None]) -> int:
    """What `enqueue` puts on the stream, as an executable CUDA graph; 0 where this version or a layer of the engine
    cannot be captured. To be called after a run: then TensorRT has allocated what it needs."""
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


def _set_shapes(bound: BoundEngine, tensors: Dict[str, Tensor], length: int) -> None:
    for name, tensor in tensors.items():
        if tensor.is_input and -1 in tensor.shape:
            bound.set_shape(name, tuple(length if axis < 0 else axis for axis in tensor.shape))


def _freed_from_the_end(objects: List[Any]) -> None:
    while objects:
        objects.pop()


def released(free: Callable[[int], None], what: int) -> None:
    """Frees at the end of a use. A GPU that is lost has freed it, or never will."""
    with contextlib.suppress(CudaError):
        free(what)


def check_tensors(bundle: Bundle, tensors: Dict[str, Tensor]) -> None:
    """Raises MerinoError where the engine has other inputs or outputs than bundle.json lists."""
    ports: Dict[str, Port] = {port.name: port for port in (*bundle.inputs, *bundle.outputs)}
    wrong = sorted(set(ports) ^ set(tensors))
    wrong += [name for name, port in ports.items() if name in tensors and not _agrees(port, tensors[name])]
    if wrong:
        raise MerinoError(f"the engine and bundle.json disagree about {', '.join(wrong[:5])}. Export the bundle again.")


def _agrees(port: Port, tensor: Tensor) -> bool:
    """TensorRT 8.2 has int32 where the graph has int64; an axis with a name is open."""
    same = tensor.dtype == port.dtype or (port.dtype == "int64" and tensor.dtype == "int32")
    shapes = len(tensor.shape) == len(port.shape) and all(
        axis == size or (isinstance(axis, str) and size == -1) for axis, size in zip(port.shape, tensor.shape))
    return same and shapes
