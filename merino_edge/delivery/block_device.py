"""Writes a finished image onto a disk or card, and reads it back. Linux only.

This is the one place that writes to something other than a file, so every reason against it is checked first. The
kernel makes the last check: a disk that is opened exclusively (O_EXCL) has no mounted partition, swap or volume on it,
and gets none while it is open.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from merino_runtime.errors import MerinoError
from merino_runtime.io.board import MB
from merino_runtime.io.machine_faults import machine_fault

AT_ONCE = 4 << 20
READ_PARTITIONS = 0x125F  # BLKRRPART of linux/fs.h
FORGET_BUFFERS = 0x1261  # BLKFLSBUF


class Disk(NamedTuple):
    node: Path  # as it was named
    name: str  # the kernel's, as `sdb`
    size_bytes: int
    model: str


def flash_device(
    image: Path, node: Path, *, confirm: Callable[[str], str] | None, dry_run: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> list[str]:  # fmt: skip
    """Writes `image`, as `flash_image` leaves it, onto the whole disk `node`; all that was on it is lost.

    confirm: shows a question and returns what was typed, which must be `node`; None: confirmed beforehand. Returns the
    steps done, or that would be. Raises MerinoError where the node is no disk, is in use or too small, where the answer
    is another, and where what is read back differs.
    """
    if not image.is_file():
        raise MerinoError(f"{image} is not an image that could be written to {node}. Name one: --image FILE")
    disk = unused_disk(node)
    size_bytes = image.stat().st_size
    if size_bytes > disk.size_bytes:
        raise MerinoError(
            f"{node} has {disk.size_bytes / MB:.0f} MB, {image} has {size_bytes / MB:.0f} MB. Take a larger card."
        )
    write = f"write {size_bytes / MB:.0f} MB to {described(disk)}; all that is on it is lost"
    steps = [write, f"read {node} back and compare"]
    if dry_run:
        return steps
    if confirm and confirm(f"All data on {described(disk)} will be lost. Type {node} to go on: ").strip() != str(node):
        raise MerinoError(f"nothing was written to {node}: its name was not typed. Type it as it is, or give --yes.")
    _copy_and_compare(image, disk, report)
    return steps


def described(disk: Disk) -> str:
    return f"{disk.node} ({disk.model or 'a disk'}, {disk.size_bytes / MB:.0f} MB)"


def unused_disk(node: Path, system: Path = Path("/")) -> Disk:
    """The disk of a device node. Raises MerinoError where it is none, is read-only, empty, or in use in any way.

    system: the folder in which proc and sys lie.
    """
    name = _kernel_name(node)
    folder = system / "sys/class/block" / name
    if (folder / "partition").exists():
        whole = folder.resolve().parent.name
        raise MerinoError(f"{node} is a partition of a disk. An image takes a whole disk: /dev/{whole}.")
    if (folder / "dm").exists() or (folder / "md").exists() or re.match(r"(zram|ram)\d", name):
        raise MerinoError(f"{node} is made of other disks or memory. Name a card or a disk, as /dev/sdX.")
    users = users_of(name, system)
    if users:
        raise MerinoError(f"{node} is in use ({'; '.join(users)}). Unmount all of it, or name another disk.")
    size_bytes = 512 * int(_text(folder / "size") or 0)
    if not size_bytes:
        raise MerinoError(f"{node} has no size: there is no card in it. Insert one.")
    if _text(folder / "ro") == "1":
        raise MerinoError(f"{node} is read-only. Slide the card's switch, or name another disk.")
    return Disk(node, name, size_bytes, _text(folder / "device/model") or _text(folder / "device/name"))


def _kernel_name(node: Path) -> str:
    try:
        status = os.stat(node)
    except OSError as error:
        raise MerinoError(f"cannot find {node}: {error.strerror}. `lsblk` lists the disks of this machine.") from error
    if not stat.S_ISBLK(status.st_mode):
        raise MerinoError(f"{node} is not a disk. `lsblk` lists the disks of this machine.")
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    link = Path(f"/sys/dev/block/{number}")
    if not link.exists():
        raise MerinoError(f"the kernel has no disk {number}, which {node} names. `lsblk` lists those it has.")
    return link.resolve().name


def users_of(name: str, system: Path) -> list[str]:
    """The uses of a disk and its partitions: as mounted file systems, as swap, or as parts of volumes."""
    folder = system / "sys/class/block" / name
    names = [name, *sorted(path.parent.name for path in folder.glob("*/partition"))]
    numbers = {_text(system / "sys/class/block" / each / "dev"): each for each in names}
    users = []
    for line in _text(system / "proc/self/mountinfo").splitlines():  # proc_pid_mountinfo(5)
        words = line.split()
        # btrfs and overlays have numbers of their own: there the source counts.
        source = words[words.index("-") + 2] if "-" in words else ""
        if words[2] in numbers or _base(source) in names:
            users.append(f"{numbers.get(words[2]) or _base(source)} is mounted at {words[4]}")
    swaps = [_base(line.split()[0]) for line in _text(system / "proc/swaps").splitlines()[1:]]
    users += [f"{swap} is swap" for swap in swaps if swap in names]
    for each in names:
        holders = system / "sys/class/block" / each / "holders"
        dependents = sorted(os.listdir(holders)) if holders.is_dir() else []
        users += [f"{each} is part of {holder}" for holder in dependents]
    return users


def _base(source: str) -> str:
    """`sda1` of /dev/sda1, also behind a link as /dev/disk/by-uuid/X; empty for a path that is no device."""
    return os.path.basename(os.path.realpath(source)) if source.startswith("/dev/") else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _copy_and_compare(image: Path, disk: Disk, report: Callable[[str], None]) -> None:
    """Writes all of the image, its holes too, syncs, and reads it back. The disk is held meanwhile, so that no desktop
    mounts it between the two. Raises MerinoError."""
    doing = f"open {disk.node}"
    try:
        with contextlib.ExitStack() as stack:
            device = os.open(disk.node, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
            stack.callback(os.close, device)
            number = os.fstat(device).st_rdev
            if f"{os.major(number)}:{os.minor(number)}" != _text(Path("/sys/class/block", disk.name, "dev")):
                raise MerinoError(f"{disk.node} became another device; nothing was written. Run the command again.")
            doing = f"write {disk.node}"
            report(f"writing {disk.node}")
            written = _write(image, device)
            doing = f"read {disk.node}"
            report(f"reading {disk.node} back")
            if _sha256_of(device, image.stat().st_size) != written:
                raise MerinoError(
                    f"{disk.node} does not hold what was written to it: the card or its reader is faulty. Take another."
                )
            with contextlib.suppress(OSError):  # a loop device has no partitions
                fcntl.ioctl(device, READ_PARTITIONS)
    except OSError as error:
        raise machine_fault(doing, error) from error


def _write(image: Path, device: int) -> str:
    """-> the SHA-256 of what was written"""
    digest = hashlib.sha256()
    with open(image, "rb") as source:
        while data := source.read(AT_ONCE):
            digest.update(data)
            view = memoryview(data)
            while view:
                view = view[os.write(device, view) :]
    os.fsync(device)
    with contextlib.suppress(OSError):  # so that the data is read from the card
        fcntl.ioctl(device, FORGET_BUFFERS)
    os.posix_fadvise(device, 0, 0, os.POSIX_FADV_DONTNEED)
    return digest.hexdigest()


def _sha256_of(device: int, size_bytes: int) -> str:
    digest, at = hashlib.sha256(), 0
    while at < size_bytes and (data := os.pread(device, min(size_bytes - at, AT_ONCE), at)):
        digest.update(data)
        at += len(data)
    return digest.hexdigest()
