"""Checks whether a bundle can run on this machine, what will make it slow, and how much memory it needs. Finds the
library of this project's operators for ONNX Runtime (runtime/kernels), a part of this package.

A bundle names the operators that its graph uses, and the library of this release computes them: no native code is ever
loaded from a bundle. Standard library only: all of this runs before numpy or a backend is imported.
"""
import contextlib
import os
import pkgutil
from functools import lru_cache
from typing import Iterator, List, Optional

from merino_runtime import __version__
from merino_runtime.bundle import Bundle, without_kernels
from merino_runtime.errors import MerinoError
from merino_runtime.io import board
from merino_runtime.io.json_shape import listed
from merino_runtime.io.memory import is_out_of_memory, memory_figures

MACHINES = ("aarch64", "x86_64")  # as `platform.machine()` names them
OPERATORS = frozenset(("MatMul4", "MatMul5", "MatMul6", "MatMul8", "Rows4", "Rows5", "Rows6", "Rows8",
                       "GroupAttention", "GroupAttention8", "Taps"))
NATIVE = "native"  # a folder: beside modules a library would be taken for one
MFD_CLOEXEC = 1


def check_bundle_fits(bundle: Bundle, here: Optional[board.Board] = None, sessions: int = 1,
                      backend: str = "onnxruntime") -> List[str]:
    """Raise MerinoError if the bundle cannot run on this machine. Return notes on what will make it slow.

    sessions: of the backend; each of them holds the weights. What a GPU can compute, TensorRT checks when it builds
    the engine.
    """
    here = here or board.this_board()
    if here.pointer_bits != 64:
        raise MerinoError(
            f"this Python is {here.pointer_bits}-bit (kernel: {here.architecture}): numpy and onnxruntime "
            "are published for 64-bit userlands only. Install the 64-bit image of the system (Raspberry Pi "
            "OS 64-bit) and its Python, then run again.")
    notes = []
    on_gpu = backend == "tensorrt"
    need_mb = memory_need_mb(bundle, sessions, backend)
    if here.memory_total_mb is not None and need_mb > here.memory_total_mb:
        raise MerinoError(
            f"{bundle.name!r} needs {need_mb:.0f} MB for weights, KV cache and the process"
            f"{' with CUDA' if on_gpu else ''}, this machine has "
            f"{here.memory_total_mb:.0f} MB in all. Export with a shorter --context or a smaller "
            "--precision, or design for this board.")
    if here.memory_available_mb is not None and need_mb > here.memory_available_mb:
        notes.append(f"needs {need_mb:.0f} MB and {here.memory_available_mb:.0f} MB are available: it may "
                     "swap; stop other programs first")
    if on_gpu:
        return notes
    if bundle.precision == "fp16":
        notes.append("float16 weights are for GPUs: a CPU computes them in float32, no faster than --precision fp32")
    _check_overflow(bundle, here)
    _check_kernels(bundle, here)
    return notes


def memory_need_mb(bundle: Bundle, sessions: int = 1, backend: str = "onnxruntime") -> float:
    """Return the resident MB without activations: the weights, once per session of the CPU's backend, the KV cache and
    the process. With TensorRT the engine holds the weights once, and a Jetson's CPU shares its memory with CUDA."""
    if backend == "tensorrt":
        return (bundle.weight_bytes + bundle.kv_bytes) / board.MB + board.PROCESS_MB + board.CUDA_MB
    return (sessions * bundle.weight_bytes + bundle.kv_bytes) / board.MB + board.PROCESS_MB


def _check_overflow(bundle: Bundle, here: board.Board) -> None:
    """Raise MerinoError if 8-bit matrix multiplications would overflow the 16 bits in which the CPU adds up."""
    by_rows = bundle.dialect == "portable" and bundle.precision in ("int8", "int4")
    if by_rows and here.architecture in board.X86_MACHINES and not here.isa & board.VNNI:
        raise MerinoError("this CPU has neither avx512_vnni nor avx_vnni: without them matrix multiplications by int8 "
                          "weights with one scale per row overflow 16 bits, and the results are wrong. "
                          f"Export {bundle.name!r} again with --precision fp32, or with --dialect fused.")


