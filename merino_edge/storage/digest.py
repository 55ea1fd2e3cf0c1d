"""Digests that tell whether a kept file can be used again: of the exporter's code, and of a source."""

import hashlib
from pathlib import Path

import merino_edge

ROOMS = ("families", "export", "bundles", "prediction")  # their files decide what a bundle's folder holds
DIGEST_DIGITS = 12


def exporter_digest() -> str:
    """Return the first digits of a SHA-256 over the files that decide a bundle's graph, weights and description."""
    root, digest = Path(merino_edge.__file__).parent, hashlib.sha256()
    paths = (path for room in ROOMS for path in (root / room).rglob("*"))
    for path in sorted(path for path in paths if path.suffix in (".py", ".toml", ".txt")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:DIGEST_DIGITS]


def content_digest(path: Path) -> str:
    """Return a SHA-256 over a file, or over names and contents of all files in a folder."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file()):
        with file.open("rb") as opened:
            digest.update(f"{file.relative_to(path)}\n".encode() + hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
