"""Which files are GGUF. Imports nothing of the package gguf, so that other sources do not wait for it."""

from pathlib import Path

MAGIC = b"GGUF"


def is_gguf(path: Path) -> bool:
    """Return whether a file begins like a GGUF, or is named as one."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC or path.suffix == ".gguf"
    except OSError:
        return path.suffix == ".gguf"
