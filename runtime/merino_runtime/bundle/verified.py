"""Stamps bundles whose hashes were right, so that a start need not hash their files again.

Hashing 136 MB takes seconds on a Raspberry Pi Zero 2 W. A stamp holds for each file what a write changes: size, inode,
and the times of the last change of contents and of inode (docs/formats.md). The user's cache has one per folder of a
bundle; `install`, which hashes files while it writes them, puts one beside the bundle. If a stamp cannot be read or
written, the files are hashed.
"""
import contextlib
import hashlib
import json
import os
import time
from typing import Any, Dict, List, Optional

from merino_runtime.bundle import Bundle, check_files
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json
from merino_runtime.io.outputs import write_output

SCHEMA = 1
BESIDE = "verified.json"  # beside the bundle of an installed release
# File systems keep times in steps, FAT in 2 s: what changed so shortly before the hashing could change again unnoticed.
LEAST_AGE_NS = 3 * 10 ** 9


def check_files_once(bundle: Bundle) -> None:
    """Hash the files unless the stamp shows that they are unchanged. Raise MerinoError if one is missing or damaged."""
    check_files(bundle, hashes=False)
    state = _state(bundle)
    if all(_stamped(path) != state for path in (_path(bundle), _path_beside(bundle))):
        check_and_stamp(bundle)


def check_and_stamp(bundle: Bundle) -> None:
    """Hash the files in any case. Raise MerinoError if one is missing or damaged."""
    before, now_ns = _state(bundle), time.time() * 10 ** 9
    check_files(bundle)
    youngest_ns = max((max(file["mtime_ns"], file["ctime_ns"]) for file in before), default=0)
    if youngest_ns + LEAST_AGE_NS < now_ns and _state(bundle) == before:
        with contextlib.suppress(OSError, MerinoError):
            os.makedirs(os.path.dirname(_path(bundle)), exist_ok=True)
            _write_stamp(_path(bundle), before)


def stamp_beside(bundle: Bundle) -> None:
    """Write a stamp beside the bundle. The caller hashed the files while writing them, in a folder that nobody else
    knows of, so no age is required. A rename of the folder changes nothing that a stamp holds."""
    _write_stamp(_path_beside(bundle), _state(bundle))


def _write_stamp(path: str, state: List[Dict[str, Any]]) -> None:
    write_output(path, json.dumps({"schema": SCHEMA, "files": state}), sync=False)


def _state(bundle: Bundle) -> List[Dict[str, Any]]:
    """Return what a write would change, and what bundle.json expects. The caller reports absent files."""
    states = []
    for file in bundle.files:
        try:
            status = os.stat(os.path.join(bundle.folder, file.path))
        except OSError:
            continue
        states.append({"path": file.path, "sha256": file.sha256, "bytes": status.st_size, "inode": status.st_ino,
                       "device": status.st_dev, "mtime_ns": status.st_mtime_ns, "ctime_ns": status.st_ctime_ns})
    return states


def _stamped(path: str) -> Optional[List[Dict[str, Any]]]:
    try:
        stamp = read_json(path, "It is written again.")
    except MerinoError:
        return None
    return stamp.get("files") if isinstance(stamp, dict) and stamp.get("schema") == SCHEMA else None


def _path_beside(bundle: Bundle) -> str:
    return os.path.join(os.path.dirname(os.path.realpath(bundle.folder)), BESIDE)


def _path(bundle: Bundle) -> str:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    name = hashlib.sha256(os.fsencode(os.path.realpath(bundle.folder))).hexdigest()[:16]
    return os.path.join(cache, "merino", "verified", name + ".json")
