"""Matrices of 4 bits in the layout of this project's own kernels (runtime/kernels/matmul4.h): tiles of eight rows by 32
columns, each with its codes, float16 scales, and float16 minimums where the matrix has any."""

import numpy as np

from merino_edge.export.quantisation.groups import Quantized, dequantize
from merino_runtime.errors import MerinoError

TILE_ROWS, GROUP_SIZE, GROUP_BYTES = 8, 32, 144
LARGEST_HALF = float(np.finfo(np.float16).max)


def tiles4(name: str, matrix: Quantized, minimums: np.ndarray | None = None) -> np.ndarray:
    """uint8 [tiles, columns / 32, 144], or 160 with minimums float32 [rows, groups]; rows are padded with zeros."""
    assert matrix.bits == 4, matrix.bits
    codes = np.stack([matrix.codes & 15, matrix.codes >> 4], -1).reshape(len(matrix.codes), -1, GROUP_SIZE)
    low, high = codes[..., : GROUP_SIZE // 2], codes[..., GROUP_SIZE // 2 :]
    factors = [matrix.scales, *([] if minimums is None else [minimums])]
    of_32 = [np.repeat(values, matrix.group_size // GROUP_SIZE, 1) for values in factors]
    parts = [tiled(low | high << 4), *(tiled(halves(name, values)[..., None]) for values in of_32)]
    return np.ascontiguousarray(np.concatenate(parts, -1))


def minimums_of(matrix: Quantized) -> np.ndarray | None:
    """GGUF minimums of the groups, float32 [rows, groups]: weight = (code - 8) * scale + minimum. None: all are 0."""
    first = dequantize(matrix).reshape(*matrix.scales.shape, -1)[..., 0]
    minimums = first - ((matrix.codes[..., 0] & 15).astype(np.float32) - 8) * matrix.scales
    return minimums if minimums.any() else None


def halves(name: str, values: np.ndarray) -> np.ndarray:
    """The values in float16. Raises MerinoError for values beyond its range."""
    if np.abs(values).max(initial=0) > LARGEST_HALF:
        raise MerinoError(
            f"{name} has groups whose scale is above {LARGEST_HALF:.0f}, which float16 cannot hold: export with"
            " --precision int8"
        )
    return values.astype(np.float16)


def tiled(values: np.ndarray) -> np.ndarray:
    """[rows, groups, n] of any type as bytes [tiles, groups, 8 * n * bytes of one]."""
    rows, groups, _ = values.shape
    filled = np.pad(values, ((0, -rows % TILE_ROWS), (0, 0), (0, 0)))
    by_tile = filled.reshape(-1, TILE_ROWS, groups, values.shape[2]).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(by_tile).view(np.uint8).reshape(len(by_tile), groups, -1)
