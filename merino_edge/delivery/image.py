"""Writes a first boot into a disk image, as a system is published for a board: no mounting, no root.

debugfs changes a copy of the image, which is checked and renamed over the image at the end. A FAT partition is left
alone: what Raspberry Pi OS reads there (userconf, ssh, the network) is its user's to set, and the unit of this project
does not need it."""

import contextlib
import errno
import hashlib
import lzma
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from merino_edge.delivery.first_boot_plan import Placed, Plan, make_plan, steps_of
from merino_edge.delivery.root_tree import is_root
from merino_edge.delivery.staged import checked_archive
from merino_edge.delivery.system_tools import check_tools
from merino_edge.delivery.volumes import (
    EXT,
    FAT,
    Ext4Tree,
    Partition,
    Volume,
    change,
    check_clean,
    enlarging,
    partitions,
    plain,
    superblock,
)
from merino_runtime.bundle import sha256_of
from merino_runtime.delivery.archive import COPIED_AT_ONCE
from merino_runtime.errors import MerinoError
from merino_runtime.io import outputs
from merino_runtime.io.board import MB

PACKED = ".xz"
ORIGINAL = "original"  # in the scratch folder: a link to the image
SPARE_INODES = 32


def finished_image(image: Path) -> Path:
    """The image that `flash_image` leaves: the one that was named, or for FILE.img.xz the unpacked FILE.img."""
    return image.with_suffix("") if image.suffix == PACKED else image


