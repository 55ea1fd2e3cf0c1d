"""The files of a bundle's folder by name, size and hash. `description` documents their meaning."""

from pathlib import Path
from typing import Any

from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json

DESCRIPTION_FILE = "bundle.json"
TOKENIZER_FILE = "tokenizer.json"
APP_FILE = "merino.pyz"


def is_bundle(folder: Path) -> bool:
    """Whether `folder` holds a bundle's description, valid or not."""
    return (folder / DESCRIPTION_FILE).is_file()


def is_bundle_alone(folder: Path) -> bool:
    """Whether `folder` holds a bundle's files and no others, so that another bundle may take its place."""
    files = described(folder).get("files")
    parts = [file.get("path") for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    listed = {path for path in parts if isinstance(path, str)}
    return is_bundle(folder) and {path.name for path in folder.iterdir()} <= listed | {DESCRIPTION_FILE, APP_FILE}


def described(folder: Path) -> dict[str, Any]:
    """bundle.json as it is, of any schema; nothing where it cannot be read."""
    try:
        description = read_json(str(folder / DESCRIPTION_FILE), "")
    except MerinoError:
        return {}
    return description if isinstance(description, dict) else {}


def bundle_bytes(folder: Path) -> int:
    """Bytes of all files in the bundle's folder, bundle.json and merino.pyz included."""
    return sum(path.stat().st_size for path in folder.iterdir())
