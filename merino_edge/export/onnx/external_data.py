"""Storage of an ONNX graph's constants: small ones inside the model, large ones in the data file beside it.

Each large constant begins at a page of the data file, so that it can be mapped. Constants that share memory (an
embedding and its slices, one matrix under two shapes) share their bytes in the file too.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from onnx import TensorProto, helper, numpy_helper

DATA_FILE = "model.onnx.data"
INLINE_BYTES = 1024  # a smaller constant is stored inside the model
PAGE = 4096
PIECE_BYTES = 64 << 10  # of the data file, written at once


class DataFile(Protocol):
    """A file open for writing, or a counter of bytes where only the layout is needed."""

    def tell(self) -> int: ...

    def write(self, data: bytes | memoryview, /) -> int: ...


class Deferred(NamedTuple):
    """A constant that is computed when it is written, and not kept: one at a time is in memory."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Stored(NamedTuple):
    """An array in memory and where the data file holds its bytes."""

    address: int
    nbytes: int
    offset: int


def store(name: str, value: np.ndarray | Deferred, data: DataFile, stored: list[Stored]) -> TensorProto:
    """The constant `name` as the graph refers to it; its bytes are appended to `data` where they are not there yet.

    `stored` lists the arrays that `data` holds, by their address in memory, and grows by this one: another shape of
    the same memory, or a part of it, gets the offset of the bytes that are there.
    """
    if value.nbytes < INLINE_BYTES:
        return numpy_helper.from_array(value.make() if isinstance(value, Deferred) else value, name)
    offset = None if isinstance(value, Deferred) else stored_offset(value, stored)
    if offset is None:
        data.write(b"\0" * (-data.tell() % PAGE))
        offset = data.tell()
        if isinstance(value, Deferred):
            write_in_pieces(np.ascontiguousarray(value.make()), data)
        else:
            stored.append(Stored(value.ctypes.data, value.nbytes, offset))
            write_in_pieces(np.ascontiguousarray(value), data)
    tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(value.dtype), dims=value.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", DATA_FILE), ("offset", str(offset)), ("length", str(value.nbytes))):
        tensor.external_data.add(key=key, value=text)
    return tensor


def write_in_pieces(value: np.ndarray, data: DataFile) -> None:
    """Append a contiguous array in writes of 64 KB.

    One large write makes newer Linux kernels cache the file in pages of 2 MB. A process that maps the file and reads
    one row of a table then holds a whole such page in memory.
    """
    flat = value.reshape(-1).view(np.uint8)
    for start in range(0, flat.size, PIECE_BYTES):
        data.write(flat[start : start + PIECE_BYTES].data)


def stored_offset(value: np.ndarray, stored: list[Stored]) -> int | None:
    """Offset of the array's bytes in the data file; None where they are not stored, or where the array has gaps."""
    begin, end = value.ctypes.data, value.ctypes.data + value.nbytes
    for array in stored:
        if array.address <= begin and end <= array.address + array.nbytes and value.flags.c_contiguous:
            return array.offset + begin - array.address
    return None
