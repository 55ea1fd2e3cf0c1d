"""A board's root file system that is not running: one in a folder here, or one in a disk image.

Paths are the board's, from its `/`, and links lead where they will lead on the board. So no link leads out of the
folder: `/etc/x` in a link means the board's.
"""

import os
import stat
from pathlib import Path
from typing import NamedTuple, Protocol

from merino_runtime.errors import MerinoError
from merino_runtime.io.machine_faults import machine_fault

MOST_LINKS = 40  # as Linux


class Entry(NamedTuple):
    """What stands at a path: `st_mode` with the bits of its type, owner, size."""

    mode: int
    uid: int
    gid: int
    size_bytes: int


class RootTree(Protocol):
    """Reads a root file system. In all paths, links of folders have been followed; a last link is not followed."""

    name: str  # what a message calls it

    def entry(self, path: str) -> Entry | None:
        """None where nothing stands there."""

    def names(self, folder: str) -> list[str]: ...

    def link(self, path: str) -> str:
        """Where a link leads, as it is written."""

    def read(self, path: str, most_bytes: int) -> bytes:
        """The beginning of a regular file."""

    def free_bytes(self) -> int:
        """What a file may take of it, the reserve of its administrator left alone."""


class Resolved(NamedTuple):
    path: str  # without links
    entry: Entry | None


def resolve(tree: RootTree, path: str) -> Resolved:
    """Follows every link of `path` as the board's kernel would. What is missing is kept as it is written.

    Raises MerinoError where links lead in a circle, or to something that is not there, as on a disk that is mounted at
    start: what is written there would be hidden. Also where a file stands in place of a folder.
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
            waiting += [(each, here) for each in reversed(target.split("/"))]
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
        """The path on this machine."""
        return self.root / path.lstrip("/")

    def entry(self, path: str) -> Entry | None:
        try:
            found = os.lstat(self.here(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise machine_fault(f"read {self.here(path)}", error) from error
        return Entry(found.st_mode, found.st_uid, found.st_gid, found.st_size)

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(self.here(folder)))
        except OSError as error:
            raise machine_fault(f"read {self.here(folder)}", error) from error

    def link(self, path: str) -> str:
        return os.readlink(self.here(path))

    def read(self, path: str, most_bytes: int) -> bytes:
        try:
            with open(self.here(path), "rb") as file:
                return file.read(most_bytes)
        except OSError as error:
            raise machine_fault(f"read {self.here(path)}", error) from error

    def free_bytes(self) -> int:
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize
