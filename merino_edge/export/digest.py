"""Digests that tell whether an export can be used again: of the exporter, and of a source."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import merino_edge

ROOMS = ("families", "export", "bundles")  # their sources decide what a bundle's folder holds
DIGEST_DIGITS = 12


def exporter_digest() -> str:
    """Return a digest of the sources that decide a bundle's graph, weights and description."""
    root = Path(merino_edge.__file__).parent
    return digest_of([root / room for room in ROOMS])


def digest_of(folders: Sequence[Path]) -> str:
    """Return the first digits of a SHA-256 over names and contents of all Python and TOML files in `folders`."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".py", ".toml"):
                content = path.read_bytes()
                digest.update(f"{folder.name}/{path.relative_to(folder).as_posix()} {len(content)}\n".encode())
                digest.update(content)
    return digest.hexdigest()[:DIGEST_DIGITS]


def content_digest(path: Path) -> str:
    """Return a SHA-256 over a file, or over names and contents of all files in a folder."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file()):
        with file.open("rb") as opened:
            digest.update(f"{file.relative_to(path)}\n".encode() + hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
