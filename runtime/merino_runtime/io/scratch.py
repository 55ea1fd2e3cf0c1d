"""Scratch folders: beside an output, locked while their process lives, removed with what is in them at its end.

A process that is killed leaves its folder. The next one for the same output removes the folders that nobody has locked:
the kernel releases a lock when its process ends, however it ends. Standard library only.
"""
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from typing import Iterator, Tuple

SUFFIX = ".merino-new"
OLD = "old"  # in a scratch folder: what its output replaced
LONGEST_STEM_BYTES = 200  # a name has at most 255


@contextlib.contextmanager
def scratch_beside(path: str) -> Iterator[str]:
    """Yield a scratch folder beside `path`, an output with links followed. Raise OSError if its folder cannot be
    written."""
    sweep(path)
    scratch, lock = _locked_folder(path)
    try:
        yield scratch
    finally:
        _discard(scratch, path)
        os.close(lock)


def replace_folder(made: str, path: str, scratch: str) -> None:
    """Rename `made` to `path`. A folder that is there is moved into the scratch folder `scratch` first.

    Between the two renames there is no `path`. If the process ends there, by a fault, an interrupt or a kill, the old
    folder is restored when `scratch` is discarded.
    """
    if os.path.lexists(path):
        os.rename(path, os.path.join(scratch, OLD))
    os.rename(made, path)


def sweep(path: str) -> None:
    """Remove the scratch folders of `path` whose processes are dead, as far as this user may."""
    folder = os.path.dirname(path)
    mine = re.compile(re.escape(_stem(path)) + r"[^.]+" + re.escape(SUFFIX))
    with contextlib.suppress(OSError):
        for name in filter(mine.fullmatch, os.listdir(folder)):
            with contextlib.suppress(OSError):
                _remove_dead(os.path.join(folder, name), path)


def sweep_folder(folder: str) -> None:
    """Remove the scratch folders of dead processes for every output in the folder."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):
            left = re.match(r"\.(.+)\.[^.]+" + re.escape(SUFFIX) + r"\Z", name)
            if left:
                sweep(os.path.join(folder, left.group(1)))


def _remove_dead(scratch: str, path: str) -> None:
    """Remove a dead process's scratch folder. Raise OSError if a living process holds the lock, or there are no
    locks."""
    lock = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _discard(scratch, path)
    finally:
        os.close(lock)


def _discard(scratch: str, path: str) -> None:
    """Remove a scratch folder. If it holds an old folder whose `path` is empty, that is restored first, or kept with
    it."""
    old = os.path.join(scratch, OLD)
    if os.path.lexists(old) and not os.path.lexists(path):
        try:
            os.rename(old, path)
        except OSError:
            return
    shutil.rmtree(scratch, ignore_errors=True)


def _locked_folder(path: str) -> Tuple[str, int]:
    """Make a folder and lock it. Return its path and the descriptor of the lock.

    Before it is locked, another process may take it for that of a dead process and remove it; then another is made.
    """
    while True:
        scratch = tempfile.mkdtemp(SUFFIX, _stem(path), os.path.dirname(path))
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(scratch, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a file system without locks: nothing is swept there
                fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.isdir(scratch):
                return scratch, lock
            os.close(lock)


def _stem(path: str) -> str:
    """Return the prefix of an output's scratch folders, which no other output's have."""
    name = os.path.basename(path)
    encoded = os.fsencode(name)
    return f".{name if len(encoded) <= LONGEST_STEM_BYTES else hashlib.sha256(encoded).hexdigest()}."
