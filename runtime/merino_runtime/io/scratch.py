"""Scratch folders: beside an output, locked while their process lives, removed with what is in them at its end.

A process that is killed leaves its folder. The next one for the same output removes those that nobody holds a lock of:
the kernel gives a lock up when its process ends, however it ends. Standard library only.
"""
import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from typing import Iterator, Optional, Tuple

try:
    import fcntl
except ImportError:  # Windows: nothing is locked and nothing is swept
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".merino-new"
OLD = "old"  # in a scratch folder: what its output took the place of
LONGEST_STEM_BYTES = 200  # a name has at most 255


@contextlib.contextmanager
def scratch_beside(path: str) -> Iterator[str]:
    """path: of the output, links followed. Raises OSError where its folder cannot be written."""
    sweep(path)
    scratch, lock = _locked_folder(path)
    try:
        yield scratch
    finally:
        _discard(scratch, path)
        if lock is not None:
            os.close(lock)


def replace_folder(made: str, path: str, scratch: str) -> None:
    """Renames `made` to `path`, whose folder, if there is one, is moved into the scratch folder `scratch`.

    Between two renames there is no `path`. Where it ends there, by a fault, an interrupt or a kill, the old folder is
    put back when `scratch` is discarded.
    """
    if os.path.lexists(path):
        os.rename(path, os.path.join(scratch, OLD))
    os.rename(made, path)


def sweep(path: str) -> None:
    """Removes the scratch folders of `path` whose processes are dead, as far as this user may."""
    if fcntl is None:
        return
    folder = os.path.dirname(path)
    mine = re.compile(re.escape(_stem(path)) + r"[^.]+" + re.escape(SUFFIX))
    with contextlib.suppress(OSError):
        for name in filter(mine.fullmatch, os.listdir(folder)):
            with contextlib.suppress(OSError):
                _remove_dead(os.path.join(folder, name), path)


def sweep_folder(folder: str) -> None:
    """The same for all that was being written in the folder."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):
            left = re.match(r"\.(.+)\.[^.]+" + re.escape(SUFFIX) + r"\Z", name)
            if left:
                sweep(os.path.join(folder, left.group(1)))


def _remove_dead(scratch: str, path: str) -> None:
    """Raises OSError where a living process holds the lock, or there are no locks."""
    lock = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _discard(scratch, path)
    finally:
        os.close(lock)


def _discard(scratch: str, path: str) -> None:
    """Removes a scratch folder. An old folder in it whose `path` is empty is put back first, or kept with it."""
    old = os.path.join(scratch, OLD)
    if os.path.lexists(old) and not os.path.lexists(path):
        try:
            os.rename(old, path)
        except OSError:
            return
    shutil.rmtree(scratch, ignore_errors=True)


def _locked_folder(path: str) -> Tuple[str, Optional[int]]:
    """-> (a new folder, the descriptor that holds its lock; None where the system has none).

    Another process may take it for a dead one's before it is locked. Then it is gone, and another is made.
    """
    while True:
        scratch = tempfile.mkdtemp(SUFFIX, _stem(path), os.path.dirname(path))
        if fcntl is None:
            return scratch, None
        lock = _lock_of(scratch)
        if lock is not None and os.path.isdir(scratch):
            return scratch, lock
        if lock is not None:
            os.close(lock)


def _lock_of(scratch: str) -> Optional[int]:
    """Waits for the lock. None where the folder is gone."""
    try:
        lock = os.open(scratch, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):  # a file system without locks: nothing is swept there
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _stem(path: str) -> str:
    """Begins the names of an output's scratch folders and of no other output's."""
    name = os.path.basename(path)
    encoded = os.fsencode(name)
    return f".{name if len(encoded) <= LONGEST_STEM_BYTES else hashlib.sha256(encoded).hexdigest()}."
