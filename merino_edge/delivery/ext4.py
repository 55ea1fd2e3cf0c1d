"""Read and change an ext4 file system in a disk image with sfdisk and e2fsprogs: no mounting, no root.

debugfs exits with 0 even if a command failed, so its stderr decides. The caller gives it a copy of the image, and
discards the copy after a failure."""

import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from merino_edge.delivery.root_tree import Entry
from merino_edge.storage.faults import shortened
from merino_runtime.errors import MerinoError
from merino_runtime.io.board import MB
from merino_runtime.io.streams import visible_text

DEBIAN_PACKAGES = {"debugfs": "e2fsprogs", "e2fsck": "e2fsprogs", "sfdisk": "fdisk"}
SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # not in the PATH of Debian's users
REPAIR = "attach it by `losetup -P` and run e2fsck on the partition"
LONGEST_COMPLAINT = 500  # characters of a program's stderr that a message repeats
MAGIC_AT, MAGIC = 1024 + 56, b"\x53\xef"  # of ext2 to ext4, from the start of the file system
PROTECTIVE = "ee"  # MBR's type for all of a disk with a GPT: shown only if the GPT cannot be read
# Inode, mode, uid, gid, name and size, which a folder has not. An inode of 0 is an empty slot.
LISTED = r"^/(\d+)/(\d+)/(\d+)/(\d+)/([^/\n]+)/(\d*)/$"
# Paths in requests to debugfs: no quotes, blanks or line ends, which would be read as commands.
PLAIN_PATH = re.compile(r"/[A-Za-z0-9/._+@:=,~-]*")


class Ran(NamedTuple):
    code: int  # negative: ended by that signal
    out: bytes
    err: str  # without the line of e2fsprogs' version

    @property
    def complaint(self) -> str:
        """The errors in one line, or the exit status if there are none."""
        return shortened("; ".join(self.err.split("\n")), LONGEST_COMPLAINT) if self.err else f"exit status {self.code}"


def tool_path(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), *SYSTEM_FOLDERS)))


def check_tools() -> None:
    """Raise MerinoError with every program that is not installed here, and their Debian packages."""
    missing = sorted(name for name in DEBIAN_PACKAGES if tool_path(name) is None)
    if missing:
        packages = " ".join(sorted({DEBIAN_PACKAGES[name] for name in missing}))
        raise MerinoError(
            f"an image is changed by {' and '.join(missing)}, not installed here. Install it (Debian: apt-get install "
            f"{packages}), or write into a mounted root file system: --rootfs DIR"
        )


def run_tool(name: str, arguments: Sequence[str], folder: Path, stdin: str = "") -> Ran:
    """Run a program of DEBIAN_PACKAGES in `folder` to its end."""
    path = tool_path(name)
    assert path is not None, f"check_tools comes before {name}"
    done = subprocess.run(
        [path, *arguments], input=stdin.encode(), capture_output=True, cwd=folder, check=False,
        env={**os.environ, "LC_ALL": "C", "DEBUGFS_PAGER": "__none__"},
    )  # fmt: skip
    # Bytes that are not UTF-8 and control characters that could steer a terminal are escaped.
    text = visible_text(done.stderr.decode("utf-8", errors="backslashreplace"))
    lines = (" ".join(line.split()) for line in text.splitlines())
    return Ran(done.returncode, done.stdout, "\n".join(
        line for line in lines if line and not line.startswith(f"{name} 1.")
    ))  # fmt: skip


class Partition(NamedTuple):
    number: int  # 0: no partition table, the file system begins with the file
    start_bytes: int
    is_ext: bool


def partitions(folder: Path, name: str, shown: str) -> list[Partition]:
    """List the partitions of the image `folder`/`name` in the table's order. shown: the image in messages.

    Raise MerinoError if there is no table, or one that leads out of the file.
    """
    with open(folder / name, "rb") as file:

        def is_ext(start_bytes: int) -> bool:
            file.seek(start_bytes + MAGIC_AT)
            return file.read(2) == MAGIC

        if is_ext(0):
            return [Partition(0, 0, True)]
        ran = run_tool("sfdisk", ["--json", name], folder)
        try:
            table = json.loads(ran.out)["partitiontable"]
            sector = int(table.get("sectorsize", 512))
            rows = [
                (int(re.findall(r"\d+$", part["node"])[0]), part["start"] * sector, part["size"] * sector, part["type"])
                for part in table.get("partitions", [])
            ]
        except (ValueError, KeyError, TypeError, IndexError):
            reason = ran.complaint.replace(name, shown) if ran.code else "it has no partition table"
            raise MerinoError(
                f"{shown} cannot be read as a disk image: {reason}. Name an image with an MBR or GPT, as the board's"
                " system is published."
            ) from None
        if any(kind == PROTECTIVE for *_, kind in rows):
            raise MerinoError(f"{shown}: its GPT is damaged or cut off. Fetch or unpack it again.")
        size_bytes = os.fstat(file.fileno()).st_size
        for number, start, length, _ in rows:
            if start + length > size_bytes:
                raise MerinoError(
                    f"{shown} was cut off: partition {number} ends at byte {start + length:,}, the file at "
                    f"{size_bytes:,}. Fetch or unpack it again."
                )
        return [Partition(number, start, is_ext(start)) for number, start, *_ in rows]


