"""The same functions through NVIDIA's package cuda-python, where it is installed: it brings a CUDA runtime of its own.

Its functions take no pointers for results: they return tuples, a status first.
"""
import importlib
import importlib.util
from typing import Any, Tuple

from merino_runtime.backends.cuda import Cuda, CudaError

MODULES = ("cuda.bindings.runtime", "cuda.cudart")  # from 12.6 on; before
# Arguments that are members of an enumeration there: by the function, their index and the enumeration.
ENUMERATIONS = {"cudaMemcpyAsync": (3, "cudaMemcpyKind"), "cudaMemcpy2DAsync": (6, "cudaMemcpyKind"),
                "cudaDeviceGetAttribute": (0, "cudaDeviceAttr"), "cudaStreamBeginCapture": (1, "cudaStreamCaptureMode")}


class CudaPython(Cuda):
    def __init__(self, module: Any) -> None:
        self._module = module
        self.runtime = self._integer("cudaRuntimeGetVersion")

    def _results(self, name: str, *arguments: Any) -> Tuple[Any, ...]:
        given = list(arguments)
        if name in ENUMERATIONS:
            index, enumeration = ENUMERATIONS[name]
            given[index] = getattr(self._module, enumeration)(given[index])
        status, *results = getattr(self._module, name)(*given)
        if int(status):
            self._module.cudaGetLastError()
            raise CudaError(name, int(status), getattr(status, "name", ""))
        return tuple(results)

    def _call(self, name: str, *arguments: Any) -> None:
        self._results(name, *arguments)

    def _integer(self, name: str, *arguments: Any) -> int:
        return int(self._results(name, *arguments)[0])

    _address = _integer  # of memory a number, of a stream or graph an object that is one

    def mem_get_info(self) -> Tuple[int, int]:
        free, total = self._results("cudaMemGetInfo")
        return int(free), int(total)

    def end_capture(self, stream: int) -> int:
        return self._integer("cudaStreamEndCapture", stream)

    def instantiate(self, graph: int) -> int:
        rest = (0,) if self.runtime >= 12000 else (b"", 0)
        return self._integer("cudaGraphInstantiate", graph, *rest)


def installed_module() -> Any:
    """cuda-python's module of the runtime; None where it is not installed, or does not load."""
    for name in MODULES:
        try:
            return importlib.import_module(name)
        except Exception:  # it is optional: whatever it lacks, libcudart serves
            continue
    return None
