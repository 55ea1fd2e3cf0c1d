"""Quantization of a KV cache to 8 or 4 bits: codes, and scales of least squared error on calibration values.

As in ONNX Runtime's GroupQueryAttention: code = round(value / scale), one float32 scale per channel of each KV head, no
zero points. `calibration` computes the calibration values.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BITS = {"int8": 8, "int4": 4}
SHARES = np.linspace(0.7, 1.0, 16)  # of a channel's largest value: trial values of the largest code
LEAST_SCALE = 1e-8  # for a channel that is always 0


class CacheScales(NamedTuple):
    """`layers`: for each cache layer the scales of keys and of values, float32 [heads, head_size]."""

    bits: int
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]


def largest_code(bits: int) -> int:
    """Return the largest code; the smallest is -largest - 1."""
    return 2 ** (bits - 1) - 1


def rounded(values: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """Quantize and dequantize `values` [..., heads, tokens, head_size] with scales [heads, head_size]."""
    step, most = scales[:, None], largest_code(bits)
    return np.clip(np.rint(values / step), -most - 1, most) * step


def fitted_scales(values: np.ndarray, bits: int) -> np.ndarray:
    """Fit scales float32 [heads, head_size] to values [heads, tokens, head_size]. Each channel gets the one of `SHARES`
    with the least squared error. A smaller share rounds most values more finely, and clips the largest."""
    largest = np.abs(values).max(axis=1)  # [heads, head_size]
    best, least = np.zeros_like(largest), np.full_like(largest, np.inf)
    for share in SHARES:
        scales = np.maximum(share * largest / largest_code(bits), LEAST_SCALE)
        error = np.square(rounded(values, scales, bits) - values).sum(axis=1)
        better = error < least
        best[better], least[better] = scales[better], error[better]
    return best.astype(np.float32)


def scales_of(layers: Sequence[tuple[np.ndarray, np.ndarray]], bits: int) -> CacheScales:
    """Fit scales to (keys, values) of each layer, float32 [heads, tokens, head_size] each."""
    return CacheScales(bits, tuple((fitted_scales(keys, bits), fitted_scales(values, bits)) for keys, values in layers))
