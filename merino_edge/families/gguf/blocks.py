"""The values of a GGUF's stored blocks: weights in float32, or levels, scales and minimums as they are.

Dequantization is the package gguf's. The levels are unpacked here, after the same layouts
(https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h), so that a graph of equal blocks can take them
without a second rounding.
"""

import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize

from merino_edge.families.gguf.file import GgufFile
from merino_edge.families.weights import ROW_BLOCK, Blocks
from merino_runtime.errors import MerinoError

SUPER = 256  # weights that share the outer scale of a K type


def weights_of(file: GgufFile, name: str, rows: slice = slice(None)) -> np.ndarray:
    """Return a tensor, or rows of a matrix, in float32. Raise MerinoError for a type that is not dequantized."""
    place = file.tensors[name]
    try:
        weights = dequantize(file.raw(name, rows), place.kind)
    except NotImplementedError:
        raise MerinoError(
            f"{file.path} has {name} in {place.kind.name}, which is not read: convert the model to F16, Q8_0 or Q4_K"
        ) from None
    return weights.astype(np.float32, copy=False).reshape(-1, *place.shape[1:])


def blocks_of(file: GgufFile, name: str) -> Blocks | None:
    """Return the blocks of a matrix; None for a type that has none, or none of equal steps."""
    place = file.tensors[name]
    if place.kind not in LAYOUTS or len(place.shape) != 2:
        return None
    weights, unpack = LAYOUTS[place.kind]
    rows, whole, bits = place.shape[0], list[np.ndarray](), 0  # `whole`: levels, scales, and minimums if there are any
    for first in range(0, rows, ROW_BLOCK):
        raw = file.raw(name, slice(first, first + ROW_BLOCK))
        levels, *factors, bits = unpack(raw.reshape(len(raw), place.shape[1] // weights, -1))
        part: list[np.ndarray] = [levels.reshape(len(raw), -1, levels.shape[-1])]
        part += [values.reshape(len(raw), -1) for values in factors if values is not None]
        whole = whole or [np.empty((rows, *values.shape[1:]), values.dtype) for values in part]
        for values, here in zip(whole, part, strict=True):
            values[first : first + len(raw)] = here
    levels, scales, *minimums = whole
    return Blocks(levels, scales, minimums[0] if minimums else None, bits)


def bits_of(kind: Kind) -> int | None:
    """Bits of a level, from the type's name; None for a type that is not unpacked here."""
    return int(kind.name[1]) if kind in LAYOUTS else None


Unpacked = tuple[np.ndarray, np.ndarray, np.ndarray | None, int]


def halves(raw: np.ndarray, start: int) -> np.ndarray:
    """Return the float16 at a byte of each block, as float32."""
    return np.ascontiguousarray(raw[..., start : start + 2]).view(np.float16)[..., 0].astype(np.float32)


def nibbles(raw: np.ndarray) -> np.ndarray:
    """Unpack bytes [..., n] to their low halves and then the high ones, int8 [..., 2 n]."""
    return np.concatenate([raw & 15, raw >> 4], axis=-1).astype(np.int8)


def fifth_bits(raw: np.ndarray) -> np.ndarray:
    """Unpack 4 bytes to 32 bits, each worth 16; int8 [..., 32]."""
    return np.unpackbits(raw, axis=-1, bitorder="little").astype(np.int8) << 4


def q4_0(raw: np.ndarray) -> Unpacked:
    return nibbles(raw[..., 2:]) - 8, halves(raw, 0), None, 4


def q4_1(raw: np.ndarray) -> Unpacked:
    scales = halves(raw, 0)
    return nibbles(raw[..., 4:]) - 8, scales, halves(raw, 2) + 8 * scales, 4


def q5_0(raw: np.ndarray) -> Unpacked:
    return (nibbles(raw[..., 6:]) | fifth_bits(raw[..., 2:6])) - 16, halves(raw, 0), None, 5


def q5_1(raw: np.ndarray) -> Unpacked:
    scales = halves(raw, 0)
    return (nibbles(raw[..., 8:]) | fifth_bits(raw[..., 4:8])) - 16, scales, halves(raw, 2) + 16 * scales, 5


def q8_0(raw: np.ndarray) -> Unpacked:
    return np.ascontiguousarray(raw[..., 2:]).view(np.int8), halves(raw, 0), None, 8


def q4_k(raw: np.ndarray) -> Unpacked:
    """Eight blocks of 32; scale and minimum of each are 6 bits of two outer ones."""
    scales, minimums = inner_scales(raw)
    packed = raw[..., 16:].reshape(*raw.shape[:-1], 4, 32)
    levels = np.stack([packed & 15, packed >> 4], axis=-2).reshape(*raw.shape[:-1], 8, 32).astype(np.int8) - 8
    return levels, scales, minimums + 8 * scales, 4


def q5_k(raw: np.ndarray) -> Unpacked:
    scales, minimums = inner_scales(raw)
    packed = raw[..., 48:].reshape(*raw.shape[:-1], 4, 32)
    low = np.stack([packed & 15, packed >> 4], axis=-2).reshape(*raw.shape[:-1], 8, 32)
    high = raw[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return (low | high << 4).astype(np.int8) - 16, scales, minimums + 16 * scales, 5


def inner_scales(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minimums of Q4_K and Q5_K, float32 [..., 8]."""
    outer, outer_minimum = halves(raw, 0)[..., None], halves(raw, 2)[..., None]
    first, second, third = (raw[..., 4 + 4 * index : 8 + 4 * index] for index in range(3))
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 2) & 48)], axis=-1)
    minimums = np.concatenate([second & 63, (third >> 4) | ((second >> 2) & 48)], axis=-1)
    return outer * scales.astype(np.float32), -(outer_minimum * minimums.astype(np.float32))


def q6_k(raw: np.ndarray) -> Unpacked:
    """Sixteen blocks of 16; a block's scale is an int8 times the outer one."""
    low = raw[..., :128].reshape(*raw.shape[:-1], 2, 1, 64) >> np.array([[0], [4]], np.uint8) & 15
    high = raw[..., 128:192].reshape(*raw.shape[:-1], 2, 1, 32) >> np.array([[0], [2], [4], [6]], np.uint8) & 3
    levels = low.reshape(*raw.shape[:-1], 8, 32) | (high.reshape(*raw.shape[:-1], 8, 32) << 4)
    scales = np.ascontiguousarray(raw[..., 192:208]).view(np.int8).astype(np.float32)
    return levels.reshape(*raw.shape[:-1], 16, 16).astype(np.int8) - 32, halves(raw, 208)[..., None] * scales, None, 6


LAYOUTS = {  # weights per stored block, and how it is unpacked
    Kind.Q4_0: (32, q4_0), Kind.Q4_1: (32, q4_1), Kind.Q5_0: (32, q5_0), Kind.Q5_1: (32, q5_1), Kind.Q8_0: (32, q8_0),
    Kind.Q4_K: (SUPER, q4_k), Kind.Q5_K: (SUPER, q5_k), Kind.Q6_K: (SUPER, q6_k),
}  # fmt: skip
