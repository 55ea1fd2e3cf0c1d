"""Which backend runs a bundle on this machine: the requested one, else TensorRT on a Jetson, else the first
that the bundle lists. Nothing that a board may lack is imported, but TensorRT on a Jetson that has it.
"""
import importlib.util
import os
import re
from typing import Callable, Optional

from merino_runtime.bundle import Bundle, backends_text, need_of
from merino_runtime.bundle.requirements import require
from merino_runtime.errors import MerinoError
from merino_runtime.io import board

ONNXRUNTIME, TENSORRT = BACKENDS = ("onnxruntime", "tensorrt")
BACKEND_VARIABLE = "MERINO_BACKEND"  # of the environment, where the command line names none
Say = Callable[[str], None]


def choose_backend(bundle: Bundle, requested: Optional[str] = None, say: Say = lambda _: None) -> str:
    """The name of a backend. Raises MerinoError where the requested one does not run this bundle, or none does.

    say: gets a note where the machine decides.
    """
    requested = _checked(requested)
    if requested:
        if need_of(bundle, requested) is None:
            raise MerinoError(f"bundle {bundle.name!r} ({bundle.dialect}, {bundle.precision}) does not run on "
                              f"{requested}: it needs {backends_text(bundle)}. For TensorRT export it with --dialect "
                              "portable, in --precision fp32 or fp16.")
        return requested
    known = [need.name for need in bundle.backends if need.name in BACKENDS]
    if not known:
        named = " or ".join(repr(need.name) for need in bundle.backends)
        raise MerinoError(f"bundle {bundle.name!r} needs the backend {named}, this runtime has "
                          f"{', '.join(BACKENDS)}. Use the merino.pyz of the bundle's folder, or export it again.")
    if TENSORRT in known and known[0] != TENSORRT and is_jetson() and is_installed(TENSORRT):
        return _of_jetson(known[0], say)
    return known[0]


def backend_of_machine(requested: Optional[str] = None, say: Say = lambda _: None) -> str:
    """The backend to measure this machine with, where no bundle decides. MerinoError for one that is not known.

    say: gets a note where the machine decides.
    """
    requested = _checked(requested)
    if requested:
        return requested
    return _of_jetson(ONNXRUNTIME, say) if is_jetson() and is_installed(TENSORRT) else ONNXRUNTIME


def _checked(requested: Optional[str]) -> Optional[str]:
    name = requested or os.environ.get(BACKEND_VARIABLE) or None
    if name and name not in BACKENDS:
        raise MerinoError(f"the backend is {name!r}, allowed: {', '.join(BACKENDS)}.")
    return name


def _of_jetson(otherwise: str, say: Say) -> str:
    """TensorRT, unless it is of a version that this runtime cannot drive."""
    require("numpy")  # the package of the backends imports it
    from merino_runtime.backends.tensorrt_versions import open_tensorrt

    try:
        version = open_tensorrt().version
    except MerinoError as error:
        say(f"{error} {otherwise} is taken meanwhile")
        return otherwise
    say(f"TensorRT {version} is taken, since this is a Jetson that has it; --backend {otherwise} runs on the CPU")
    return TENSORRT


def is_jetson() -> bool:
    """By the model that the device tree names."""
    return re.search(r"\bjetson\b", board.read_text("/proc/device-tree/model"), re.IGNORECASE) is not None


def is_installed(backend: str) -> bool:
    """Whether Python would find it. Imports nothing."""
    try:
        return importlib.util.find_spec(backend) is not None
    except (ImportError, ValueError):  # a module without a spec, as one that was put there by hand
        return False
