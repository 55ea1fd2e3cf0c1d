"""Instructions that a board's core executes per token: counted by a plugin of the emulator, built where a compiler is.

A count is repeatable to a per cent, which no time on a shared machine is, and it holds for the board: the same machine
code runs there. What it leaves out is how many cycles an instruction takes and how long memory does.
"""

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from emulated_board import BOARD_ROOT, PYTHON, SCRIPTS, SITE

QEMU = os.environ.get("MERINO_QEMU_PLUGINS") or shutil.which("qemu-aarch64")
RUNTIME = Path(__file__).parents[2] / "runtime"
TIMEOUT_S = 600


class Counted(NamedTuple):
    prefill: int  # of the whole prompt, into an empty cache
    decode: int  # of one step, the median


@functools.cache
def why_not() -> str:
    """Why nothing can be counted here; "" where it can."""
    if not (QEMU and PYTHON.exists()):
        return "no emulated board on this machine (make boards sets one up)"
    if not shutil.which("cc"):
        return "no C compiler to build the emulator's plugin with"
    tried = subprocess.run([QEMU, "-plugin", "help"], capture_output=True, text=True)
    if "unknown option" in tried.stderr:
        return f"{QEMU} was built without plugins (MERINO_QEMU_PLUGINS can name another)"
    return ""


@functools.cache
def plugin() -> Path:
    path = Path(tempfile.mkdtemp(prefix="merino-plugin-")) / "count.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", path, SCRIPTS / "count.c"], check=True)
    return path


def count(cpu: str, bundle: Path, prompt: int = 8, steps: int = 5) -> Counted:
    """Of the bundle on one emulated core."""
    counts = marks(cpu, [SCRIPTS / "counted.py", bundle, str(prompt), str(steps)])
    between = [after - before for before, after in zip(counts, counts[1:], strict=False)]
    return Counted(between[1], int(median(between[2:])))


def marks(
    cpu: str, call: Sequence[str | Path], root: Path = BOARD_ROOT, python: Path = PYTHON,
    paths: Sequence[str | Path] = (SITE, RUNTIME),
) -> list[int]:  # fmt: skip
    """Instructions executed until each getsid of a script on the emulated core's Python; `call`: it and its words."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counts"
        emulate(cpu, python_call(call, python, paths), f"out={out}", root)
        return [int(line) for line in out.read_text().split()]


def emulate(cpu: str, call: Sequence[str | Path], counted: str, root: Path) -> str:
    emulated = [QEMU, "-plugin", f"{plugin()},{counted}", "-L", root, "-cpu", cpu, *call]
    return subprocess.run(emulated, check=True, capture_output=True, text=True, timeout=TIMEOUT_S).stdout


def python_call(
    call: Sequence[str | Path], python: Path, paths: Sequence[str | Path]
) -> list[str | Path]:
    path = ":".join(map(str, paths))
    return ["-E", f"PYTHONPATH={path}", "-E", "PYTHONHASHSEED=0", "-E", "PYTHONNOUSERSITE=1", python, *call]
