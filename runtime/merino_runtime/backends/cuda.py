"""The CUDA runtime of this machine and its GPU: the functions that the TensorRT backend uses, by ctypes on libcudart.

GPU memory is represented by its address, a number. Work on a stream is complete after `synchronize`; until then its
host memory must not change, and must be pinned. Every call that fails raises CudaError, from which `cuda_fault` makes
the user's message.
"""
import contextlib
import ctypes
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_void_p
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from merino_runtime.errors import MerinoError

OUT_OF_MEMORY, INSUFFICIENT_DRIVER, NO_DEVICE = 2, 35, 100
TO_DEVICE, TO_HOST, ON_DEVICE = 1, 2, 3  # cudaMemcpyKind
NON_BLOCKING = 1  # of a stream: it does not wait for the default stream
CAPTURE_THREAD_LOCAL = 1  # other threads may allocate meanwhile
# Of a kernel that failed, or a bus that did: every later call of the process fails too.
LOST = (46, 214, 700, 702, 703, 709, 710, 714, 715, 716, 717, 718, 719, 721, 999)
FAULTS = {  # by the code of the error
    **dict.fromkeys(LOST, "the GPU failed in {doing} ({error}): its state is lost for this process. Start the command "
                          "again; if it fails again, look into `dmesg`."),
    INSUFFICIENT_DRIVER: "CUDA cannot start ({error}): no NVIDIA driver is loaded, or it is older than the CUDA "
                         "runtime. Check with `nvidia-smi`, on a Jetson with `dmesg | grep nvgpu`.",
    NO_DEVICE: "CUDA finds no GPU ({error}). Check with `nvidia-smi`.",
    OUT_OF_MEMORY: "out of GPU memory in {doing} ({error}). On a Jetson the CPU shares that memory. Stop other "
                   "programs, or export with a shorter --context or --precision fp16.",
}
OTHER_FAULT = "CUDA failed in {doing} ({error}). Start the command again; if it fails again, look into `dmesg`."
MB = 2 ** 20

SIGNATURES: Dict[str, List[Any]] = {
    "cudaDriverGetVersion": [POINTER(c_int)], "cudaRuntimeGetVersion": [POINTER(c_int)],
    "cudaGetDevice": [POINTER(c_int)], "cudaDeviceGetAttribute": [POINTER(c_int), c_int, c_int],
    "cudaMemGetInfo": [POINTER(c_size_t), POINTER(c_size_t)],
    "cudaMalloc": [POINTER(c_void_p), c_size_t], "cudaFree": [c_void_p],
    "cudaHostAlloc": [POINTER(c_void_p), c_size_t, c_uint], "cudaFreeHost": [c_void_p],
    "cudaMemcpyAsync": [c_void_p, c_void_p, c_size_t, c_int, c_void_p],
    "cudaMemcpy2DAsync": [c_void_p, c_size_t, c_void_p, c_size_t, c_size_t, c_size_t, c_int, c_void_p],
    "cudaMemsetAsync": [c_void_p, c_int, c_size_t, c_void_p],
    "cudaMemset2DAsync": [c_void_p, c_size_t, c_int, c_size_t, c_size_t, c_void_p],
    "cudaStreamCreateWithFlags": [POINTER(c_void_p), c_uint], "cudaStreamSynchronize": [c_void_p],
    "cudaStreamDestroy": [c_void_p],
    "cudaStreamBeginCapture": [c_void_p, c_int], "cudaStreamEndCapture": [c_void_p, POINTER(c_void_p)],
    "cudaGraphLaunch": [c_void_p, c_void_p], "cudaGraphExecDestroy": [c_void_p], "cudaGraphDestroy": [c_void_p],
    "cudaGetLastError": [],
}
INSTANTIATE_FROM_12 = [POINTER(c_void_p), c_void_p, ctypes.c_ulonglong]
INSTANTIATE_BEFORE_12 = [POINTER(c_void_p), c_void_p, POINTER(c_void_p), c_char_p, c_size_t]
TEXTS = ("cudaGetErrorName", "cudaGetErrorString")
CAPABILITY_MAJOR, CAPABILITY_MINOR, INTEGRATED = 75, 76, 18  # cudaDeviceAttr
DRIVER_SIGNATURES: Dict[str, List[Any]] = {
    "cuInit": [c_uint], "cuDeviceGet": [POINTER(c_int), c_int], "cuDeviceGetName": [c_char_p, c_int, c_int]}


