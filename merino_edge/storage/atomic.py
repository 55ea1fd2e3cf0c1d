"""Writing files so that nothing is ever half written: beside the target first, then renamed over it."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from merino_runtime.errors import MerinoError


def cache_folder() -> Path:
    """Where this user keeps what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "merino_edge"


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`, or leave it as it was. Raises MerinoError where the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except OSError as error:
        raise MerinoError(f"cannot write {path}: {error.strerror or error}. Choose another -o") from error


@contextmanager
def new_folder(path: Path, replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """A folder beside `path` to fill; it takes `path`'s place when the body ends well, else it is removed.

    An existing `path` is replaced only if it is empty or `replaceable` says that it is one of ours.
    """
    check_target(path, replaceable)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise MerinoError(f"cannot write {path}: {error.strerror or error}. Choose another -o") from error
    try:
        yield beside
        beside.chmod(0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            os.rename(path, old / path.name)
            os.rename(beside, path)
            shutil.rmtree(old)
        else:
            os.rename(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def check_target(path: Path, replaceable: Callable[[Path], bool]) -> None:
    """Raise MerinoError where `path` holds something that is not ours to replace."""
    if not path.exists():
        return
    if not path.is_dir():
        raise MerinoError(f"{path} is a file, a folder is to be written: choose another -o")
    if any(path.iterdir()) and not replaceable(path):
        raise MerinoError(f"{path} holds other files, which are not replaced: choose another -o, or empty it first")
