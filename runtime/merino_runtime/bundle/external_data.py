"""The files that a graph reads its weights from, as model.onnx names them. Standard library only.

Older versions of ONNX Runtime open any path that a graph names, outside of its folder too. So the runtime reads the
names before it opens a session, and `bundle` compares them with bundle.json.
"""
import mmap
from typing import Any, Set, Tuple

from merino_runtime.errors import MerinoError

# Of each message in onnx.proto that can hold a tensor: those fields, by number, and the messages in them.
INNER = {
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
}  # type: Dict[str, Dict[int, str]]
KEY, VALUE = 1, 2  # of a StringStringEntryProto
VARINT, LENGTH, FIXED_BYTES = 0, 2, {1: 8, 5: 4}  # wire types


def external_files(path: str) -> Set[str]:
    """Return the location of each tensor of the model that has external data. Raise MerinoError for another file."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _locations(data)
    except (OSError, ValueError, IndexError) as error:
        raise MerinoError(f"{path} cannot be read as an ONNX model: {error}. Copy or export the bundle again.") from error


def _locations(data: Any) -> Set[str]:
    found = set()
    messages = [("ModelProto", 0, len(data))]  # type: List[Tuple[str, int, int]]
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
            found.add(entry.get(VALUE, b"").decode("utf-8", "backslashreplace"))
    return found


def _varint(data: Any, at: int) -> Tuple[int, int]:
    """-> (the number, where it ends)."""
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
