"""Finds the CUDA runtime of this machine, and reads which GPU it has.

Attributes are read one by one, because the layout of cudaDeviceProp differs between versions.
"""
import contextlib
import ctypes
import glob
import os
import sys
from ctypes import POINTER, c_char_p, c_int, c_uint
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from merino_runtime.backends.cuda import INSUFFICIENT_DRIVER, Cuda, CudaError, c_function, raising_cuda_faults
from merino_runtime.errors import MerinoError

CAPABILITY_MAJOR, CAPABILITY_MINOR, INTEGRATED = 75, 76, 18  # cudaDeviceAttr
DRIVER_SIGNATURES: Dict[str, List[Any]] = {
    "cuInit": [c_uint], "cuDeviceGet": [POINTER(c_int), c_int], "cuDeviceGetName": [c_char_p, c_int, c_int]}


class Device(NamedTuple):
    name: str
    capability: str  # "5.3"
    integrated: bool  # it shares its memory with the CPU, as on every Jetson
    runtime: int  # version of the CUDA runtime: 10020 is 10.2


def open_library(names: Sequence[str]) -> Optional[Any]:
    """Return the first of the shared libraries that can be loaded; None if none can."""
    for name in names:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    return None


def library_names(tensorrt_version: Tuple[int, ...]) -> List[str]:
    """Return the possible names of libcudart. That of the CUDA version that TensorRT was built for is first, because
    both share the process."""
    versions = ["10.2"] if tensorrt_version < (10,) else ["12", "13"]
    folders = ["", "/usr/local/cuda/lib64/"]
    names = [f"{folder}libcudart.so.{version}" for version in versions for folder in folders]
    names += [f"{folder}libcudart.so" for folder in folders]
    for folder in sys.path:  # of pip's packages
        names += sorted(glob.glob(os.path.join(glob.escape(folder), "nvidia", "cuda_runtime", "lib", "libcudart.so.*")))
    return names


def open_cuda(tensorrt_version: Tuple[int, ...]) -> Cuda:
    """Return the CUDA runtime of this machine. Raise MerinoError if there is none, no driver or no GPU."""
    library = open_library(library_names(tensorrt_version))
    if library is None:
        raise MerinoError("TensorRT is installed and the CUDA runtime (libcudart.so) is not. On a Jetson: sudo "
                          "apt-get install nvidia-jetpack. Elsewhere: python3 -m pip install nvidia-cuda-runtime-cu12. "
                          "Or run on the CPU: --backend onnxruntime.")
    with raising_cuda_faults("starting CUDA"):
        cuda = Cuda(library)
        if not cuda.driver_version():
            raise CudaError("cudaDriverGetVersion", INSUFFICIENT_DRIVER)
        cuda.get_device()
        cuda.mem_get_info()  # makes the context: what the driver rejects, it rejects here
    return cuda


def device_of(cuda: Cuda) -> Device:
    """Return the GPU in use. Raise CudaError."""
    number = cuda.get_device()
    major, minor, integrated = (cuda.attribute(attribute, number)
                                for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR, INTEGRATED))
    return Device(_name_of(number), f"{major}.{minor}", bool(integrated), cuda.runtime)


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
