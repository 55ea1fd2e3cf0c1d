"""Write outputs of the workstation's commands through `merino_runtime.io.outputs`: missing folders are made, inputs are
kept.

That module documents how an output replaces a file, and what happens if it cannot be written.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from merino_runtime.errors import MerinoError, machine_fault
from merino_runtime.io import outputs


def cache_folder() -> Path:
    """Return this user's folder for results that can be computed again; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "merino_edge"


def write_text(path: Path, text: str) -> None:
    """Make `text`, in UTF-8, the content of `path`, or leave everything as it was.

    Raise MerinoError if it cannot be written.
    """
    with parents_made(path):
        outputs.write_output(str(path), text)


def append_lines(path: Path, text: str) -> None:
    """Append whole lines to `path`. Raise MerinoError if that fails."""
    with parents_made(path):
        outputs.append_output(str(path), text)


@contextmanager
def new_folder(path: Path, replaceable: Callable[[Path], bool], size_bytes: int = 0) -> Iterator[Path]:
    """Yield an empty folder. It replaces `path` if the body succeeds, and is removed if it fails.

    An existing `path` is replaced only if it is empty or `replaceable` accepts it. `size_bytes`: its expected size, if
    known. Raise MerinoError if `path` holds anything else, or cannot be written.
    """
    check_folder(path, replaceable)
    with parents_made(path), outputs.new_folder(str(path), size_bytes) as made:
        yield Path(made)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`, removed at the end. Those of killed processes are removed first."""
    make_parent(path)
    with outputs.scratch_folder(str(path)) as place:
        yield Path(place)


def check_file(path: Path) -> None:
    """Raise MerinoError if the file `path` could not be written. To be called before the work whose result it holds."""
    if path.parent.is_dir():
        outputs.check_output(str(path))
    else:
        outputs.check_room(str(path), str(existing_parent(path)))


def check_folder(path: Path, replaceable: Callable[[Path], bool], size_bytes: int = 0) -> None:
    """Raise MerinoError if `path` could not be written: it is a file, or a folder of other content that `replaceable`
    does not accept, or there is no space for `size_bytes`."""
    if str(path) == outputs.STDOUT:
        raise MerinoError("-o - is stdout, a folder is to be written: choose another -o")
    if path.exists():
        if not path.is_dir():
            raise MerinoError(f"{path} is a file, a folder is to be written: choose another -o")
        if any(path.iterdir()) and not replaceable(path):
            raise MerinoError(f"{path} holds other files, which are not replaced: choose another -o, or empty it first")
    real = Path(os.path.realpath(path))
    if real.is_symlink():
        raise MerinoError(f"{path} is a link whose links lead in a circle: choose another -o")
    outputs.check_room(str(path), str(existing_parent(real)), size_bytes)


def check_keeps(out: Path, inputs: Iterable[Path], option: str = "-o") -> None:
    """Raise MerinoError if writing `out`, a file or folder, would destroy an input: it is one, or holds one."""
    if not (out.is_file() or out.is_dir()):
        return
    for path in inputs:
        if path.exists() and (out.samefile(path) or out.resolve() in path.resolve().parents):
            raise MerinoError(f"{option} {out} would replace the input {path}: choose another {option}")


def existing_parent(path: Path) -> Path:
    """Return the nearest folder above `path` that exists."""
    return next(parent for parent in path.absolute().parents if parent.exists())


@contextmanager
def parents_made(path: Path) -> Iterator[None]:
    """Make the folders above `path`, for an output; remove those that were missing if the body fails."""
    missing = [parent for parent in path.absolute().parents if not parent.exists()]  # the nearest first
    try:
        make_parent(path)
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # another process has put something into it
                folder.rmdir()
        raise


def make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise machine_fault(f"write {path}", error) from error
