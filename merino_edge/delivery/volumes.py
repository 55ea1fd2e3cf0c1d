"""The partitions of a disk image and an ext4 file system in one of them, by sfdisk and e2fsprogs: no mounting, no root.

debugfs ends with 0 also where a command failed, so its stderr decides. The caller gives it a copy of the image, which
is discarded after a failure."""

import json
import re
import shlex
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from merino_edge.delivery.root_tree import Entry
from merino_edge.delivery.system_tools import complaint, run_tool, tool_output
from merino_runtime.errors import MerinoError
from merino_runtime.io.board import MB

EXT, FAT, OTHER = "ext4", "FAT", "other"
FAT_SIGNS = ((54, b"FAT"), (82, b"FAT32"))  # offset in the first sector, of FAT12 and FAT16, and of FAT32
PROTECTIVE = "ee"  # MBR's type for all of a disk with a GPT: shown only where that cannot be read


class Partition(NamedTuple):
    number: int  # 0: no partition table, the file system begins with the file
    start_bytes: int
    size_bytes: int
    holds: str


def partitions(folder: Path, name: str, shown: str) -> list[Partition]:
    """Of the image `folder`/`name`, in the table's order. shown: the image in messages.

    Raises MerinoError where there is no table, or one that leads out of the file.
    """
    path = folder / name
    file_bytes = path.stat().st_size
    if is_ext(path, 0):
        return [Partition(0, 0, file_bytes, EXT)]
    ran = run_tool("sfdisk", ["--json", name], folder)
    table = _table(ran.out) if ran.code == 0 else None
    if table is None:
        reason = complaint(ran.err, ran.code) if ran.code else "it has no partition table"
        raise MerinoError(
            f"{shown} cannot be read as a disk image: {reason.replace(name, shown)}. Name an image with an MBR or GPT, "
            "as the board's system is published."
        )
    if any(kind == PROTECTIVE for _, _, _, kind in table):
        raise MerinoError(f"{shown}: its GPT is damaged or cut off. Fetch or unpack it again.")
    parts = []
    for number, start_bytes, size_bytes, _ in table:
        if start_bytes + size_bytes > file_bytes:
            raise MerinoError(
                f"{shown} was cut off: partition {number} ends at byte {start_bytes + size_bytes:,}, the file at "
                f"{file_bytes:,}. Fetch or unpack it again."
            )
        parts.append(Partition(number, start_bytes, size_bytes, _content(path, start_bytes)))
    return parts


def _table(text: str) -> list[tuple[int, int, int, str]] | None:
    """(number, start, size, type) of sfdisk's JSON; None where it is anything else."""
    try:
        table = json.loads(text)["partitiontable"]
        sector = int(table.get("sectorsize", 512))
        parts = table.get("partitions", [])
        return [(_number(each), each["start"] * sector, each["size"] * sector, each["type"]) for each in parts]
    except (ValueError, KeyError, TypeError):
        return None


def _number(part: dict[str, Any]) -> int:
    match = re.search(r"\d+$", part["node"])
    if not match:
        raise ValueError(part["node"])
    return int(match.group())


def _content(path: Path, start_bytes: int) -> str:
    if is_ext(path, start_bytes):
        return EXT
    with open(path, "rb") as file:
        file.seek(start_bytes)
        sector = file.read(512)
    signed = sector[510:] == b"\x55\xaa" and any(sector[at : at + len(sign)] == sign for at, sign in FAT_SIGNS)
    return FAT if signed else OTHER


SUPERBLOCK_AT = 1024  # from the start of the file system
MAGIC = 0xEF53
ERRORS_SEEN = 0x2  # s_state
NEEDS_RECOVERY = 0x4  # s_feature_incompat
WIDE_COUNTS = 0x80  # s_feature_incompat: 64 bits

# Inode, mode, uid, gid, name and size, which a folder has not. An inode of 0 is an empty slot.
LISTED = r"^/(\d+)/(\d+)/(\d+)/(\d+)/([^/\n]+)/(\d*)/$"
# Paths in requests to debugfs: no quotes, blanks or line ends, which would be read as commands.
PLAIN_PATH = re.compile(r"/[A-Za-z0-9/._+@:=,~-]*")


class Superblock(NamedTuple):
    """Fields of the superblock that count here; see the kernel's Documentation/filesystems/ext4/super.rst."""

    block_bytes: int
    size_bytes: int
    free_bytes: int  # without the administrator's reserve
    free_inodes: int
    needs_recovery: bool
    has_errors: bool


class Volume(NamedTuple):
    """One file system of an image. Programs run in `folder`, so that no path of the user's is read as an option."""

    folder: Path
    name: str
    start_bytes: int
    shown: str  # in messages

    @property
    def device(self) -> str:
        return f"{self.name}?offset={self.start_bytes}"


def is_ext(path: Path, start_bytes: int) -> bool:
    return _raw_superblock(path, start_bytes)[56:58] == struct.pack("<H", MAGIC)


def superblock(path: Path, start_bytes: int) -> Superblock:
    raw = _raw_superblock(path, start_bytes)
    blocks, reserved, free, inodes = struct.unpack_from("<4I", raw, 4)
    (block_power,), (state,) = struct.unpack_from("<I", raw, 24), struct.unpack_from("<H", raw, 58)
    (features,) = struct.unpack_from("<I", raw, 96)
    if features & WIDE_COUNTS:
        high = struct.unpack_from("<3I", raw, 0x150)
        blocks, reserved, free = (low | more << 32 for low, more in zip((blocks, reserved, free), high, strict=True))
    block_bytes = 1024 << min(block_power, 6)
    return Superblock(
        block_bytes, blocks * block_bytes, max(0, free - reserved) * block_bytes, inodes,
        bool(features & NEEDS_RECOVERY), bool(state & ERRORS_SEEN),
    )  # fmt: skip


