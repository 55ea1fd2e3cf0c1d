"""Writes every output of the project: results, bundles, caches. Standard library only.

A regular file or a folder is made in a scratch folder beside its path and renamed, so readers find the old content or
the new, also after a fault. Links are followed and kept. Pipes and character devices such as /dev/null are written to.
`-` and /dev/stdout are this process's stdout. A folder, disk or socket is rejected in place of a file, and so is a file
that this user may not write.
"""
import contextlib
import errno
import io
import os
import shutil
import stat
import sys
from typing import BinaryIO, Iterator, NamedTuple, Optional, Union

from merino_runtime.errors import MerinoError, machine_fault
from merino_runtime.io.scratch import replace_folder, scratch_beside
from merino_runtime.io.streams import ClosedStdout, write_stream

STDOUT = "-"
NEW = "new"  # in a scratch folder: what is made
MB = 2 ** 20


class Target(NamedTuple):
    """What a path means: a stream of this process, a pipe or device, or else a regular file, there or not."""
    path: str  # links followed
    stream: str = ""  # `stdout`, `stderr`
    special: bool = False  # a pipe or a character device
    before: Optional[os.stat_result] = None  # of the file that is there


def write_output(path: str, data: Union[bytes, str], sync: bool = True) -> None:
    """Make `data`, text in UTF-8, the content of `path`. Raise as `open_output` does."""
    with open_output(path, sync=sync) as file:
        file.write(data.encode("utf-8") if isinstance(data, str) else data)


@contextlib.contextmanager
def open_output(path: str, size_bytes: int = 0, sync: bool = True) -> Iterator[BinaryIO]:
    """Yield a file to write to. What was written becomes the content of `path` if the body succeeds; otherwise `path`
    stays as it was. A pipe or device receives it at once.

    size_bytes: the size, if known; rejected if the disk has less. sync: write it to the disk before the rename; False
    for what can be made again. Raise MerinoError if it cannot be written, and BrokenPipeError if the reader of stdout
    has ended.
    """
    with _raising_faults(path):
        target = target_of(path)
        if target.stream:
            collected = io.BytesIO()
            yield collected
            write_stream(getattr(sys, target.stream), target.stream, collected.getvalue())
        elif target.special:
            with os.fdopen(os.open(target.path, os.O_WRONLY), "wb") as file:
                yield file
        else:
            _check_space(path, os.path.dirname(target.path), size_bytes)
            with scratch_beside(target.path) as scratch:
                made = os.path.join(scratch, NEW)
                with open(made, "xb") as file:
                    yield file
                    if sync:
                        file.flush()
                        os.fsync(file.fileno())
                if target.before:  # keep the mode and, if this user may, the owner
                    os.chmod(made, stat.S_IMODE(target.before.st_mode))
                    with contextlib.suppress(OSError):
                        os.chown(made, target.before.st_uid, target.before.st_gid)
                os.replace(made, target.path)
                if sync:
                    sync_folder(os.path.dirname(target.path))


def write_new(path: str, data: bytes, remedy: str, mode: int = 0o666) -> None:
    """Write the new file `path`: of two processes one succeeds. Raise MerinoError, with `remedy`, if `path` exists, and
    if it cannot be written."""
    with _raising_faults(path), scratch_beside(os.path.abspath(path)) as scratch:
        made = os.path.join(scratch, NEW)
        with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            try:
                os.link(made, path)
            except FileExistsError:
                raise
            except OSError:  # a file system without links, as of a card: the name is taken first, then replaced
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
                os.replace(made, path)
        except FileExistsError as error:
            raise MerinoError(f"{path} is there, and {remedy}") from error
        sync_folder(os.path.dirname(os.path.abspath(path)))


