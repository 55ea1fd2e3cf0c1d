"""Reads a board's root file system, in a folder or in a disk image, and checks that it can take a package: userland,
Python, C library, systemd. No program of it is run.

Paths start at the board's `/`, and links are resolved as on the board, so no link leads out of the folder."""

import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from merino_runtime.bundle.requirements import version_tuple
from merino_runtime.delivery.fit import Machine, fitting_wheels
from merino_runtime.delivery.manifest import Manifest
from merino_runtime.errors import MerinoError
from merino_runtime.io.board import Board
from merino_runtime.io.lock import raising_machine_faults

MOST_LINKS = 40  # as Linux


class Entry(NamedTuple):
    """An entry of a folder: `st_mode` with the bits of its type, owner, size."""

    mode: int
    uid: int
    gid: int
    size_bytes: int


class RootTree(Protocol):
    """Reads a root file system. In all paths, links of folders have been followed; a last link is not followed."""

    name: str  # what a message calls it

    def entry(self, path: str) -> Entry | None:
        """Return the entry; None if there is none."""

    def names(self, folder: str) -> list[str]: ...

    def link(self, path: str) -> str:
        """Return a link's target as it is written."""

    def read(self, path: str, most_bytes: int) -> bytes:
        """Return the beginning of a regular file."""


class Resolved(NamedTuple):
    path: str  # without links
    entry: Entry | None


def resolve(tree: RootTree, path: str) -> Resolved:
    """Follow every link of `path` as the board's kernel would. Missing parts are kept as they are written.

    Raise MerinoError if links form a cycle or lead to a missing path, as on a disk that is mounted at start, which
    would hide what is written there; and where a file stands in place of a folder.
    """
    waiting = [(part, "") for part in reversed(path.split("/"))]  # (part, the link that it is of)
    done: list[str] = []
    entry = tree.entry("/")
    links = 0
    while waiting:
        part, link = waiting.pop()
        if part in ("", "."):
            continue
        if part == "..":
            done = done[:-1]
            entry = tree.entry(joined(done))
            continue
        here = joined([*done, part])
        entry = tree.entry(here) if entry else None
        if entry and stat.S_ISLNK(entry.mode):
            links += 1
            if links > MOST_LINKS:
                raise MerinoError(f"{tree.name}: the links of {path} lead in a circle. Repair {here} in it.")
            target = tree.link(here)
            done = [] if target.startswith("/") else done
            entry = tree.entry(joined(done))
            waiting += [(part, here) for part in reversed(target.split("/"))]
            continue
        if entry is None and link:
            raise MerinoError(
                f"{tree.name}: {link} is a link to {tree.link(link)!r}, which is not there. Mount what belongs there, "
                "or remove the link."
            )
        if entry and waiting and not stat.S_ISDIR(entry.mode):
            raise MerinoError(f"{tree.name}: {here} is not a folder, and {path} would lie in it. Move it away.")
        done.append(part)
    return Resolved(joined(done), entry)


def joined(parts: list[str]) -> str:
    return "/" + "/".join(parts)


class FolderTree:
    """A root file system in a folder of this machine: a mounted card, or one that a build has staged."""

    def __init__(self, root: Path) -> None:
        self.name = str(root)
        self.root = root

    def here(self, path: str) -> Path:
        """Return the path on this machine."""
        return self.root / path.lstrip("/")

    def entry(self, path: str) -> Entry | None:
        with raising_machine_faults(f"read {self.here(path)}"), suppress(FileNotFoundError, NotADirectoryError):
            status = os.lstat(self.here(path))
            return Entry(status.st_mode, status.st_uid, status.st_gid, status.st_size)
        return None

    def names(self, folder: str) -> list[str]:
        with raising_machine_faults(f"read {self.here(folder)}"):
            return sorted(os.listdir(self.here(folder)))

    def link(self, path: str) -> str:
        return os.readlink(self.here(path))

    def read(self, path: str, most_bytes: int) -> bytes:
        with raising_machine_faults(f"read {self.here(path)}"), open(self.here(path), "rb") as file:
            return file.read(most_bytes)

    def free_bytes(self) -> int:
        fs = os.statvfs(self.root)
        return fs.f_bavail * fs.f_frsize


OLDEST_PYTHON = (3, 6, 0)
ELF_MACHINES = {62: "x86_64", 183: "aarch64"}  # e_machine of elf(5)
OS_RELEASE = ("/etc/os-release", "/usr/lib/os-release")  # os-release(5)
SYSTEMD = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
PYTHON = "/usr/bin/python3"
LARGEST_READ_BYTES = 64 * 2**20