def _check_kernels(bundle: Bundle, here: board.Board) -> None:
    """Raise MerinoError if this release's library does not compute the bundle's operators, or not on this machine."""
    if not bundle.kernels:
        return
    remedy = f"Export {bundle.name!r} again with {without_kernels(bundle)}, or pack that beside it"
    missing = board.KERNELS_NEED - here.isa if here.architecture in board.X86_MACHINES else ()
    unknown = unknown_operators(bundle)
    if unknown:
        raise MerinoError(f"its graph needs a newer library of kernels: that of merino-runtime {__version__} lacks "
                          f"{listed(unknown)}. Update merino-runtime or merino.pyz. Or: {remedy}.")
    if here.architecture not in MACHINES:
        raise MerinoError(f"its graph needs kernels that are built for {', '.join(MACHINES)}, this is "
                          f"{here.architecture}. {remedy}.")
    if missing:
        raise MerinoError(f"its graph needs kernels that use {', '.join(sorted(missing))}, which this CPU lacks. "
                          f"{remedy}.")


def needs_text(bundle: Bundle) -> str:
    """Return the CPUs that run the bundle, for people."""
    if not bundle.kernels:
        return "no special instructions"
    return f"64-bit Arm, or x86-64 with {', '.join(sorted(board.KERNELS_NEED))}"


@contextlib.contextmanager
def reporting_memory(bundle: Bundle, doing: str, sessions: int = 1) -> Iterator[None]:
    """Raise a MerinoError with what the bundle needs if memory runs out in the body. doing: as in "a decode step"."""
    try:
        yield
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        if not is_out_of_memory(error):
            raise
        parts = (f"{sessions} x " if sessions > 1 else "") + f"{bundle.weight_bytes / board.MB:.0f} MB of weights"
        parts += f", {bundle.kv_bytes / board.MB:.0f} MB of KV cache"
        parts += f", about {board.PROCESS_MB} MB for Python and libraries"
        equal = "use one thread count for prefill and decode, " if sessions > 1 else ""
        raise MerinoError(
            f"out of memory in {doing}: bundle {bundle.name!r} needs {memory_need_mb(bundle, sessions):.0f} MB "
            f"({parts}) and memory for activations{memory_figures()}. Stop other programs, {equal}shorten the prompt, "
            "or export with a shorter --context or a smaller --precision.") from error


def unknown_operators(bundle: Bundle) -> List[str]:
    """Return the operators of the bundle's graph that this library lacks: a later release has them."""
    return sorted(set(bundle.kernels) - OPERATORS)


def library_file(machine: str) -> str:
    return f"kernels-{machine}.so"


@lru_cache(maxsize=None)
def library_path(machine: str) -> str:
    """Return a path to load the library from, valid in this process. Raise OSError if there is none.

    merino.pyz copies its library to an anonymous file in memory: no other user can change that file, no link can
    replace it, and no file system that was mounted noexec holds it.
    """
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), NATIVE, library_file(machine))
    if os.path.isfile(path):
        return path
    content = pkgutil.get_data(__name__.rpartition(".")[0], f"{NATIVE}/{library_file(machine)}")
    create = board.libc_function("memfd_create")  # os.memfd_create is younger than Python 3.6
    handle = create(library_file(machine).encode("ascii"), MFD_CLOEXEC) if create else -1
    if content is None or handle < 0:
        raise OSError("this system has no memfd_create, by which merino.pyz loads a library: install merino-runtime "
                      "with pip, which writes it as a file")
    with open(handle, "wb", closefd=False) as file:  # it stays open: the path ends with it
        file.write(content)
    return f"/proc/self/fd/{handle}"