class CudaError(Exception):
    def __init__(self, call: str, code: int, name: str = "", text: str = "") -> None:
        super().__init__(f"{call}: {name or 'error'} ({code}){': ' + text if text else ''}")
        self.call, self.code = call, code


class Cuda:
    """libcudart. Each method is the function of its name, and returns its results instead of writing them to
    pointers."""

    def __init__(self, library: Any) -> None:
        self._functions = {name: c_function(library, name, types, c_int) for name, types in SIGNATURES.items()}
        self._texts = [c_function(library, name, [c_int], c_char_p) for name in TEXTS]
        self.runtime = self.integer("cudaRuntimeGetVersion")  # 10020 is 10.2
        instantiate = INSTANTIATE_FROM_12 if self.runtime >= 12000 else INSTANTIATE_BEFORE_12
        self._functions["cudaGraphInstantiate"] = c_function(library, "cudaGraphInstantiate", instantiate, c_int)

    def _call(self, name: str, *arguments: Any) -> None:
        code = self._functions[name](*arguments)
        if code:
            with contextlib.suppress(Exception):
                self._functions["cudaGetLastError"]()  # otherwise a later call of TensorRT's reports it
            words = [function(code) for function in self._texts]
            raise CudaError(name, code, *((word or b"").decode("utf-8", "replace") for word in words))

    def integer(self, name: str, *arguments: Any) -> int:
        """Return the result of a function that returns an integer."""
        number = c_int()
        self._call(name, ctypes.byref(number), *arguments)
        return number.value

    def _address(self, name: str, *arguments: Any) -> int:
        address = c_void_p()
        self._call(name, ctypes.byref(address), *arguments)
        return address.value or 0

    def mem_get_info(self) -> Tuple[int, int]:
        """Return the free and the total bytes."""
        free, total = c_size_t(), c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def malloc(self, size: int, stack: contextlib.ExitStack) -> int:
        """Allocate GPU memory, which `stack` frees."""
        return self._made(stack, "cudaFree", "cudaMalloc", size)

    def host_alloc(self, size: int, stack: contextlib.ExitStack) -> int:
        """Allocate pinned memory, which `stack` frees."""
        return self._made(stack, "cudaFreeHost", "cudaHostAlloc", size, 0)

    def stream_create(self, stack: contextlib.ExitStack) -> int:
        """Make a stream, which `stack` destroys."""
        return self._made(stack, "cudaStreamDestroy", "cudaStreamCreateWithFlags", NON_BLOCKING)

    def _made(self, stack: contextlib.ExitStack, release: str, name: str, *arguments: Any) -> int:
        resource = self._address(name, *arguments)
        stack.callback(self._release, release, resource)
        return resource

    def _release(self, name: str, resource: int) -> None:
        """Free a resource at the end of its use. A lost GPU has freed it, or never will."""
        with contextlib.suppress(CudaError):
            self._call(name, resource)

    def memcpy(self, to: int, source: int, size: int, kind: int, stream: int) -> None:
        self._call("cudaMemcpyAsync", to, source, size, kind, stream)

    def memcpy_2d(self, to: int, to_pitch: int, source: int, pitch: int, width: int, height: int, kind: int,
                  stream: int) -> None:
        """Copy `height` rows of `width` bytes, whose starts are a pitch apart."""
        self._call("cudaMemcpy2DAsync", to, to_pitch, source, pitch, width, height, kind, stream)

    def memset(self, address: int, value: int, size: int, stream: int) -> None:
        self._call("cudaMemsetAsync", address, value, size, stream)

    def memset_2d(self, address: int, pitch: int, value: int, width: int, height: int, stream: int) -> None:
        self._call("cudaMemset2DAsync", address, pitch, value, width, height, stream)

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def settle(self, stream: int) -> None:
        """Wait until nothing on the stream still writes, also if that failed."""
        self._release("cudaStreamSynchronize", stream)

    def captured(self, stream: int, enqueue: Callable[[], None], stack: contextlib.ExitStack) -> int:
        """Return what `enqueue` puts on the stream as an executable CUDA graph, which `stack` destroys; 0 if this
        version or a layer of the engine cannot be captured. Call this after a run: then TensorRT has allocated what it
        needs."""
        graph, executable = c_void_p(), 0
        with contextlib.suppress(CudaError, MerinoError):
            self._call("cudaStreamBeginCapture", stream, CAPTURE_THREAD_LOCAL)
            try:
                enqueue()
            finally:
                self._call("cudaStreamEndCapture", stream, ctypes.byref(graph))
            rest = (0,) if self.runtime >= 12000 else (None, None, 0)
            executable = self._made(stack, "cudaGraphExecDestroy", "cudaGraphInstantiate", graph.value, *rest)
        if graph.value:
            self._release("cudaGraphDestroy", graph.value)
        return executable

    def launch(self, executable: int, stream: int) -> None:
        self._call("cudaGraphLaunch", executable, stream)