def _raw_superblock(path: Path, start_bytes: int) -> bytes:
    """1024 bytes, fewer where the file ends before."""
    with open(path, "rb") as file:
        file.seek(start_bytes + SUPERBLOCK_AT)
        return file.read(1024)


def check_clean(volume: Volume) -> None:
    """Raises MerinoError where the file system must be repaired first. Changes nothing."""
    fs = superblock(volume.folder / volume.name, volume.start_bytes)
    repair = repairing(volume.shown, volume.start_bytes, fs.size_bytes)
    if fs.needs_recovery:
        raise MerinoError(
            f"{volume.shown} was not unmounted: its ext4 journal has changes that are not written back. Unmount it, or "
            f"write them back: {repair}"
        )
    ran = run_tool("e2fsck", ["-fn", volume.device], volume.folder)
    if fs.has_errors or ran.code:
        reason = complaint(ran.err, ran.code) if ran.err else "e2fsck finds errors"
        raise MerinoError(f"{volume.shown}: its ext4 file system is not clean ({reason}). Repair it: {repair}")


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
        """A short one lies in the inode, a longer one in a block."""
        match = re.search(r'^Fast link dest: "(.*)"$', self._debugfs(f"stat {plain(path)}"), re.MULTILINE)
        return match.group(1) if match else self.read(path, 4096).decode("utf-8", errors="backslashreplace")

    def read(self, path: str, most_bytes: int) -> bytes:
        data = bytearray()
        for piece in self.pieces(path):
            data += piece[: most_bytes - len(data)]
        return bytes(data)

    def pieces(self, path: str) -> Iterator[bytes]:
        """The content of a file, in pieces."""
        return tool_output("debugfs", ["-R", f"cat {plain(path)}", self.volume.device], self.volume.folder)

    def free_bytes(self) -> int:
        return superblock(self.volume.folder / self.volume.name, self.volume.start_bytes).free_bytes

    def _folder(self, path: str) -> dict[str, Entry]:
        if path not in self.known:
            lines = re.findall(LISTED, self._debugfs(f"ls -p {plain(path)}"), re.MULTILINE)
            self.known[path] = {
                name: Entry(int(mode, 8), int(uid), int(gid), int(size or 0))
                for inode, mode, uid, gid, name, size in lines if int(inode)
            }  # fmt: skip
        return self.known[path]

    def _debugfs(self, request: str) -> str:
        ran = run_tool("debugfs", ["-R", request, self.volume.device], self.volume.folder)
        if ran.code or ran.err:
            raise MerinoError(
                f"{self.name}: debugfs cannot read its ext4 file system: {complaint(ran.err, ran.code)}. Check it, or "
                "install a newer e2fsprogs."
            )
        return ran.out


def plain(path: str) -> str:
    """Raises MerinoError for a path, as a link in an image may have one, that debugfs would read as something else."""
    if not PLAIN_PATH.fullmatch(path):
        raise MerinoError(
            f"the image has the path {ascii(path)[:200]}; only one of letters, digits and ._+@:=,~- can be followed. "
            "Mount the image and give --rootfs DIR."
        )
    return path


def change(volume: Volume, commands: Sequence[str]) -> None:
    """Runs commands of debugfs(8) that change the volume. Raises MerinoError where one of them complained."""
    ran = run_tool("debugfs", ["-w", "-f", "-", volume.device], volume.folder, "\n".join([*commands, ""]))
    if ran.code or ran.err:
        raise MerinoError(
            f"{volume.shown} stays as it was: debugfs failed: {complaint(ran.err, ran.code)}. Free space on this disk, "
            "or install a newer e2fsprogs."
        )



def repairing(image: str, start_bytes: int, size_bytes: int) -> str:
    root = shlex.quote(f"{image}.root" if start_bytes else image)
    return _taken_out(image, start_bytes, size_bytes, f"{{ e2fsck -fy {root} || [ $? -lt 4 ]; }}")


def enlarging(image: str, number: int, start_bytes: int, size_bytes: int, missing_bytes: int) -> str:
    """Of the last partition, by as much as gives `missing_bytes` of free space.

    number: the partition's; 0 where there is no table. One sixth more: up to 1/16 of it becomes tables of inodes, 1/20
    the administrator's reserve.
    """
    more_mb = 2 + -(-missing_bytes * 7 // (6 * MB))
    whole, root = shlex.quote(image), shlex.quote(f"{image}.root" if start_bytes else image)
    resize = f"truncate -s +{more_mb}M {root} && e2fsck -fp {root} && resize2fs {root}"
    grow = f"truncate -s +{more_mb + 1}M {whole} && echo ', +' | sfdisk -N {number} {whole} && " if number else ""
    return grow + _taken_out(image, start_bytes, size_bytes, resize)


def _taken_out(image: str, start_bytes: int, size_bytes: int, commands: str) -> str:
    if not start_bytes:
        return commands
    whole, root = shlex.quote(image), shlex.quote(f"{image}.root")
    take = f"dd if={whole} of={root} bs=1M iflag=skip_bytes,count_bytes skip={start_bytes} count={size_bytes}"
    put_back = f"dd if={root} of={whole} bs=1M oflag=seek_bytes seek={start_bytes} conv=notrunc"
    return f"{take} && {commands} && {put_back} && rm {root}"
