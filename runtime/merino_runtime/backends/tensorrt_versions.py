"""Hides the differences between TensorRT 8.2 and 10.x. Other versions are rejected by name.

8.2 (JetPack 4.6.1 and later, Python 3.6) addresses inputs and outputs by binding numbers, of which each optimization
profile has its own. 10.x (JetPack 6) addresses them by name. int64 inputs of a graph are int32 in an engine of 8.2:
the types to write are always read from the engine.
"""
from typing import Any, Dict, List, NamedTuple, Tuple

from merino_runtime.bundle.requirements import require, version_tuple
from merino_runtime.errors import MerinoError

KEPT_MESSAGES = 5
LONGEST_MESSAGE = 300


class Tensor(NamedTuple):
    """An input or output of an engine."""
    dtype: str
    is_input: bool
    shape: Tuple[int, ...]  # -1: an axis that the profile fixes


class TensorRt(NamedTuple):
    module: Any
    version: str
    logger: Any  # with `errors`: the last ones, in order

    @property
    def is_82(self) -> bool:
        return version_tuple(self.version)[0] == 8

    def why(self) -> str:
        """Return TensorRT's last errors for a message, and forget them."""
        reason = "; ".join(self.logger.errors) or "it gave no reason"
        del self.logger.errors[:]
        return reason


def open_tensorrt() -> TensorRt:
    """Return the installed TensorRT. Raise MerinoError if there is none, or if its version is unknown."""
    try:
        module = require("tensorrt")
    except MerinoError as error:
        raise MerinoError(f"{str(error).partition('. Run:')[0]}. TensorRT comes with a Jetson's JetPack: sudo apt-get "
                          "install python3-libnvinfer, and run the system's Python, or an environment that was made "
                          "with --system-site-packages. Or run on the CPU: MERINO_BACKEND=onnxruntime.") from error
    version = str(getattr(module, "__version__", ""))
    numbers = version_tuple(version)
    if numbers[:2] != (8, 2) and numbers[0] != 10:
        raise MerinoError(f"TensorRT is {version or 'of no version'}, this runtime drives 8.2 (JetPack 4.6.1 to 4.6.6) "
                          "and 10.x (JetPack 6). Install that JetPack, or run on the CPU: MERINO_BACKEND=onnxruntime.")
    return TensorRt(module, version, _logger(module))


def _logger(module: Any) -> Any:
    class Logger(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: List[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if int(severity) <= int(module.ILogger.ERROR):
                self.errors.append(" ".join(msg.split())[:LONGEST_MESSAGE])
                del self.errors[:-KEPT_MESSAGES]

    return Logger()


def limit_workspace(trt: TensorRt, config: Any, size: int) -> None:
    """Set the bytes of GPU memory that a kernel may use beside its inputs and outputs."""
    if trt.is_82:
        config.max_workspace_size = size
    else:
        config.set_memory_pool_limit(trt.module.MemoryPoolType.WORKSPACE, size)


def tensors_of(trt: TensorRt, engine: Any) -> Dict[str, Tensor]:
    """Return the inputs and outputs of an engine, by name."""
    if trt.is_82:
        return {engine.get_binding_name(index): Tensor(_dtype(trt, engine.get_binding_dtype(index)),
                                                       engine.binding_is_input(index),
                                                       tuple(engine.get_binding_shape(index)))
                for index in range(engine.num_bindings // engine.num_optimization_profiles)}
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    return {name: Tensor(_dtype(trt, engine.get_tensor_dtype(name)),
                         engine.get_tensor_mode(name) == trt.module.TensorIOMode.INPUT,
                         tuple(engine.get_tensor_shape(name))) for name in names}


def _dtype(trt: TensorRt, dtype: Any) -> str:
    names = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64"}
    if dtype.name not in names:
        raise MerinoError(f"TensorRT {trt.version} made an engine with an input or output of {dtype.name}, expected "
                          f"{', '.join(sorted(names))}: report this.")
    return names[dtype.name]


class BoundEngine:
    """One optimization profile of an engine, ready to run: shapes are set once, addresses when they change.

    scratch: address of the memory that the kernels use. Profiles that never run at the same time share it. Every method
    raises MerinoError if TensorRT rejects the call.
    """

    def __init__(self, trt: TensorRt, engine: Any, profile: int, scratch: int, stream: int) -> None:
        self._trt, self._what = trt, f"profile {profile} of the engine"
        self._context = self._accepted(engine.create_execution_context_without_device_memory())
        self._context.device_memory = scratch
        self._accepted(self._context.set_optimization_profile_async(profile, stream))
        self._numbers: Dict[str, int] = {}  # 8.2: of the bindings of this profile
        self._bindings: List[int] = []  # 8.2: the address of each
        if trt.is_82:
            count = engine.num_bindings // engine.num_optimization_profiles
            self._numbers = {engine.get_binding_name(index): profile * count + index for index in range(count)}
            self._bindings = [0] * engine.num_bindings

    def set_shape(self, name: str, shape: Tuple[int, ...]) -> None:
        if self._trt.is_82:
            self._accepted(self._context.set_binding_shape(self._numbers[name], shape))
        else:
            self._accepted(self._context.set_input_shape(name, shape))

    def set_addresses(self, addresses: Dict[str, int]) -> None:
        """Set the addresses of all inputs and outputs, by name."""
        for name, address in addresses.items():
            if self._trt.is_82:
                self._bindings[self._numbers[name]] = address
            else:
                self._accepted(self._context.set_tensor_address(name, address))

    def enqueue(self, stream: int) -> None:
        """Put one run on the stream."""
        if self._trt.is_82:
            self._accepted(self._context.execute_async_v2(self._bindings, stream))
        else:
            self._accepted(self._context.execute_async_v3(stream))

    def _accepted(self, result: Any) -> Any:
        if result is None or result is False:
            raise MerinoError(f"TensorRT {self._trt.version} refused {self._what}: {self._trt.why()}. Build the engine "
                              "again with `build-engine`, or run on the CPU: MERINO_BACKEND=onnxruntime.")
        return result