def flash_image(
    archive_path: Path, image: Path, *, trust: Sequence[Path] = (), allow_unsigned: bool = False, dry_run: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> list[str]:  # fmt: skip
    """Puts the packed file, its keys and a unit that installs them into the root file system in a disk image.

    image: FILE.img, which is replaced when the new one is complete and its file system clean; or FILE.img.xz, which is
    kept: the unpacked FILE.img is made. trust: files of public keys, which become trusted on the board. dry_run:
    nothing stays; an .xz is unpacked all the same, to read it. report: gets the step that begins. Returns the steps
    done, or that would be. Raises MerinoError where a step fails; the image is then unchanged.
    """
    check_tools(("debugfs", "e2fsck", "sfdisk"))
    target = finished_image(image)
    _check_files(image, target)
    archive = checked_archive(archive_path, trust, allow_unsigned, lambda path: report(f"hashing {path}"))
    size_bytes = archive.bytes if dry_run else archive.bytes + 512 * image.stat().st_blocks
    with _work_file(target, size_bytes, dry_run) as file:
        folder, name = Path(file.name).parent, ORIGINAL
        if target != image:
            report(f"unpacking {image}")
            unpack_xz(image, file)
            name = Path(file.name).name
        else:
            os.symlink(os.path.abspath(image), folder / ORIGINAL)
        report("reading the image")
        parts = partitions(folder, name, str(image))
        volume, number = _root_volume(folder, name, parts, image)
        check_clean(volume)
        plan = make_plan(Ext4Tree(volume), archive, trust)
        _check_room(volume, plan, number, parts, image)
        steps = _steps(image, target, parts, volume, number, plan)
        if not dry_run:
            if target == image:
                report(f"copying {image}")
                copy_sparse(image, file)
            copy = volume._replace(name=Path(file.name).name)
            report("writing the files")
            write_plan(copy, plan)
            report("checking the new image")
            check_written(copy, plan)
    return steps


def _check_files(image: Path, target: Path) -> None:
    try:
        status = os.stat(image)
    except OSError as error:
        raise MerinoError(f"cannot read {image}: {error.strerror}. Name FILE.img or FILE.img.xz.") from error
    if stat.S_ISBLK(status.st_mode):
        raise MerinoError(f"{image} is a disk, not an image of one. Name an image, and the disk by --device-node.")
    if not stat.S_ISREG(status.st_mode):
        raise MerinoError(f"{image} is not a regular file. Name an image of a disk, FILE.img or FILE.img.xz.")
    if target != image and os.path.lexists(target):
        raise MerinoError(f"{target}, which {image} unpacks to, is there already. Name it instead, or remove it first.")


@contextlib.contextmanager
def _work_file(target: Path, size_bytes: int, dry_run: bool) -> Iterator[BinaryIO]:
    """A file in a scratch folder beside `target`; it replaces `target` at the end, except in a dry run."""
    with contextlib.ExitStack() as stack:
        if dry_run:
            target = Path(stack.enter_context(outputs.scratch_folder(str(target)))) / "image"
        yield stack.enter_context(outputs.open_output(str(target), size_bytes, sync=not dry_run))


def _root_volume(folder: Path, name: str, parts: Sequence[Partition], image: Path) -> tuple[Volume, int]:
    """The one ext4 partition that holds a root file system, and its number."""
    roots = []
    for part in (part for part in parts if part.holds == EXT):
        volume = Volume(folder, name, part.start_bytes, str(image))
        if is_root(Ext4Tree(volume)):
            roots.append((volume, part.number))
    if len(roots) == 1:
        return roots[0]
    text = ", ".join(f"{part.number} {part.holds}" for part in parts) or "none"
    if not roots:
        raise MerinoError(
            f"{image} has no ext4 partition with a root file system (partitions: {text}). Name an image of the board's "
            "system, or mount it and give --rootfs DIR."
        )
    numbers = " and ".join(str(number) for _, number in roots)
    raise MerinoError(
        f"{image} has root file systems in partitions {numbers}: which of them starts is not known. Mount the right "
        "one and give --rootfs DIR."
    )


def _check_room(volume: Volume, plan: Plan, number: int, parts: Sequence[Partition], image: Path) -> None:
    fs = superblock(volume.folder / volume.name, volume.start_bytes)
    if fs.free_inodes < SPARE_INODES:
        raise MerinoError(f"{image}: its file system takes {fs.free_inodes} more files only. Remove some in it.")
    missing = plan.need_bytes - fs.free_bytes
    if missing <= 0:
        return
    is_last = all(part.start_bytes <= volume.start_bytes for part in parts)
    where = str(finished_image(image))
    raise MerinoError(
        f"{image}: its file system is too small by {missing / MB:.1f} MB ({plan.need_bytes / MB:.1f} MB needed, "
        f"{fs.free_bytes / MB:.1f} MB free). "
        + (f"Enlarge it: {enlarging(where, number, volume.start_bytes, fs.size_bytes, missing)}" if is_last else
           f"Partition {number} is not the last one: mount the image and enlarge it with a partition editor (gparted).")
    )  # fmt: skip


def _steps(
    image: Path, target: Path, parts: Sequence[Partition], volume: Volume, number: int, plan: Plan
) -> list[str]:
    fs = superblock(volume.folder / volume.name, volume.start_bytes)
    boot = [f"partition {part.number} (FAT) stays as it is" for part in parts if part.holds == FAT]
    sizes = f"{fs.size_bytes / MB:.0f} MB, {fs.free_bytes / MB:.0f} MB free"
    root = f"partition {number} (ext4, {sizes}) takes the files"
    last = f"unpack {image} to {target}" if target != image else f"replace {image} when its copy is complete and clean"
    return [*boot, root, *steps_of(plan), last]


def write_plan(volume: Volume, plan: Plan) -> None:
    """Changes the volume, which is a copy in a scratch folder. Raises MerinoError; the copy is to be discarded then."""
    commands = [f"rm {plain(path)}" for path in plan.stale]
    for number, placed in enumerate(plan.placed):
        if not placed.is_done:
            commands += _commands(volume, placed, f"content-{number}")
    change(volume, commands)


def check_written(volume: Volume, plan: Plan) -> None:
    """Raises MerinoError where the volume is not clean, or does not hold what the plan places."""
    check_clean(volume)
    tree = Ext4Tree(volume)
    for placed in plan.placed:
        staged, entry = placed.staged, tree.entry(placed.path)
        same = entry is not None and stat.S_IFMT(entry.mode) == stat.S_IFMT(staged.mode)
        if same and not placed.is_done:
            same = entry is not None and entry[:3] == (staged.mode, staged.uid, staged.gid)
        if same and not placed.is_done and staged.link:
            same = tree.link(placed.path) == staged.link
        if same and stat.S_ISREG(staged.mode):
            content = hashlib.sha256(staged.data).hexdigest()
            same = _sha256(tree.pieces(placed.path)) == (sha256_of(str(staged.source)) if staged.source else content)
        if not same:
            raise MerinoError(
                f"{volume.shown} stays as it was: {placed.path} was not written as it should be. Check this machine's "
                "disk and memory, or install a newer e2fsprogs."
            )
    left = [path for path in plan.stale if tree.entry(path)]
    assert not left, left


def _commands(volume: Volume, placed: Placed, source: str) -> Iterator[str]:
    """`cd` first: older versions of debugfs take a path in `write` for a name."""
    staged = placed.staged
    folder, _, name = plain(placed.path).rpartition("/")
    yield f"cd {folder or '/'}"
    if stat.S_ISLNK(staged.mode):
        yield f"symlink {name} {staged.link}"
    elif stat.S_ISDIR(staged.mode):
        if not placed.before:
            yield f"mkdir {name}"
    else:
        if placed.before:
            yield f"rm {name}"
        if staged.source:
            os.symlink(os.path.abspath(staged.source), volume.folder / source)
        else:
            outputs.write_output(str(volume.folder / source), staged.data, sync=False)
        yield f"write {source} {name}"
    for field, value in (("mode", f"0{staged.mode:o}"), ("uid", staged.uid), ("gid", staged.gid)):
        yield f"sif {name} {field} {value}"


def _sha256(pieces: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def copy_sparse(image: Path, to: BinaryIO) -> None:
    """Copies `image`; its holes stay holes. Raises OSError, and MerinoError where the copy then has another SHA-256
    than the image.

    Looking up holes moves the file's position, which a buffered reader does not notice, so data is read by offset.
    """
    with open(image, "rb", buffering=0) as source:
        handle, end = source.fileno(), 0
        size_bytes = os.fstat(handle).st_size
        while end < size_bytes:
            try:
                start = os.lseek(handle, end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # a hole up to the end
                    break
                raise
            end = os.lseek(handle, start, os.SEEK_HOLE)
            to.seek(start)
            while start < end and (data := os.pread(handle, min(end - start, COPIED_AT_ONCE), start)):
                to.write(data)
                start += len(data)
        to.truncate(size_bytes)
        to.flush()
    if sha256_of(str(image)) != sha256_of(to.name):
        raise MerinoError(
            f"the copy of {image} differs from it: the image was written to meanwhile, or a disk is faulty. Unmount "
            "the image, stop what writes to it, and run the command again."
        )


def unpack_xz(image: Path, to: BinaryIO) -> None:
    """Unpacks `image`. Raises MerinoError where it is damaged, or would be larger than the free space beside `to`."""
    free = shutil.disk_usage(os.path.dirname(to.name)).free
    size_bytes = 0
    try:
        with lzma.open(image) as source:
            while data := source.read(COPIED_AT_ONCE):
                size_bytes += len(data)
                if size_bytes > free:
                    raise MerinoError(
                        f"{image} unpacks to more than the {free / 2**20:.0f} MB that are free there. Free space on "
                        "that disk, or copy it to another one."
                    )
                if data.strip(b"\0"):
                    to.write(data)
                else:
                    to.seek(len(data), os.SEEK_CUR)
    except (lzma.LZMAError, EOFError) as error:
        raise MerinoError(f"{image} is damaged or not an .xz file: {error}. Fetch it again.") from error
    to.truncate(size_bytes)
    to.flush()
