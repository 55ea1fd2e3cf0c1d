"""Facts of a machine that decide which parts of a packed file it uses: those of `board`, its model, Python, C library.

The workstation requests them from a board over ssh, as JSON, and checks the reply strictly: any program may send it.
Standard library only, and nothing is imported that the board may lack.
"""
import os
import shutil
import sys
from typing import Any, Dict, NamedTuple

from merino_runtime.errors import MerinoError
from merino_runtime.io import board
from merino_runtime.io.json_shape import count, integer, listed, or_null, problems_in, size, text

SCHEMA = 1
LARGEST_MB = 2 ** 30  # of memory


class Machine(NamedTuple):
    board: board.Board
    model: str  # of the device tree; empty if there is none, as on a PC
    python: str  # "3.11"
    glibc: str  # "2.36"; empty for another C library
    free_bytes: int  # on the disk of the folder that was named


def this_machine(folder: str) -> Machine:
    """Return the facts of this machine. folder: where something will be installed; it need not exist yet."""
    while folder and not os.path.isdir(folder):
        folder = os.path.dirname(folder.rstrip(os.sep))
    return Machine(
        board=board.this_board(), model=board.read_text("/proc/device-tree/model").rstrip("\0\n"),
        python="{}.{}".format(*sys.version_info[:2]), glibc=glibc_version(),
        free_bytes=shutil.disk_usage(folder or os.curdir).free)


def glibc_version() -> str:
    """Return the version of glibc; empty for another C library. `platform.libc_ver` of Python 3.6 returns the version
    that Python was built for."""
    try:
        library, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (AttributeError, OSError, ValueError):  # Windows; another C library
        return ""
    return version if library == "glibc" else ""


def _short(value: Any) -> Any:
    return None if value == "" else text(value)


def _megabytes(value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return None if number and 0 <= value <= LARGEST_MB else f"a number, 0 to {LARGEST_MB}"


SHAPE: Dict[str, Any] = {
    "schema": integer(SCHEMA, SCHEMA),
    "board": {"architecture": text, "pointer_bits": integer(16, 128), "logical_cores": size, "physical_cores": size,
              "isa": [text], "memory_total_mb": or_null(_megabytes), "memory_available_mb": or_null(_megabytes)},
    "model": _short, "python": text, "glibc": _short, "free_bytes": count,
}


def machine_values(machine: Machine) -> Dict[str, Any]:
    """Return the value of the machine in JSON."""
    return dict(machine._asdict(), schema=SCHEMA, board=dict(machine.board._asdict(), isa=sorted(machine.board.isa)))


def machine_of(values: Any, where: str) -> Machine:
    """Return the machine that `machine_values` describes. Raise MerinoError with every fault. where: for messages."""
    problems = problems_in(values, SHAPE)
    if problems:
        raise MerinoError(f"{where} does not describe a machine: {listed(problems)}. Install by one version on both "
                          "sides.")
    facts = dict(values["board"], isa=frozenset(values["board"]["isa"]))
    return Machine(board.Board(**facts), *(values[name] for name in Machine._fields[1:]))
