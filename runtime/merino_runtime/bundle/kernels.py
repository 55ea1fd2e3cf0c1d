"""The library of this project's operators for ONNX Runtime (runtime/kernels), a part of this package.

A bundle names the operators that its graph uses, and the library of this release computes them: no native code is ever
loaded from a bundle. `make kernels` builds the library; a test builds it again and compares the bytes.
"""
import os
import pkgutil
from functools import lru_cache
from typing import List

from merino_runtime.bundle import Bundle
from merino_runtime.io.board import libc_function

MACHINES = ("aarch64", "x86_64")  # as `platform.machine()` names them
OPERATORS = frozenset(("MatMul4", "MatMul5", "MatMul6", "MatMul8", "Rows4", "Rows5", "Rows6", "Rows8",
                       "GroupAttention", "GroupAttention8"))
NATIVE = "native"  # a folder: beside modules a library would be taken for one
MFD_CLOEXEC = 1


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
    create = libc_function("memfd_create")  # os.memfd_create is younger than Python 3.6
    handle = create(library_file(machine).encode("ascii"), MFD_CLOEXEC) if create else -1
    if content is None or handle < 0:
        raise OSError("this system has no memfd_create, by which merino.pyz loads a library: install merino-runtime "
                      "with pip, which writes it as a file")
    with open(handle, "wb", closefd=False) as file:  # it stays open: the path ends with it
        file.write(content)
    return f"/proc/self/fd/{handle}"
