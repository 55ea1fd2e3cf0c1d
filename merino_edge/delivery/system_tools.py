"""Programs of the system that read and write disk images: their paths, their output and their errors."""

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from merino_edge.storage.faults import shortened
from merino_runtime.errors import MerinoError
from merino_runtime.io.visible import visible_text

DEBIAN_PACKAGES = {"debugfs": "e2fsprogs", "e2fsck": "e2fsprogs", "sfdisk": "fdisk"}
SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # not in the PATH of Debian's users
READ_AT_ONCE = 1 << 20
LONGEST_COMPLAINT = 500  # characters of a program's stderr that a message repeats


class Ran(NamedTuple):
    code: int  # negative: ended by that signal
    out: str
    err: str  # without e2fsprogs' line of its version


def check_tools(names: Iterable[str]) -> None:
    """Raises MerinoError that names every program that is not here, and Debian's packages of them."""
    missing = sorted(name for name in names if _path(name) is None)
    if missing:
        packages = " ".join(sorted({DEBIAN_PACKAGES[name] for name in missing}))
        raise MerinoError(
            f"an image is changed by {' and '.join(missing)}, not installed here. Install it (Debian: apt-get install "
            f"{packages}), or write into a mounted root file system: --rootfs DIR"
        )


def run_tool(name: str, arguments: Sequence[str], folder: Path, stdin: str = "") -> Ran:
    """Runs a program of DEBIAN_PACKAGES in `folder` to its end. Its output is kept in memory: for short ones."""
    done = subprocess.run(
        [_checked(name), *arguments], input=stdin.encode(), capture_output=True, cwd=folder, env=_environment(),
        check=False,
    )  # fmt: skip
    return Ran(done.returncode, _text(done.stdout), _errors(name, done.stderr))


def tool_output(name: str, arguments: Sequence[str], folder: Path) -> Iterator[bytes]:
    """The standard output of a program, in pieces. Raises MerinoError at its end where it complained."""
    with subprocess.Popen(
        [_checked(name), *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd=folder, env=_environment(),
    ) as process:  # fmt: skip
        assert process.stdout and process.stderr
        while piece := process.stdout.read(READ_AT_ONCE):
            yield piece
        errors = _errors(name, process.stderr.read())
    if process.returncode or errors:
        raise MerinoError(
            f"{name} cannot read the image: {complaint(errors, process.returncode)}. Check its file system"
        )


def complaint(errors: str, code: int) -> str:
    """A program's errors in one line; its exit status where it printed none."""
    return shortened("; ".join(errors.split("\n")), LONGEST_COMPLAINT) if errors else f"exit status {code}"


def _checked(name: str) -> str:
    path = _path(name)
    assert path is not None, f"check_tools comes before {name}"
    return path


def _path(name: str) -> str | None:
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *SYSTEM_FOLDERS))
    return shutil.which(name, path=path)


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C", "DEBUGFS_PAGER": "__none__"}


def _errors(name: str, data: bytes) -> str:
    lines = (" ".join(line.split()) for line in _text(data).splitlines())
    return "\n".join(line for line in lines if line and not line.startswith(f"{name} 1."))


def _text(data: bytes) -> str:
    """Bytes that are no UTF-8, and control characters that could steer a terminal, are shown escaped."""
    return visible_text(data.decode("utf-8", errors="backslashreplace"))
