"""Locks of a folder that commands change: one command at a time, and a release in use is not removed.

Both are `flock`, which the kernel gives up when a process ends, however it ends. Standard library only.
"""
import contextlib
import errno
import os
import time
from typing import Iterator

from merino_runtime.errors import MerinoError
from merino_runtime.io.machine_faults import machine_fault

try:
    import fcntl
except ImportError:  # Windows: nothing is installed there
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"


@contextlib.contextmanager
def locked(root: str, doing: str, wait_s: float = 0.0) -> Iterator[None]:
    """Holds the lock of an existing ROOT. doing: the verb, which another command's refusal names. wait_s: how long to
    wait for another command. The kernel gives the lock up when the process ends, however it ends. The file is this
    user's alone, since anyone who can open it can hold the lock; a link in its place is refused.

    Raises MerinoError where another command holds it, or ROOT cannot be written.
    """
    path = os.path.join(root, LOCK)
    with raising_machine_faults("lock " + root):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        _take(handle, root, wait_s)
        with raising_machine_faults("lock " + root):
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()}, {doing}".encode("ascii"), 0)
        yield
    finally:
        os.close(handle)


def _take(handle: int, root: str, wait_s: float) -> None:
    waited_s = 0.0
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise machine_fault("lock " + root, error) from error
            if waited_s >= wait_s:
                holder = os.pread(handle, 200, 0).decode("ascii", "replace") or "unknown"
                raise MerinoError(f"{root} is being changed by another command ({holder}). Wait for its end, then run "
                                  "this again.") from error
        time.sleep(0.2)
        waited_s += 0.2


def hold(folder: str) -> None:
    """Keeps the release's folder from being removed until this process ends. Nothing, where the system has no locks."""
    with contextlib.suppress(OSError, AttributeError):
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB)


def in_use(folder: str) -> bool:
    """Whether a process holds the folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    finally:
        os.close(handle)


@contextlib.contextmanager
def raising_machine_faults(doing: str) -> Iterator[None]:
    """What the system refuses becomes a message. doing: what failed, as in `lock ROOT`."""
    try:
        yield
    except OSError as error:
        raise machine_fault(doing, error) from error
