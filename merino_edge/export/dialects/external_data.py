"""Storage of an ONNX graph's constants: small ones inside the model, large ones in the data file beside it.

Each large constant begins at a page of the data file, so that it can be mapped. Constants that share memory (an
embedding and its slices, one matrix under two shapes) share their bytes in the file too.
"""

import math
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from onnx import TensorProto, helper, numpy_helper

DATA_FILE = "model.onnx.data"
INLINE_BYTES = 1024  # a smaller constant is stored inside the model
PAGE = 4096
WRITE_BYTES = 64 << 10  # one large write makes newer Linux kernels cache the file in pages of 2 MB


class Deferred(NamedTuple):
    """A constant that is computed when it is written, and not kept: one at a time is in memory."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class DataFile:
    """The data file while it is written. Without `file` only its length is counted, and no value is computed."""

    def __init__(self, file: BinaryIO | None = None):
        self._file = file
        self._stored: list[tuple[int, int, int]] = []  # address in memory, bytes, offset in the file
        self.length = 0

    def place(self, value: np.ndarray | Deferred) -> int:
        """Return the offset of the value's bytes, which are appended if the file does not hold them yet."""
        if isinstance(value, np.ndarray):
            begin, end = value.ctypes.data, value.ctypes.data + value.nbytes
            for address, nbytes, offset in self._stored:
                if address <= begin and end <= address + nbytes and value.flags.c_contiguous:
                    return offset + begin - address
        offset = self.length + -self.length % PAGE
        if isinstance(value, np.ndarray):
            self._stored.append((value.ctypes.data, value.nbytes, offset))
        if self._file is not None:
            self._file.write(bytes(offset - self.length))
            array = np.ascontiguousarray(value.make() if isinstance(value, Deferred) else value)
            flat = array.reshape(-1).view(np.uint8)
            for start in range(0, flat.size, WRITE_BYTES):
                self._file.write(flat[start : start + WRITE_BYTES].data)
        self.length = offset + value.nbytes
        return offset


def store(name: str, value: np.ndarray | Deferred, data: DataFile) -> TensorProto:
    """Return the constant `name` as the graph refers to it, and store its bytes in `data` if it is large."""
    if value.nbytes < INLINE_BYTES:
        return numpy_helper.from_array(value.make() if isinstance(value, Deferred) else value, name)
    offset = data.place(value)
    tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(value.dtype), dims=value.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", DATA_FILE), ("offset", str(offset)), ("length", str(value.nbytes))):
        tensor.external_data.add(key=key, value=text)
    return tensor