def c_function(library: Any, name: str, types: Sequence[Any], result: Any) -> Any:
    """Return a function of a library with its types: ctypes passes a bare Python number as 32 bits."""
    function = getattr(library, name)
    function.argtypes, function.restype = types, result
    return function


@contextlib.contextmanager
def raising_cuda_faults(doing: str) -> Iterator[None]:
    """Turn a CudaError of the body into the user's MerinoError. doing: as in `a decode step`."""
    try:
        yield
    except CudaError as error:
        fault = FAULTS.get(error.code, OTHER_FAULT).format(doing=doing, error=error)
        raise MerinoError(f"{fault} Or run on the CPU: MERINO_BACKEND=onnxruntime.") from error


class Device(NamedTuple):
    name: str
    capability: str  # "5.3"
    integrated: bool  # it shares its memory with the CPU, as on every Jetson


def open_library(names: Sequence[str]) -> Optional[Any]:
    """Return the first of the shared libraries that can be loaded; None if none can."""
    for name in names:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    return None


def open_cuda(tensorrt_version: Tuple[int, ...]) -> Cuda:
    """Return the CUDA runtime of this machine, that of the JetPack which has this TensorRT. Raise MerinoError if there
    is none, no driver or no GPU."""
    names = ("libcudart.so.10.2" if tensorrt_version < (10,) else "libcudart.so.12", "libcudart.so")
    library = open_library([folder + name for name in names for folder in ("", "/usr/local/cuda/lib64/")])
    if library is None:
        raise MerinoError("TensorRT is installed and the CUDA runtime (libcudart.so) is not. Run: sudo apt-get install "
                          "nvidia-jetpack. Or run on the CPU: MERINO_BACKEND=onnxruntime.")
    with raising_cuda_faults("starting CUDA"):
        cuda = Cuda(library)
        if not cuda.integer("cudaDriverGetVersion"):  # no driver is installed
            raise CudaError("cudaDriverGetVersion", INSUFFICIENT_DRIVER)
        cuda.integer("cudaGetDevice")
        cuda.mem_get_info()  # makes the context: what the driver rejects, it rejects here
    return cuda


def device_of(cuda: Cuda) -> Device:
    """Return the GPU in use. Raise CudaError."""
    number = cuda.integer("cudaGetDevice")
    major, minor, integrated = (cuda.integer("cudaDeviceGetAttribute", attribute, number)
                                for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR, INTEGRATED))
    return Device(_name_of(number), f"{major}.{minor}", bool(integrated))


def _name_of(number: int) -> str:
    """Return the GPU's name from the driver, because the runtime has no function for the name alone; `unknown GPU` if
    there is none."""
    library = open_library(["libcuda.so.1", "libcuda.so"])
    if library is None:
        return "unknown GPU"
    start, get, name_of = (c_function(library, name, types, c_int) for name, types in DRIVER_SIGNATURES.items())
    handle, name = c_int(), ctypes.create_string_buffer(256)
    if start(0) or get(ctypes.byref(handle), number) or name_of(name, len(name), handle.value):
        return "unknown GPU"
    return name.value.decode("utf-8", "replace")
