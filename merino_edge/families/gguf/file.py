"""The structure of a GGUF file: its metadata, and where each tensor lies. Every count, length and offset is checked.

The package `gguf` has a reader too. It trusts the counts in a file, so a file that is cut short or forged ends it in an
error of numpy's, or makes it loop for ever. That package dequantizes the blocks of a tensor (`blocks`). Format: the
page on GGUF in github.com/ggml-org/ggml
"""

import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from merino_edge.families.names import MAGIC
from merino_edge.storage.faults import shortened
from merino_runtime.errors import MerinoError, machine_fault

VERSIONS = (2, 3)
ALIGNMENT = 32  # of tensors, where the file has no other
MOST_KEYS, MOST_TENSORS, MOST_AXES = 65_536, 65_536, 4
LONGEST_KEY = 65_535  # bytes
LONGEST_TEXT = 16 << 20  # bytes of a text in the metadata; chat templates have some thousand
MOST_ENTRIES = 1 << 22  # of all lists in the metadata; published files have 260,000 tokens, and 440,000 merges
LARGEST_HEADER = 256 << 20  # bytes before the first tensor; vocabularies and merges of published files take 15 MB
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
AGAIN = "Download or convert it again"


class TensorPlace(NamedTuple):
    """A tensor in the file. `shape` as numpy has it, the row length last; `offset` from the file's beginning."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class GgufFile(NamedTuple):
    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorPlace]

    def raw(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Return the stored bytes of a tensor's rows, uint8 [rows, bytes of a row]; only these are read."""
        place = self.tensors[name]
        first, last, _ = rows.indices(math.prod(place.shape[:-1]))
        row = place.nbytes // math.prod(place.shape[:-1])
        try:
            data = np.fromfile(self.path, np.uint8, (last - first) * row, offset=place.offset + first * row)
        except OSError as error:
            raise machine_fault(f"read {self.path}", error) from error
        if data.size != (last - first) * row:
            raise MerinoError(f"{self.path} became shorter while it was read: {AGAIN}")
        return data.reshape(last - first, row)


class _FaultError(ValueError):
    """A fault of the file; `open_gguf` adds its path."""


def open_gguf(path: Path) -> GgufFile:
    """Metadata and places of all tensors; no tensor is read.

    Raise MerinoError for a file that cannot be read, is cut short, or contradicts itself.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            metadata, tensors = _header(file, size)
    except _FaultError as error:
        raise MerinoError(f"{path} is no GGUF file that can be read: {error}. {AGAIN}") from error
    except OSError as error:
        raise machine_fault(f"read {path}", error) from error
    return GgufFile(path, metadata, tensors)


class _Bytes:
    """The header's bytes in order. They are read in pieces, as far as they are needed."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size, self.data, self.at = file, size, b"", 0
        self.entries = 0  # of lists, so far

    def take(self, count: int) -> int:
        """Return the place of the next `count` bytes, which are then in `data`."""
        start, self.at = self.at, self.at + count
        if self.at > min(self.size, LARGEST_HEADER):
            raise _FaultError(
                f"it is cut short: it has {self.size:,} bytes, and its header ends beyond"
                if self.at > self.size else f"its header has more than {LARGEST_HEADER >> 20} MB"
            )  # fmt: skip
        if self.at > len(self.data):
            more = max(self.at - len(self.data), min(self.size - len(self.data), max(1 << 16, len(self.data))))
            self.data += self.file.read(more)
            if self.at > len(self.data):
                raise _FaultError("it became shorter while it was read")
        return start

    def number(self, code: str) -> Any:
        start = self.take(struct.calcsize("<" + code))
        return struct.unpack_from("<" + code, self.data, start)[0]

    def text(self, longest: int, what: str) -> str:
        length = self.number("Q")
        if length > longest:
            raise _FaultError(f"{what} has {length:,} bytes, allowed are {longest:,}")
        start = self.take(length)
        try:
            return self.data[start : self.at].decode("utf-8")
        except UnicodeDecodeError:
            raise _FaultError(f"{what} is not UTF-8") from None


