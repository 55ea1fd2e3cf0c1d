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
the real ones' signatures: tests/targets/test_tensorrt_bindings.py.
"""
import os

from tests.tensorrt_stand_in.cuda_runtime import driver_library, runtime_library
from tests.tensorrt_stand_in.gpu import Gpu, Speeds
from tests.tensorrt_stand_in.module import tensorrt_module

VERSIONS = ("8.2.1.8", "10.3.0")
RUNTIMES = {"8.2.1.8": 10020, "10.3.0": 12060}  # of CUDA, as JetPack pairs them


ON_PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "on_path")  # for processes: see `on_path/tensorrt`


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


def put_in(gpu, version, monkeypatch):
    """Makes `import tensorrt` and the backend's libcudart those of the stand-in."""
    import sys

    from merino_runtime.backends import cuda as opener

    gpu.runtime = RUNTIMES.get(version, 12060)
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_module(gpu, version))
    monkeypatch.setattr(opener, "open_library", open_library_of(gpu))


__all__ = ["Gpu", "ON_PATH", "RUNTIMES", "Speeds", "VERSIONS", "open_library_of", "put_in", "tensorrt_module"]
