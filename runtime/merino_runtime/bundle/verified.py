"""Checks of a bundle's files before a backend opens them: their hashes, once, and the files that the graph names.

Bundles whose hashes were right get a stamp, so that a start need not hash their files again: hashing 136 MB takes
seconds on a Raspberry Pi Zero 2 W. A stamp holds for each file what a write changes: size, inode, and the times of the
last change of contents and of inode (docs/formats.md). The user's cache has one per folder of a bundle; `install`,
which hashes files while it writes them, puts one beside the bundle. If a stamp cannot be read or written, the files are
hashed.

Older versions of ONNX Runtime open any path that a graph names, even outside its folder. So the names in model.onnx are
compared with bundle.json. `bundle.check_files` checks the files that bundle.json lists. Standard library only.
"""
import contextlib
import hashlib
import json
import mmap
import os
import time
from typing import Any, Dict, List, Optional, Set, Tuple

from merino_runtime.bundle import Bundle, check_files
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json
from merino_runtime.io.json_shape import listed, shown
from merino_runtime.io.outputs import write_output

SCHEMA = 1
BESIDE = "verified.json"  # beside the bundle of an installed release
# File systems keep times in steps, FAT in 2 s: what changed so shortly before the hashing could change again unnoticed.
LEAST_AGE_NS = 3 * 10 ** 9
# Of each message in onnx.proto that can hold a tensor: those fields, by number, and the messages in them.
INNER: Dict[str, Dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {5: "TensorProto", 6: "GraphProto", 10: "TensorProto", 11: "GraphProto",
                       22: "SparseTensorProto", 23: "SparseTensorProto"},
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
    "StringStringEntryProto": {},
}
KEY, VALUE = 1, 2  # of a StringStringEntryProto
VARINT, LENGTH, FIXED_BYTES = 0, 2, {1: 8, 5: 4}  # wire types


def check_files_once(bundle: Bundle) -> None:
    """Hash the files of a loaded bundle unless the stamp shows that they are unchanged. Raise MerinoError if one is
    missing or damaged."""
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


def check_external_data(bundle: Bundle) -> None:
    """Raise MerinoError if the graph reads weights from a file that bundle.json does not list."""
    path = os.path.join(bundle.folder, "model.onnx")
    unlisted = sorted(external_files(path) - {file.path for file in bundle.files})
    if unlisted:
        raise MerinoError(f"{path} reads weights from {listed([shown(name) for name in unlisted])}, which bundle.json "
                          "does not list: the graph is not opened. Export the bundle again.")


def external_files(path: str) -> Set[str]:
    """Return the location of each tensor of the model that has external data. Raise MerinoError for another file."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _locations(data)
    except (OSError, ValueError, IndexError) as error:
        raise MerinoError(f"{path} cannot be read as an ONNX model: {error}. Copy or export the bundle again."
                          ) from error


def _locations(data: Any) -> Set[str]:
    locations = set()
    messages: List[Tuple[str, int, int]] = [("ModelProto", 0, len(data))]
    while messages:
        kind, at, end = messages.pop()
        inner, entry = INNER[kind], {}
        while at < end:
            tag, at = _varint(data, at)
            number, wire, after = tag >> 3, tag & 7, at
            if tag >= 2 ** 32:  # protobuf drops the upper bits, and would read another field
                raise ValueError("the number of a field is too large")
            if wire == VARINT:
                _, after = _varint(data, at)
            elif wire == LENGTH:
                size, at = _varint(data, at)
                after = at + size
            elif wire in FIXED_BYTES:
                after = at + FIXED_BYTES[wire]
            else:
                raise ValueError("it has a group")
            if after > end:
                raise ValueError("a field ends behind its message")
            if wire == LENGTH and number in inner:
                messages.append((inner[number], at, after))
            elif wire == LENGTH and not inner:
                entry[number] = data[at:after]
            at = after
        if entry.get(KEY) == b"location":
            locations.add(entry.get(VALUE, b"").decode("utf-8"))
    return locations


def _varint(data: Any, at: int) -> Tuple[int, int]:
    """Return the number at `at`, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than 64 bits")