def _header(file: BinaryIO, size: int) -> tuple[dict[str, Any], dict[str, TensorPlace]]:
    """Return the metadata, and the tensors by name: behind the header, inside the file, not overlapping."""
    read = _Bytes(file, size)
    if file.read(len(MAGIC)) != MAGIC:
        raise _FaultError("it does not begin with GGUF")
    file.seek(0)
    read.take(len(MAGIC))
    version = read.number("I")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        raise _FaultError(
            "it is big-endian, and little-endian files are read, as gguf_convert_endian.py of llama.cpp writes"
            if swapped in VERSIONS else f"its version is {version}, known are 2 and 3"
        )  # fmt: skip
    tensors, keys = read.number("Q"), read.number("Q")
    for count, most, what in ((tensors, MOST_TENSORS, "tensors"), (keys, MOST_KEYS, "keys")):
        if count > most:
            raise _FaultError(f"its header counts {count:,} {what}, allowed are {most:,}")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        name = read.text(LONGEST_KEY, "a key")
        if name in metadata:
            raise _FaultError(f"it has the key {shortened(repr(name))} twice")
        metadata[name] = _value(read, name)
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        given = shortened(repr(alignment))
        raise _FaultError(f"general.alignment is {given}, allowed is a power of 2 from 8 to {1 << 20}")
    places = [_tensor(read, alignment) for _ in range(tensors)]
    last = begin = -(-read.at // alignment) * alignment
    for place in sorted(places, key=lambda tensor: tensor.offset):
        if begin + place.offset < last:
            raise _FaultError(f"tensor {shortened(repr(place.name))} lies over another")
        last = begin + place.offset + place.nbytes
        if last > size:
            raise _FaultError(
                f"it is cut short: it has {size:,} bytes, and tensor {shortened(repr(place.name))} ends at {last:,}"
            )
    by_name = {place.name: place._replace(offset=begin + place.offset) for place in places}
    if len(by_name) != len(places):
        raise _FaultError("two tensors have one name")
    return metadata, by_name


def _value(read: _Bytes, name: str) -> Any:
    kind = read.number("I")
    if kind == STRING:
        return read.text(LONGEST_TEXT, shortened(repr(name)))
    if kind in SCALARS:
        return read.number(SCALARS[kind])
    if kind != ARRAY:
        raise _FaultError(f"{shortened(repr(name))} has the unknown type {kind}")
    inner, count = read.number("I"), read.number("Q")
    if inner not in SCALARS and inner != STRING:
        raise _FaultError(f"{shortened(repr(name))} is a list of the unknown type {inner}")
    read.entries += count
    if read.entries > MOST_ENTRIES:
        raise _FaultError(
            f"its lists up to {shortened(repr(name))} have {read.entries:,} entries, allowed are {MOST_ENTRIES:,}"
        )
    if inner == STRING:
        return [read.text(LONGEST_TEXT, f"an entry of {shortened(repr(name))}") for _ in range(count)]
    kinds = np.dtype("<" + SCALARS[inner])  # an array takes no more memory than the file
    start = read.take(count * kinds.itemsize)
    return np.frombuffer(read.data, kinds, count, start).copy()


def _tensor(read: _Bytes, alignment: int) -> TensorPlace:
    """Return a tensor with its offset from the first one."""
    name = read.text(LONGEST_KEY, "the name of a tensor")
    shown = f"tensor {shortened(repr(name))}"
    axes = read.number("I")
    if not 1 <= axes <= MOST_AXES:
        raise _FaultError(f"{shown} has {axes} axes, allowed are 1 to {MOST_AXES}")
    shape = tuple(read.number("Q") for _ in range(axes))[::-1]
    number, offset = read.number("I"), read.number("Q")
    try:
        kind = GGMLQuantizationType(number)
        block, nbytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise _FaultError(f"{shown} is of type {number}, which the installed package gguf does not know") from None
    if not all(shape) or math.prod(shape) >= 1 << 53:
        raise _FaultError(f"{shown} has the shape {list(shape)}")
    if shape[-1] % block:
        raise _FaultError(f"{shown} has rows of {shape[-1]} weights, and {kind.name} has blocks of {block}")
    if offset % alignment:
        raise _FaultError(f"{shown} begins at {offset:,}, which is no multiple of {alignment}")
    return TensorPlace(name, kind, shape, offset, math.prod(shape) // block * nbytes)


def checked_value(
    metadata: Mapping[str, Any], key: str, judge: Callable[[Any], bool], allowed: str, default: Any = None
) -> Any:
    """Return a value of the metadata; `default`, where one is given, stands for a missing one.

    Raise MerinoError, with what is `allowed`, where it is missing or `judge` refuses it.
    """
    if key not in metadata and default is not None:
        return default
    value = metadata.get(key)
    if value is None or not judge(value):
        fault = "is missing" if value is None else f"is {shown(value)}"
        raise MerinoError(f"the GGUF's {key} {fault}, allowed is {allowed}")
    return value


def shown(value: Any) -> str:
    """Return a value of the metadata in a message."""
    return shortened(repr(value[:20].tolist() if isinstance(value, np.ndarray) else value))
