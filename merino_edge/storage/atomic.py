"""Atomic writes: a file or folder is made beside its target and renamed over it, so nothing is ever half written."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from merino_runtime.errors import MerinoError


def cache_folder() -> Path:
    """This user's folder for results that can be computed again; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "merino_edge"


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8, or leave everything as it was.

    The text is on the disk before the rename. Raises MerinoError where the folder cannot be written.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise MerinoError(f"cannot write {path}: {error.strerror or error}. Choose another path") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """Yields an empty folder beside `path`. It is renamed to `path` when the body succeeds, and removed when it fails.

    An existing `path` is replaced only where it is empty or `replaceable` accepts it. Raises MerinoError where `path`
    holds anything else, or cannot be written.
    """
    check_target(path, replaceable)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise MerinoError(f"cannot write {path}: {error.strerror or error}. Choose another path") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            os.rename(path, old / path.name)
            os.rename(temporary, path)
            shutil.rmtree(old)
        else:
            os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_target(path: Path, replaceable: Callable[[Path], bool]) -> None:
    """Raises MerinoError where `path` is a file, or a folder of other content that `replaceable` does not accept."""
    if not path.exists():
        return
    if not path.is_dir():
        raise MerinoError(f"{path} is a file, a folder is to be written: choose another -o")
    if any(path.iterdir()) and not replaceable(path):
        raise MerinoError(f"{path} holds other files, which are not replaced: choose another -o, or empty it first")