def append_output(path: str, text: str) -> None:
    """Append whole lines and sync the file. If its last line has no end, as after a power cut, they start on a new
    line. Raise as `open_output` does."""
    with _raising_faults(path):
        target = target_of(path)
        if target.stream or target.special:
            write_output(path, text)
            return
        try:
            with open(target.path, "ab+") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(0, end - 1))
                torn = file.read(1) not in (b"", b"\n")
                file.write(("\n" * torn + text).encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            if not target.before:  # what a full disk leaves of a new file
                with contextlib.suppress(OSError):
                    if os.path.getsize(target.path) == 0:
                        os.unlink(target.path)
            raise


@contextlib.contextmanager
def new_folder(path: str, size_bytes: int = 0) -> Iterator[str]:
    """Yield an empty folder to fill. It replaces `path`, a folder or nothing, if the body succeeds; otherwise `path`
    stays as it was. The caller decides what may be replaced. Raise MerinoError if it cannot be written."""
    with _raising_faults(path):
        target = os.path.realpath(path)
        _check_space(path, os.path.dirname(target), size_bytes)
        with scratch_beside(target) as scratch:
            made = os.path.join(scratch, NEW)
            os.mkdir(made)
            yield made
            for inner, _, names in os.walk(made):
                for name in names:
                    with open(os.path.join(inner, name), "rb+") as file:
                        os.fsync(file.fileno())
            replace_folder(made, target, scratch)
            sync_folder(os.path.dirname(target))


def replace_link(path: str, target: str) -> None:
    """Make `path` a symbolic link with this target, in place of the link or file that is there: readers find the old
    one or the new one. Raise MerinoError if it cannot be made."""
    with _raising_faults(path), scratch_beside(os.path.abspath(path)) as scratch:
        made = os.path.join(scratch, NEW)
        os.symlink(target, made)
        os.replace(made, path)
        sync_folder(os.path.dirname(os.path.abspath(path)))


def move_folder(made: str, path: str) -> None:
    """Rename a folder to a path that does not exist, in the same file system. Its files were synced when they were
    written. Raise MerinoError if that fails."""
    with _raising_faults(path):
        os.rename(made, path)
        sync_folder(os.path.dirname(os.path.abspath(path)))


@contextlib.contextmanager
def scratch_folder(path: str) -> Iterator[str]:
    """Yield a temporary folder beside `path`, which is removed afterwards. Raise MerinoError if none can be made."""
    with contextlib.ExitStack() as stack:
        with _raising_faults(path):
            scratch = stack.enter_context(scratch_beside(os.path.realpath(path)))
        yield scratch


def check_output(path: str) -> None:
    """Raise MerinoError if the file `path` cannot be written, before the work whose result it receives."""
    with _raising_faults(path):
        target = target_of(path)
        if target.special and not os.access(target.path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    if not target.stream and not target.special:
        check_room(path, os.path.dirname(target.path))


def check_room(path: str, folder: str, size_bytes: int = 0) -> None:
    """Raise MerinoError if nothing can be made in `folder`, or if it has less space. path: what the message names."""
    with _raising_faults(path), scratch_beside(os.path.join(folder, os.path.basename(path))):
        _check_space(path, folder, size_bytes)


def is_stdout(path: str) -> bool:
    """Return whether the path is `-`, or what this process's stdout is, as /dev/stdout."""
    return _stream_of(path) == "stdout"


def target_of(path: str) -> Target:
    """Return what a path means. Raise MerinoError if no file can be written to it, OSError if it cannot be followed."""
    stream = _stream_of(path)
    if stream:
        return Target(path, stream=stream)
    if os.path.basename(path) in ("", os.curdir, os.pardir):
        raise MerinoError(f"cannot write {path!r}: it names a folder. Name a file.")
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return Target(os.path.realpath(path))
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        raise MerinoError(f"cannot write {path}: it is a folder. Name a file in it, or another path.")
    if kind not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFCHR):
        raise MerinoError(f"cannot write {path}: it is a disk or a socket. Name a file.")
    if kind == stat.S_IFREG:
        os.close(os.open(path, os.O_WRONLY))  # whether this user may write it, which a rename would not check
    return Target(os.path.realpath(path), special=kind != stat.S_IFREG, before=status)


def _stream_of(path: str) -> str:
    """Return `stdout`, `stderr`, or an empty string. A stream is recognized by its file: with `> FILE`, /dev/stdout is
    FILE, and opening it a second time would overwrite what was printed."""
    if path == STDOUT:
        return "stdout"
    for number, name in ((1, "stdout"), (2, "stderr")):
        with contextlib.suppress(OSError, ValueError):
            closed = isinstance(getattr(sys, name), (ClosedStdout, type(None)))
            if not closed and os.path.samestat(os.stat(path), os.fstat(number)):
                return name
    return ""


@contextlib.contextmanager
def _raising_faults(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _stream_of(path):
            raise
        raise machine_fault(f"write {path}", error) from error


def _check_space(path: str, folder: str, size_bytes: int) -> None:
    free = shutil.disk_usage(folder).free if size_bytes else 0
    if free < size_bytes:
        raise MerinoError(f"cannot write {path}: {size_bytes / MB:.1f} MB are needed and {free / MB:.1f} MB are free "
                          "there. Free space on that disk, or name a path on another one.")


def sync_folder(folder: str) -> None:
    """Sync a folder, so that a rename outlives a power cut. Some file systems reject it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
