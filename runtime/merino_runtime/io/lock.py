"""Who may change a folder: locks for commands and releases in use, and the rule on files of other users.

Locks use `flock`, which the kernel releases when a process ends, however it ends. Standard library only.
"""
import contextlib
import errno
import fcntl
import os
import stat
import time
from typing import Iterator

from merino_runtime.errors import MerinoError, machine_fault

LOCK = "lock"


@contextlib.contextmanager
def locked(root: str, doing: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of the existing folder ROOT while the body runs. doing: the verb, for the refusal of another
    command. wait_s: how long to wait for another command. Raise MerinoError if another command holds the lock, or if
    ROOT cannot be written.

    The file is this user's alone, because anyone who can open it can hold the lock; a link in its place is rejected.
    """
    with raising_machine_faults("lock " + root):
        handle = os.open(os.path.join(root, LOCK), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        with raising_machine_faults("lock " + root):
            waited_s = 0.0
            while not _lock(handle):
                if waited_s >= wait_s:
                    holder = os.pread(handle, 200, 0).decode("ascii", "replace") or "unknown"
                    raise MerinoError(f"{root} is being changed by another command ({holder}). Wait for its end, then "
                                      "run this again.")
                time.sleep(0.2)
                waited_s += 0.2
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()}, {doing}".encode("ascii"), 0)
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """Try to lock an open file or folder for this process alone. Return whether that succeeded."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def hold(folder: str) -> None:
    """Keep the release's folder from being removed until this process ends, unless the file system has no locks."""
    with contextlib.suppress(OSError):
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB)


def in_use(folder: str) -> bool:
    """Return whether a process holds the folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        return not _lock(handle)
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(handle)


@contextlib.contextmanager
def raising_machine_faults(doing: str) -> Iterator[None]:
    """Turn an OSError of the body into a MerinoError. doing: what failed, as in `lock ROOT`."""
    try:
        yield
    except OSError as error:
        raise machine_fault(doing, error) from error


def is_root() -> bool:
    return os.geteuid() == 0


def others_may_write(status: os.stat_result, sticky_allowed: bool = False) -> bool:
    """Return whether a user other than root and this one owns the file or folder, or may write it. sticky_allowed: a
    folder like /tmp counts as protected, because what is this user's in it stays this user's."""
    group = 0 if is_root() else os.getegid()
    writable = status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and status.st_gid not in (0, group))
    sticky = sticky_allowed and status.st_mode & stat.S_ISVTX
    return status.st_uid not in (0, os.geteuid()) or bool(writable and not sticky)
