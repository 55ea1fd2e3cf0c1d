"""Checks the files that a graph reads its weights from, as model.onnx names them. Standard library only.

Older versions of ONNX Runtime open any path that a graph names, even outside its folder. So the names are compared with
bundle.json before a backend reads the graph. `bundle.check_files` checks the files that bundle.json lists.
"""
import mmap
import os
from typing import Any, Dict, List, Set, Tuple

from merino_runtime.bundle import Bundle
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_shape import listed, shown

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
