"""What the forks of one TensorRT model share: the engine with its weights, one stream, the memory its kernels use.

The two profiles of the engine have an execution context each. They never run at the same time, so they share their
scratch memory, and `lock` is held around each run: TensorRT 8.2 allows no second context for a profile.
"""
import contextlib
import threading
from typing import Any, Callable, Dict, List

from merino_runtime.backends.cuda import Cuda, CudaError, cuda_faults_told
from merino_runtime.backends.engine_build import DECODE, PREFILL, Tell, chunk_ids, ensure_engine, key_of
from merino_runtime.backends.engine_file import PRECISIONS, opened_plan
from merino_runtime.backends.gpu import open_cuda
from merino_runtime.backends.tensorrt_versions import BoundEngine, Tensor, TensorRt, open_tensorrt, tensors_of
from merino_runtime.bundle import Bundle, Port
from merino_runtime.errors import MerinoError
from merino_runtime.requirements import version_tuple


class Model:
    """An engine, ready to run. Closed by its last user."""

    def __init__(self, bundle: Bundle, trt: TensorRt, cuda: Cuda, precision: str, engine_name: str,
                 resources: contextlib.ExitStack, parts: Dict[str, Any]) -> None:
        self.bundle, self.trt, self.cuda = bundle, trt, cuda
        self.precision, self.engine_name = precision, engine_name
        self.lock = threading.RLock()  # held while a run is on the stream
        self.stream: int = parts["stream"]
        self.tensors: Dict[str, Tensor] = parts["tensors"]
        self.bound: List[BoundEngine] = parts["bound"]  # by the number of the profile
        self.lengths = (1, chunk_ids(bundle))  # ids of a run, by the number of the profile
        self.owners: List[Any] = [None, None]  # whose addresses are set, by the number of the profile
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


def open_model(bundle: Bundle, tell: Tell) -> Model:
    """Opens the bundle's engine; builds it first where none is there that is sound. Raises MerinoError."""
    trt = open_tensorrt()
    cuda = open_cuda(version_tuple(trt.version))
    with cuda_faults_told("opening the engine"):
        precision = stored_precision(bundle, trt, cuda)
        ensure_engine(bundle, trt, cuda, precision, tell)
        try:
            return _opened(bundle, trt, cuda, precision)
        except NotLoadedError as error:
            tell(f"TensorRT does not load the engine ({error}): it is built again")
            ensure_engine(bundle, trt, cuda, precision, tell, anew=True)
        try:
            return _opened(bundle, trt, cuda, precision)
        except NotLoadedError as error:
            raise MerinoError(f"TensorRT {trt.version} does not load the engine that it built for {bundle.name!r}: "
                              f"{error}. Stop programs that use the GPU, or run on the CPU: --backend onnxruntime."
                              ) from error


class NotLoadedError(Exception):
    """TensorRT would not make an engine of a plan."""


def stored_precision(bundle: Bundle, trt: TensorRt, cuda: Cuda) -> str:
    """That of the engine that is there, as `build-engine` was asked for it; else the bundle's own. Raises CudaError."""
    for precision in PRECISIONS:
        if precision != bundle.precision:
            with opened_plan(bundle, key_of(bundle, trt, cuda, precision)) as plan:
                if plan is not None:
                    return precision
    return bundle.precision


def _opened(bundle: Bundle, trt: TensorRt, cuda: Cuda, precision: str) -> Model:
    """Raises NotLoadedError, MerinoError, CudaError; nothing is left then."""
    key = key_of(bundle, trt, cuda, precision)
    with contextlib.ExitStack() as stack:
        runtime = trt.module.Runtime(trt.logger)
        held: List[Any] = [runtime]  # in the order of their making: freed from the end
        stack.callback(_freed_from_the_end, held)
        with opened_plan(bundle, key) as plan:
            engine = runtime.deserialize_cuda_engine(plan) if plan is not None else None
        if engine is None:
            raise NotLoadedError(trt.why())
        held.append(engine)
        tensors = tensors_of(trt, engine)
        check_tensors(bundle, tensors)
        stream = cuda.stream_create()
        stack.callback(released, cuda.stream_destroy, stream)
        scratch = cuda.malloc(max(1, engine.device_memory_size))
        stack.callback(released, cuda.free, scratch)
        bound: List[BoundEngine] = []
        stack.callback(bound.clear)
        for profile, length in ((DECODE, 1), (PREFILL, key.chunk)):
            bound.append(BoundEngine(trt, engine, profile, scratch, stream))
            _set_shapes(bound[-1], tensors, length)
        cuda.synchronize(stream)  # the change of the profile
        del engine, runtime
        name = f"tensorrt {trt.version} {precision} {key.gpu}"
        parts = {"stream": stream, "tensors": tensors, "bound": bound}
        return Model(bundle, trt, cuda, precision, name, stack.pop_all(), parts)


def _set_shapes(bound: BoundEngine, tensors: Dict[str, Tensor], length: int) -> None:
    for name, tensor in tensors.items():
        if tensor.is_input and -1 in tensor.shape:
            bound.set_shape(name, tuple(length if axis < 0 else axis for axis in tensor.shape))


def _freed_from_the_end(held: List[Any]) -> None:
    while held:
        held.pop()


def released(free: Callable[[int], None], what: int) -> None:
    """Frees at the end of a use. A GPU that is lost has freed it, or never will."""
    with contextlib.suppress(CudaError):
        free(what)


def check_tensors(bundle: Bundle, tensors: Dict[str, Tensor]) -> None:
    """Raises MerinoError where the engine has other inputs or outputs than bundle.json says."""
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
