"""Write a first boot into a disk image, as a board's system is published: no mounting, no root.

debugfs changes a copy of the image. The copy is checked and then renamed over the image. A FAT partition is left alone:
what Raspberry Pi OS reads there (userconf, ssh, the network) is for its user to set, and this project's unit does not
need it."""

import contextlib
import lzma
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from merino_edge.delivery import ext4
from merino_edge.delivery.first_boot import Placed, Plan, checked_archive, make_plan, steps_of
from merino_edge.delivery.root_tree import is_root
from merino_runtime.bundle import sha256_of
from merino_runtime.delivery.archive import COPIED_AT_ONCE
from merino_runtime.errors import MerinoError
from merino_runtime.io import outputs
from merino_runtime.io.board import MB

PACKED = ".xz"
ORIGINAL = "original"  # in the scratch folder: a link to the image
SPARE_INODES = 32


def finished_image(image: Path) -> Path:
    """Return the image that `flash_image` leaves: the image itself, or for FILE.img.xz the unpacked FILE.img."""
    return image.with_suffix("") if image.suffix == PACKED else image


def flash_image(
    archive_path: Path, image: Path, *, trust: Sequence[Path] = (), allow_unsigned: bool = False, dry_run: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> list[str]:  # fmt: skip
    """Put the package, its keys and a unit that installs it into the root file system in a disk image.

    image: FILE.img, which is replaced when the new one is complete and its file system clean; or FILE.img.xz, which is
    kept: the unpacked FILE.img is made. trust: files of public keys, which become trusted on the board. dry_run:
    nothing stays; an .xz is unpacked all the same, to read it. report: gets the current step. Returns the steps. Raises
    MerinoError if a step fails; the image is then unchanged.
    """
    # 1. What was named.
    ext4.check_tools()
    target = finished_image(image)
    check_files(image, target)
    archive = checked_archive(archive_path, trust, allow_unsigned, lambda path: report(f"hashing {path}"))
    size_bytes = archive.bytes if dry_run else archive.bytes + 512 * image.stat().st_blocks
    with work_file(target, size_bytes, dry_run) as file:
        # 2. The plan, from the image as it is.
        folder, copy = Path(file.name).parent, Path(file.name).name
        if target != image:
            report(f"unpacking {image}")
            unpack_xz(image, file)
        else:
            os.symlink(os.path.abspath(image), folder / ORIGINAL)
        report("reading the image")
        name = ORIGINAL if target == image else copy
        parts = ext4.partitions(folder, name, str(image))
        volume, number = root_volume(folder, name, parts, image)
        ext4.check_clean(volume)
        plan = make_plan(ext4.Ext4Tree(volume), archive, trust)
        check_room(volume, plan, number)
        fs = ext4.superblock(volume)
        sizes = f"{fs.size_bytes / MB:.0f} MB, {fs.free_bytes / MB:.0f} MB free"
        steps = [f"partition {part.number} stays as it is" for part in parts if part.number != number]
        steps += [f"partition {number} (ext4, {sizes}) takes the files", *steps_of(plan)]
        steps.append(f"unpack {image} to {target}" if target != image else
                     f"replace {image} when its copy is complete and clean")  # fmt: skip
        # 3. The copy, which replaces the image at the end of this block.
        if not dry_run:
            if target == image:
                report(f"copying {image}")
                copy_sparse(image, Path(file.name))
            report("writing the files")
            changed = volume._replace(name=copy)
            commands: list[str] = []
            for index, new in enumerate(plan.placed):
                commands += [] if new.is_done else commands_of(changed, new, f"content-{index}")
            ext4.change(changed, commands)
            report("checking the new image")
            check_written(changed, plan)
    return steps


def check_files(image: Path, target: Path) -> None:
    try:
        mode = os.stat(image).st_mode
    except OSError as error:
        raise MerinoError(f"cannot read {image}: {error.strerror}. Name FILE.img or FILE.img.xz.") from error
    if not stat.S_ISREG(mode):
        shown = "is a disk, not an image of one" if stat.S_ISBLK(mode) else "is not a regular file"
        raise MerinoError(f"{image} {shown}. Name an image of a disk, FILE.img or FILE.img.xz.")
    if target != image and os.path.lexists(target):
        raise MerinoError(f"{target}, which {image} unpacks to, is there already. Name it instead, or remove it first.")


@contextlib.contextmanager
def work_file(target: Path, size_bytes: int, dry_run: bool) -> Iterator[BinaryIO]:
    """A file in a scratch folder beside `target`; it replaces `target` at the end, except in a dry run."""
    with contextlib.ExitStack() as stack:
        if dry_run:
            target = Path(stack.enter_context(outputs.scratch_folder(str(target)))) / "image"
        yield stack.enter_context(outputs.open_output(str(target), size_bytes, sync=not dry_run))


def root_volume(folder: Path, name: str, parts: Sequence[ext4.Partition], image: Path) -> tuple[ext4.Volume, int]:
    """Return the one ext4 partition that holds a root file system, and its number."""
    volumes = [(ext4.Volume(folder, name, part.start_bytes, str(image)), part.number) for part in parts if part.is_ext]
    roots = [(volume, number) for volume, number in volumes if is_root(ext4.Ext4Tree(volume))]
    if len(roots) == 1:
        return roots[0]
    if not roots:
        text = ", ".join(f"{part.number} {'ext4' if part.is_ext else 'other'}" for part in parts) or "none"
        raise MerinoError(
            f"{image} has no ext4 partition with a root file system (partitions: {text}). Name an image of the board's "
            "system, or mount it and give --rootfs DIR."
        )
    numbers = " and ".join(str(number) for _, number in roots)
    raise MerinoError(
        f"{image} has root file systems in partitions {numbers}: which of them starts is not known. Mount the right "
        "one and give --rootfs DIR."
    )


def check_room(volume: ext4.Volume, plan: Plan, number: int) -> None:
    fs = ext4.superblock(volume)
    if fs.free_inodes < SPARE_INODES:
        raise MerinoError(f"{volume.shown}: its file system takes {fs.free_inodes} more files only. Remove some in it.")
    missing = plan.need_bytes - fs.free_bytes
    if missing > 0:
        raise MerinoError(
            f"{volume.shown}: its file system is too small by {missing / MB:.1f} MB ({plan.need_bytes / MB:.1f} MB "
            f"needed, {fs.free_bytes / MB:.1f} MB free). Enlarge partition {number} with a partition editor (gparted)."
        )


def copy_sparse(image: Path, copy: Path) -> None:
    """Copy `image` with its holes. Raise MerinoError if that fails or the copy has another SHA-256 than the image."""
    done = subprocess.run(["cp", "--sparse=always", "--", image, copy], capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().rpartition(": ")[2] or f"exit status {done.returncode}"
        raise MerinoError(f"cannot copy {image}: {reason}. Free space on its disk, or check that disk.")
    if sha256_of(str(image)) != sha256_of(str(copy)):
        raise MerinoError(
            f"the copy of {image} differs from it: the image was written to meanwhile, or a disk is faulty. Unmount "
            "the image, stop what writes to it, and run the command again."
        )


def unpack_xz(image: Path, to: BinaryIO) -> None:
    """Unpack `image`. Raise MerinoError if it is damaged, or would be larger than the free space beside `to`."""
    free = shutil.disk_usage(os.path.dirname(to.name)).free
    size_bytes = 0
    try:
        with lzma.open(image) as source:
            while data := source.read(COPIED_AT_ONCE):
                size_bytes += len(data)
                if size_bytes > free:
                    raise MerinoError(
                        f"{image} unpacks to more than the {free / MB:.0f} MB that are free there. Free space on that"
                        " disk, or copy it to another one."
                    )
                if data.strip(b"\0"):
                    to.write(data)
                else:
                    to.seek(len(data), os.SEEK_CUR)
    except (lzma.LZMAError, EOFError) as error:
        raise MerinoError(f"{image} is damaged or not an .xz file: {error}. Fetch it again.") from error
    to.truncate(size_bytes)
    to.flush()


def commands_of(volume: ext4.Volume, new: Placed, source: str) -> Iterator[str]:
    """Yield the debugfs commands that write an entry. `cd` comes first, because older versions of debugfs treat a path
    in `write` as a name."""
    folder, _, name = ext4.plain(new.path).rpartition("/")
    yield f"cd {folder or '/'}"
    if new.link:
        yield f"symlink {name} {new.link}"
    elif stat.S_ISDIR(new.mode):
        if not new.before:
            yield f"mkdir {name}"
    else:
        if new.before:
            yield f"rm {name}"
        if new.source:
            os.symlink(os.path.abspath(new.source), volume.folder / source)
        else:
            outputs.write_output(str(volume.folder / source), new.data, sync=False)
        yield f"write {source} {name}"
    for field, value in (("mode", f"0{new.mode:o}"), ("uid", 0), ("gid", 0)):
        yield f"sif {name} {field} {value}"


def check_written(volume: ext4.Volume, plan: Plan) -> None:
    """Raise MerinoError if the volume is not clean, or does not hold what the plan places."""
    ext4.check_clean(volume)
    tree = ext4.Ext4Tree(volume)
    for new in plan.placed:
        entry = tree.entry(new.path)
        same = entry is not None and stat.S_IFMT(entry.mode) == stat.S_IFMT(new.mode)
        if same and not new.is_done:
            linked = tree.link(new.path) if new.link else ""
            same = entry is not None and entry[:3] == (new.mode, 0, 0) and linked == new.link
        if same and stat.S_ISREG(new.mode):
            expected = sha256_of(str(new.source)) if new.source else sha256(new.data).hexdigest()
            same = tree.sha256(new.path) == expected
        if not same:
            raise MerinoError(
                f"{volume.shown} stays as it was: {new.path} was not written as it should be. Check this machine's "
                "disk and memory, or install a newer e2fsprogs."
            )
