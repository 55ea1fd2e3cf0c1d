"""Carries out a plan in an ext4 volume by commands of debugfs, and reads back what was written."""

import hashlib
import os
import stat
from collections.abc import Iterator

from merino_edge.delivery.ext4 import Ext4Tree, Volume, change, check_clean, plain
from merino_edge.delivery.first_boot_plan import Placed, Plan
from merino_edge.delivery.staged import Staged
from merino_runtime.delivery.archive import COPIED_AT_ONCE
from merino_runtime.errors import MerinoError
from merino_runtime.io import outputs


def write_plan(volume: Volume, plan: Plan) -> None:
    """Changes the volume, which is a copy in a scratch folder. Raises MerinoError; the copy is to be discarded then."""
    commands = [f"rm {plain(path)}" for path in plan.stale]
    for number, placed in enumerate(plan.placed):
        if not placed.is_done:
            commands += _commands(volume, placed, f"content-{number}")
    change(volume, commands)


def check_written(volume: Volume, plan: Plan) -> None:
    """Raises MerinoError where the volume is not clean, or does not hold what the plan says."""
    check_clean(volume)
    tree = Ext4Tree(volume)
    for placed in plan.placed:
        staged, found = placed.staged, tree.entry(placed.path)
        same = found is not None and stat.S_IFMT(found.mode) == stat.S_IFMT(staged.mode)
        if same and not placed.is_done:
            same = found is not None and found[:3] == (staged.mode, staged.uid, staged.gid)
        if same and not placed.is_done and staged.link:
            same = tree.link(placed.path) == staged.link
        if same and stat.S_ISREG(staged.mode):
            same = _sha256(tree.pieces(placed.path)) == _sha256(_content(staged))
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


def _content(staged: Staged) -> Iterator[bytes]:
    if not staged.source:
        yield staged.data
        return
    with open(staged.source, "rb") as file:
        while piece := file.read(COPIED_AT_ONCE):
            yield piece


def _sha256(pieces: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
