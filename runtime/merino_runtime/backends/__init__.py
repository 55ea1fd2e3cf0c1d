"""Backends run the graph of a bundle, on ids and arrays. Text, sampling and timing are elsewhere.

The backend of a bundle is the requested one, otherwise TensorRT on a Jetson, otherwise the first that the bundle lists.
To choose it, nothing is imported that a board may lack, except TensorRT on a Jetson that has it.
"""
import importlib.util
import os
import re
from typing import TYPE_CHECKING, Callable, Optional

from merino_runtime.bundle import Bundle, backends_text, need_of
from merino_runtime.bundle.requirements import require
from merino_runtime.errors import MerinoError
from merino_runtime.io import board

if TYPE_CHECKING:
    from merino_runtime.backends.backend import Backend  # imports numpy

ONNXRUNTIME, TENSORRT = BACKENDS = ("onnxruntime", "tensorrt")
BACKEND_VARIABLE = "MERINO_BACKEND"  # in the environment, if the command line names no backend
Say = Callable[[str], None]


def open_backend(bundle: Bundle, threads: Optional[int] = None, prefill_threads: Optional[int] = None,
                 backend: Optional[str] = None, say: Callable[[str], None] = lambda _: None) -> "Backend":
    """Open a bundle.

    threads: of decode, and of prefill if prefill_threads is None; None: the bundle's choice, otherwise the machine's.
    backend: as in `choose_backend`. say: receives notes, such as that an engine is built. Raise MerinoError if the
    backend is not installed, its version is rejected, a thread count is not allowed, or the graph cannot be opened.
    """
    if choose_backend(bundle, backend, say) == TENSORRT:
        from merino_runtime.backends import tensorrt, tensorrt_model

        if threads or prefill_threads:
            say("thread counts are of the CPU; TensorRT computes on the GPU and ignores them")
        return tensorrt.TensorRtBackend(tensorrt_model.open_model(bundle, say))
    from merino_runtime.backends.onnx import OnnxBackend
    from merino_runtime.backends.onnx_session import open_model

    return OnnxBackend(open_model(bundle, threads, prefill_threads))


def choose_backend(bundle: Bundle, requested: Optional[str] = None, say: Say = lambda _: None) -> str:
    """Return the name of a backend. Raise MerinoError if the requested one does not run this bundle, or none does. say:
    receives a note if the machine decides."""
    requested = _checked(requested)
    if requested:
        if need_of(bundle, requested) is None:
            raise MerinoError(f"bundle {bundle.name!r} ({bundle.dialect}, {bundle.precision}) does not run on "
                              f"{requested}: it needs {backends_text(bundle)}. For TensorRT export it with --dialect "
                              "portable, in --precision fp32 or fp16.")
        return requested
    available = [need.name for need in bundle.backends if need.name in BACKENDS]
    if not available:
        named = " or ".join(repr(need.name) for need in bundle.backends)
        raise MerinoError(f"bundle {bundle.name!r} needs the backend {named}, this runtime has "
                          f"{', '.join(BACKENDS)}. Use the merino.pyz of the bundle's folder, or export it again.")
    if TENSORRT in available and available[0] != TENSORRT:
        return _of_jetson(available[0], say)
    return available[0]


def backend_of_machine(requested: Optional[str] = None, say: Say = lambda _: None) -> str:
    """Return the backend to measure this machine with, without a bundle. Raise MerinoError for an unknown one. say:
    receives a note if the machine decides."""
    return _checked(requested) or _of_jetson(ONNXRUNTIME, say)


def _checked(requested: Optional[str]) -> Optional[str]:
    name = requested or os.environ.get(BACKEND_VARIABLE) or None
    if name and name not in BACKENDS:
        raise MerinoError(f"the backend is {name!r}, allowed: {', '.join(BACKENDS)}.")
    return name


def _of_jetson(otherwise: str, say: Say) -> str:
    """Return TensorRT on a Jetson that has a version which this runtime can drive; elsewhere `otherwise`."""
    model = board.read_text("/proc/device-tree/model")
    if not re.search(r"\bjetson\b", model, re.IGNORECASE) or not is_installed(TENSORRT):
        return otherwise
    require("numpy")  # the package of the backends imports it
    from merino_runtime.backends.tensorrt_versions import open_tensorrt

    try:
        version = open_tensorrt().version
    except MerinoError as error:
        say(f"{error} Until then {otherwise} is used")
        return otherwise
    say(f"TensorRT {version} is used, on this Jetson that has it; {BACKEND_VARIABLE}={otherwise} runs on the CPU")
    return TENSORRT


def is_installed(backend: str) -> bool:
    """Return whether Python finds the backend. Import nothing."""
    try:
        return importlib.util.find_spec(backend) is not None
    except (ImportError, ValueError):  # a module without a spec, as one that was put there by hand
        return False
