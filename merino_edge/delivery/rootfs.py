"""Writes a first boot into a root file system in a folder: a mounted card, or one that a build has staged.

Each file is written beside its place, synced and renamed. The unit comes last, and it alone names the packed file. So
at every moment the board would install nothing, the file of the flash before, or the new one, each of them complete.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from merino_edge.delivery.first_boot_plan import Placed, make_plan, steps_of
from merino_edge.delivery.root_tree import FolderTree, resolve
from merino_edge.delivery.staged import INCOMING, checked_archive
from merino_runtime.errors import MerinoError
from merino_runtime.io import outputs
from merino_runtime.io.board import MB
from merino_runtime.io.machine_faults import machine_fault
from merino_runtime.io.scratch import sweep_folder


def flash_rootfs(
    archive_path: Path, rootfs: Path, *, trust: Sequence[Path] = (), allow_unsigned: bool = False,
    dry_run: bool = False, report: Callable[[str], None] = lambda _: None,
) -> list[str]:  # fmt: skip
    """Puts the packed file, its keys and a unit that installs them into the root file system in the folder `rootfs`.

    trust: files of public keys, which become trusted on the board. dry_run: nothing is written. report: gets what is
    being done. Returns the steps done, or that would be. Raises MerinoError where it cannot be done; nothing has been
    written then, except where the disk itself fails.
    """
    if not dry_run and os.geteuid() != 0:
        raise MerinoError(
            f"the files in {rootfs} will belong to the board's root, which only root can write. Run the same command "
            "with sudo, or write into an image: --image FILE"
        )
    tree = FolderTree(_checked_root(rootfs))
    archive = checked_archive(archive_path, trust, allow_unsigned, lambda path: report(f"hashing {path}"))
    plan = make_plan(tree, archive, trust)
    free = tree.free_bytes()
    if free < plan.need_bytes:
        raise MerinoError(
            f"{rootfs}: {plan.need_bytes / MB:.1f} MB are needed and {free / MB:.1f} MB are free there. Free "
            f"{(plan.need_bytes - free) / MB:.1f} MB, or enlarge its file system."
        )
    steps = steps_of(plan)
    if not dry_run:
        for placed in plan.placed:
            if not placed.is_done:
                report(f"writing {placed.path}")
                _place(tree, placed)
        sweep_folder(str(tree.here(resolve(tree, INCOMING).path)))  # of killed flashes of other packed files
        for path in plan.stale:
            with _reported_faults(tree.here(path)):
                os.unlink(tree.here(path))
    return steps


def _checked_root(rootfs: Path) -> Path:
    if not rootfs.is_dir():
        raise MerinoError(f"{rootfs} is not a folder. Mount the board's root file system and name where it is mounted.")
    if os.path.samefile(rootfs, "/"):
        raise MerinoError(
            f"{rootfs} is the root file system of this machine. Name that of the board, or install here: python3 "
            "merino.pyz install NAME.merino"
        )
    return rootfs.resolve()


def _place(tree: FolderTree, placed: Placed) -> None:
    staged, place = placed.staged, tree.here(placed.path)
    with _reported_faults(place):
        if stat.S_ISLNK(staged.mode):
            os.symlink(staged.link, place)
        elif not stat.S_ISDIR(staged.mode):
            with outputs.open_output(str(place), staged.size_bytes) as file:
                if staged.source:
                    with open(staged.source, "rb") as source:
                        shutil.copyfileobj(source, file, MB)
                else:
                    file.write(staged.data)
        elif not placed.before:
            os.mkdir(place)
        os.chown(place, staged.uid, staged.gid, follow_symlinks=False)
        if not stat.S_ISLNK(staged.mode):
            os.chmod(place, stat.S_IMODE(staged.mode))  # a new file's was subject to the umask, an old one's is kept


@contextlib.contextmanager
def _reported_faults(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise machine_fault(f"write {place}", error) from error