class Volume(NamedTuple):
    """One ext4 file system of an image. Programs run in `folder`, so no path of the user's is read as an option."""

    folder: Path
    name: str
    start_bytes: int
    shown: str  # in messages

    @property
    def device(self) -> str:
        return f"{self.name}?offset={self.start_bytes}"


class Superblock(NamedTuple):
    size_bytes: int
    free_bytes: int  # without the administrator's reserve
    free_inodes: int
    needs_recovery: bool
    is_clean: bool


def superblock(volume: Volume) -> Superblock:
    ran = run_tool("debugfs", ["-R", "show_super_stats -h", volume.device], volume.folder)
    fields = dict(re.findall(r"^([A-Z][\w ]+):\s+(.*)$", ran.out.decode("utf-8", errors="replace"), re.MULTILINE))
    try:
        block_bytes, blocks, reserved, free, inodes = (
            int(fields[name]) for name in
            ("Block size", "Block count", "Reserved block count", "Free blocks", "Free inodes")
        )  # fmt: skip
    except (KeyError, ValueError):
        raise MerinoError(
            f"{volume.shown}: its ext4 file system is not clean ({ran.complaint}). Fetch or unpack the image again."
        ) from None
    return Superblock(
        blocks * block_bytes, max(0, free - reserved) * block_bytes, inodes,
        "needs_recovery" in fields.get("Filesystem features", ""), fields.get("Filesystem state") == "clean",
    )  # fmt: skip


def check_clean(volume: Volume) -> None:
    """Raise MerinoError if the file system must be repaired first. Changes nothing."""
    fs = superblock(volume)
    if fs.needs_recovery:
        raise MerinoError(
            f"{volume.shown} was not unmounted: its ext4 journal has changes that are not written back. Unmount it, or "
            f"write them back: {REPAIR}"
        )
    ran = run_tool("e2fsck", ["-fn", volume.device], volume.folder)
    if not fs.is_clean or ran.code:
        reason = ran.complaint if ran.err else "e2fsck finds errors"
        raise MerinoError(
            f"{volume.shown}: its ext4 file system is not clean ({reason}). Fetch it again, or repair it: {REPAIR}"
        )


class Ext4Tree:
    """The files of a volume, as a `RootTree`."""

    def __init__(self, volume: Volume) -> None:
        self.name = volume.shown
        self.volume = volume
        self.known: dict[str, dict[str, Entry]] = {}  # by folder

    def entry(self, path: str) -> Entry | None:
        if path == "/":
            return self._folder("/").get(".")
        folder, _, name = path.rpartition("/")
        parent = self.entry(folder or "/")
        if parent is None or not stat.S_ISDIR(parent.mode):
            return None
        return self._folder(folder or "/").get(name)

    def names(self, folder: str) -> list[str]:
        return sorted(set(self._folder(folder)) - {".", ".."})

    def link(self, path: str) -> str:
        """Return a link's target. A short one is stored in the inode, a longer one in a block."""
        shown = self._debugfs(f"stat {plain(path)}").decode("utf-8", errors="backslashreplace")
        match = re.search(r'^Fast link dest: "(.*)"$', shown, re.MULTILINE)
        return match.group(1) if match else self.read(path, 4096).decode("utf-8", errors="backslashreplace")

    def read(self, path: str, most_bytes: int) -> bytes:
        return self._debugfs(f"cat {plain(path)}")[:most_bytes]

    def sha256(self, path: str) -> str:
        """Hash the readable part of a file."""
        debugfs = tool_path("debugfs") or "debugfs"
        with subprocess.Popen(
            [debugfs, "-R", f"cat {plain(path)}", self.volume.device], cwd=self.volume.folder, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            digest = sha256()
            while process.stdout and (data := process.stdout.read(MB)):
                digest.update(data)
        return digest.hexdigest()

    def _folder(self, path: str) -> dict[str, Entry]:
        if path not in self.known:
            text = self._debugfs(f"ls -p {plain(path)}").decode("utf-8", errors="backslashreplace")
            self.known[path] = {
                name: Entry(int(mode, 8), int(uid), int(gid), int(size or 0))
                for inode, mode, uid, gid, name, size in re.findall(LISTED, text, re.MULTILINE) if int(inode)
            }  # fmt: skip
        return self.known[path]

    def _debugfs(self, request: str) -> bytes:
        ran = run_tool("debugfs", ["-R", request, self.volume.device], self.volume.folder)
        if ran.code or ran.err:
            raise MerinoError(
                f"{self.name}: debugfs cannot read its ext4 file system: {ran.complaint}. Check it, or install a newer"
                " e2fsprogs."
            )
        return ran.out


def plain(path: str) -> str:
    """Raise MerinoError for a path, as a link in an image may have one, that debugfs would read as something else."""
    if not PLAIN_PATH.fullmatch(path):
        raise MerinoError(
            f"the image has the path {ascii(path)[:200]}; only one of letters, digits and ._+@:=,~- can be followed. "
            "Mount the image and give --rootfs DIR."
        )
    return path


def change(volume: Volume, commands: Sequence[str]) -> None:
    """Run commands of debugfs(8) that change the volume. Raise MerinoError if it complained about one of them."""
    ran = run_tool("debugfs", ["-w", "-f", "-", volume.device], volume.folder, "\n".join([*commands, ""]))
    if ran.code or ran.err:
        raise MerinoError(
            f"{volume.shown} stays as it was: debugfs failed: {ran.complaint}. Free space on this disk, or install a"
            " newer e2fsprogs."
        )
