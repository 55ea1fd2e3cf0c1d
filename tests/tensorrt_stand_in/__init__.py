"""A stand-in for an NVIDIA GPU, for tests: no GPU, no driver and no code of NVIDIA's.

It has the parts of libcudart and of the Python module `tensorrt` that the backend uses, for 8.2 and for 10.3 alike.
Device memory is numpy's, behind addresses that cannot be dereferenced; an "engine" is the same ONNX graph run by ONNX
Runtime. It is strict about what the real ones are strict about, and about what they leave undefined:

* work on a stream takes effect when the stream is synchronized; until then what it will write holds garbage;
* asynchronous copies take pinned host memory only, and nothing runs on the default stream;
* an input may not overlap an output; addresses are aligned, live and large enough; new memory holds NaN;
* shapes lie within the bounds of the optimization profile, every address is set, a profile of 8.2 has one context;
* a capture holds nothing that a capture cannot, and comes after a run of the same shape.

What the real ones would crash at, or answer with garbage, is collected in `Gpu.violations`; a test asserts that there
are none. Speeds, numerics of GPU kernels and what TensorRT's parser takes are not shown by it. That its methods have
the real ones' signatures: tests/targets/test_tensorrt_builder.py.
"""
import enum
import gc
import os
import sys
import types

from tests.tensorrt_stand_in.building import building_classes
from tests.tensorrt_stand_in.cuda_runtime import driver_library, runtime_library
from tests.tensorrt_stand_in.gpu import Gpu, Speeds
from tests.tensorrt_stand_in.running import running_classes

VERSIONS = ("8.2.1.8", "10.3.0")
RUNTIMES = {"8.2.1.8": 10020, "10.3.0": 12060}  # of CUDA, as JetPack pairs them
ON_PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "on_path")  # for processes: see `on_path/tensorrt`
LAYER_TYPES = ("CONVOLUTION", "ACTIVATION", "SOFTMAX", "CONCATENATION", "ELEMENTWISE", "UNARY", "SHUFFLE", "REDUCE",
               "MATRIX_MULTIPLY", "CONSTANT", "IDENTITY", "SLICE", "GATHER", "SELECT")


def open_library_of(gpu):
    """In place of `merino_runtime.backends.cuda.open_library`."""
    libraries = {"libcudart": runtime_library(gpu), "libcuda.": driver_library(gpu)}

    def open_library(names):
        for name in names:
            for known, library in libraries.items():
                if name.rsplit("/", 1)[-1].startswith(known):
                    return library
        return None

    return open_library


def tensorrt_module(gpu, version):
    """A module object; several may stand beside each other."""
    old = version.startswith("8.")
    module = types.ModuleType("tensorrt")
    module.__version__ = version
    module.Severity = enum.IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)
    module.DataType = enum.Enum("DataType", "FLOAT HALF INT8 INT32 BOOL" + ("" if old else " INT64"))
    module.float32, module.float16 = module.DataType.FLOAT, module.DataType.HALF
    module.BuilderFlag = enum.Enum("BuilderFlag", "FP16 INT8 TF32 OBEY_PRECISION_CONSTRAINTS")
    module.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH", start=0)
    module.LayerType = enum.Enum("LayerType", LAYER_TYPES)
    module.ElementWiseOperation = enum.Enum("ElementWiseOperation", "SUM PROD SUB DIV POW EQUAL GREATER LESS")
    if not old:
        module.TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
        module.MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE DLA_MANAGED_SRAM")
    module.ILogger = type("ILogger", (ILogger,), {severity.name: severity for severity in module.Severity})
    for result in (*building_classes(gpu, module, old), *running_classes(gpu, module, old)):
        setattr(module, result.__name__, result)
    return module


class ILogger:
    """To derive from. The real one ends the process where a derived class does not call `__init__`."""

    def __init__(self):
        self.initialized = True

    def log(self, severity, msg):
        raise NotImplementedError


def put_in(gpu, version, monkeypatch):
    """Makes `import tensorrt` and the backend's libcudart those of the stand-in."""
    from merino_runtime.backends import cuda as opener

    if hasattr(gc, "freeze"):  # not in Python 3.6
        gc.freeze()  # what a test leaves is searched at its end: all that was there before takes 0.3 s
    gpu.runtime = RUNTIMES.get(version, 12060)
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_module(gpu, version))
    monkeypatch.setattr(opener, "open_library", open_library_of(gpu))


__all__ = ["Gpu", "Speeds", "VERSIONS", "RUNTIMES", "ON_PATH", "open_library_of", "put_in", "tensorrt_module"]