class RootFacts(NamedTuple):
    system: str  # as os-release calls it
    architecture: str  # of the userland
    python: str  # as `3.11`
    glibc: str  # as `2.36`; empty if there is another C library


def is_root(tree: RootTree) -> bool:
    return _os_release(tree) is not None


def root_facts(tree: RootTree) -> RootFacts:
    """Raise MerinoError if this is no root file system, or none on which the board's side runs."""
    release = _os_release(tree)
    if release is None:
        raise MerinoError(
            f"{tree.name} is not a root file system: it has no etc/os-release. Name the folder that holds the board's "
            "etc, usr and opt, where it is mounted or built."
        )
    if not any(_file(tree, path) for path in SYSTEMD):
        raise MerinoError(
            f"{tree.name} has no systemd, so that nothing would be installed at its first start. Install NAME.merino "
            "on the running board: flash --ssh HOST"
        )
    system = re.search(r'^PRETTY_NAME="?([^"\n]*)', release, re.MULTILINE)
    path = _file(tree, PYTHON)
    if path is None:
        raise MerinoError(f"{tree.name} has no {PYTHON}. Install the package python3 in it.")
    name, architecture = system.group(1) if system else "Linux", _architecture(tree, path)
    return RootFacts(name, architecture, _python(tree, path), _glibc(tree, architecture))


def check_fits(tree: RootTree, facts: RootFacts, manifest: Manifest) -> list[str]:
    """Raise MerinoError if the packages in the file are for another system. Returns notes.

    The model, CPU and memory are checked on the board, before anything is installed.
    """
    board = Board(
        facts.architecture, pointer_bits=64, logical_cores=1, physical_cores=1, isa=frozenset(), memory_total_mb=None,
        memory_available_mb=None,
    )  # fmt: skip
    machine = Machine(board, "", facts.python, facts.glibc, free_bytes=0)
    try:
        wheels = fitting_wheels(manifest, machine)
    except MerinoError as error:
        raise MerinoError(f"{tree.name}: {error}") from error
    return [] if wheels else ["the file holds no packages: numpy, tokenizers and onnxruntime must be in the system"]


def _os_release(tree: RootTree) -> str | None:
    for path in OS_RELEASE:
        file = _file(tree, path)
        if file:
            return tree.read(file, LARGEST_READ_BYTES).decode("utf-8", errors="replace")
    return None


def _file(tree: RootTree, path: str) -> str | None:
    """Return the path of the regular file to which a path leads; None if there is none."""
    try:
        resolved = resolve(tree, path)
    except MerinoError:  # a link that leads nowhere
        return None
    return resolved.path if resolved.entry and stat.S_ISREG(resolved.entry.mode) else None


def _architecture(tree: RootTree, path: str) -> str:
    header = tree.read(path, 20)
    machine = int.from_bytes(header[18:20], "little")
    if len(header) < 20 or header[:4] != b"\x7fELF":
        raise MerinoError(f"{tree.name}: {path} is not a program of Linux. Install the package python3 in it again.")
    if header[4] != 2:
        raise MerinoError(
            f"{tree.name} is a 32-bit system: numpy and onnxruntime are published for 64-bit ones only. Take the "
            "64-bit image of the system."
        )
    if machine not in ELF_MACHINES:
        raise MerinoError(
            f"{tree.name} is for a CPU of ELF machine {machine}; allowed are {', '.join(ELF_MACHINES.values())}. Take "
            "the system's image for 64-bit Arm."
        )
    return ELF_MACHINES[machine]


def _python(tree: RootTree, path: str) -> str:
    """Return Python's version, from the program's name, to which python3 links, or from the folder of its library."""
    names = [path, *(name for name in tree.names("/usr/lib") if "." not in path)]
    versions = [match.group(1) for name in names if (match := re.search(r"(?:^|/)python(3\.\d+)$", name))]
    if not versions:
        raise MerinoError(f"{tree.name}: the version of {path} is not known. Make {PYTHON} a link to python3.N.")
    python = max(versions, key=version_tuple)
    if version_tuple(python) < OLDEST_PYTHON:
        raise MerinoError(f"{tree.name} has Python {python}; the oldest allowed is 3.6. Take a newer system.")
    return python


def _glibc(tree: RootTree, architecture: str) -> str:
    """Return glibc's version from the library's version text: file names have no version since 2.34."""
    for folder in (f"/lib/{architecture}-linux-gnu", f"/usr/lib/{architecture}-linux-gnu", "/lib64", "/lib"):
        path = _file(tree, f"{folder}/libc.so.6")
        match = path and re.search(
            rb"GNU C Library [^\n\0]{0,200}version (\d+\.\d+)", tree.read(path, LARGEST_READ_BYTES)
        )
        if match:
            return match.group(1).decode()
    return ""
