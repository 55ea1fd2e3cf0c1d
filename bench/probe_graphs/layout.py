"""The dialects with constants that have shapes and places in the data file, but no values.

So the graph of a large decoder is built in milliseconds: memory is reserved for its weights and never touched.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto

from merino_edge.export.onnx.external_data import INLINE_BYTES
from merino_edge.export.onnx.fused import Fused
from merino_edge.export.onnx.graph import Graph
from merino_edge.export.onnx.own_kernels import (
    GROUP_SIZE,
    TILE_ROWS,
    FusedTiles,
    GroupAttention,
    PortableTiles,
    Tiles,
)
from merino_edge.export.onnx.portable import Portable
from merino_edge.export.quantize.groups import Quantized
from merino_edge.families.operators import largest_group


class WithoutValues(Graph):
    """Replaces what a dialect computes of the values of weights by arrays of the same shape."""

    def joined(self, names: Sequence[str]) -> np.ndarray:
        parts = [self.weights[name] for name in names]
        return unset((sum(map(len, parts)), *parts[0].shape[1:]), self.real)

    def real_weight(self, name: str) -> np.ndarray:
        if name not in self._real_weights:
            value = self.weights[name]
            self._real_weights[name] = value if value.dtype == self.real else unset(value.shape, self.real)
        return self._real_weights[name]

    def transposed(self, matrix: np.ndarray) -> np.ndarray:
        return unset(matrix.shape[::-1], matrix.dtype)

    def quantize(self, name: str, matrix: np.ndarray, bits: int) -> Quantized:
        rows, columns = matrix.shape
        block = self.group_of(columns, bits)
        assert block, f"{name}: rows of {columns} cannot be cut into groups"
        codes = unset((rows, columns // block, block * bits // 8), np.uint8)
        return Quantized(codes, unset((rows, columns // block)), bits, block)

    def group_of(self, columns: int, bits: int) -> int | None:  # noqa: ARG002 - some dialects ask for them
        """The group_size of a row of `columns`: the largest that the quantizer would try."""
        return largest_group(columns)

    def signed(self, codes: np.ndarray) -> np.ndarray:
        return unset(codes.shape, np.int8)

    @property
    def takes_batch(self) -> bool:
        """Of whole decoders, as exported. A single operator is timed for one sequence, and its graph shared with the
        other dialects."""
        return any(port.name == "input_ids" for port in self.inputs) and super().takes_batch  # type: ignore[misc]


class FusedLayout(WithoutValues, Fused):
    """Dialect `fused`."""


class GroupsLayout(WithoutValues, GroupAttention):
    """Dialect `fused` with this project's attention by groups."""


class TilesLayout(WithoutValues, Tiles):
    """Matrices in tiles, without minimums."""

    def minimums(self, matrix: Quantized) -> None:  # noqa: ARG002 - random weights have none
        return None

    def tiles(self, name: str, matrix: Quantized, minimums: np.ndarray | None) -> tuple[int, np.ndarray]:  # noqa: ARG002
        rows, columns = len(matrix.codes), matrix.codes.shape[1] * matrix.group_size
        count = TILE_ROWS[matrix.bits]
        tile_bytes = count * (GROUP_SIZE * matrix.bits // 8 + 2)  # codes, and scales of two bytes
        return matrix.bits, unset((-(-rows // count), columns // GROUP_SIZE, tile_bytes), np.uint8)


class FusedTilesLayout(TilesLayout, FusedTiles):
    """Dialect `fused` in int8 and int4 for no-dotprod cores, and for those with AVX-512 VNNI."""


class PortableLayout(WithoutValues, Portable):
    """Dialect `portable`."""

    def group_of(self, columns: int, bits: int) -> int:  # noqa: ARG002
        return columns


class PortableTilesLayout(TilesLayout, PortableTiles):
    """Dialect `portable` in int4."""

    def group_of(self, columns: int, bits: int) -> int | None:
        return columns if bits == 8 else largest_group(columns)


class ByteCounter:
    """A data file of which only the length is kept."""

    def __init__(self) -> None:
        self.length = 0

    def tell(self) -> int:
        return self.length

    def write(self, data: bytes | memoryview, /) -> int:
        self.length += len(data)
        return len(data)


def unset(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """An array whose memory is not touched; ones where it is so small that the model holds its values."""
    array = np.empty(shape, dtype)
    return np.ones(shape, dtype) if array.nbytes < INLINE_BYTES else array


def model_without_weights(graph: Graph) -> tuple[ModelProto, int]:
    """The model, and the length in bytes of the data file that it reads; nothing is written."""
    data = ByteCounter()
    return graph.model(data), data.length
