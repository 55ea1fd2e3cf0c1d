"""The library of this project's own kernels (runtime/kernels), built for each kind of CPU and part of the package.

`make kernels` builds it; a test builds it again and compares the bytes.
"""

from pathlib import Path

MACHINES = ("aarch64", "x86_64")  # as `platform.machine()` names them


def library(machine: str) -> Path:
    return Path(__file__).parent / "native" / library_file(machine)  # beside modules it would be taken for one


def library_file(machine: str) -> str:
    return f"kernels-{machine}.so"
