"""A KV cache in 8 or 4 bits: its codes, and scales of least squared error on calibration values.

As ONNX Runtime's GroupQueryAttention stores them: code = round(value / scale), one float32 scale for each channel of
each head, no zero points. Which text the values are of: `kv_calibration`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BITS = {"int8": 8, "int4": 4}
SHARES = np.linspace(0.7, 1.0, 16)  # of a channel's largest value: what of it the largest code stands for
LEAST_SCALE = 1e-8  # of a channel that was always 0


class CacheScales(NamedTuple):
    """`layers`: of each cache layer the scales of its keys and of its values, float32 [heads, head_size]."""

    bits: int
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]

    def in_order(self, channels: np.ndarray | None) -> "CacheScales":
        """With each head's channels of keys in another order; None: as they are."""
        if channels is None:
            return self
        moved = ((np.ascontiguousarray(keys[:, channels]), values) for keys, values in self.layers)
        return self._replace(layers=tuple(moved))


def largest_code(bits: int) -> int:
    """The codes are -largest - 1 to largest."""
    return 2 ** (bits - 1) - 1


def rounded(values: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """What the codes of `values` [..., heads, tokens, head_size] stand for, with scales [heads, head_size]."""
    step, most = scales[:, None], largest_code(bits)
    return np.clip(np.rint(values / step), -most - 1, most) * step


def fitted_scales(values: np.ndarray, bits: int) -> np.ndarray:
    """Float32 [heads, head_size] for values [heads, tokens, head_size]: of the `SHARES` of each channel's largest value
    the one of least square error. A smaller share rounds most values finer, and cuts the largest."""
    largest = np.abs(values).max(axis=1)  # [heads, head_size]
    best, least = np.zeros_like(largest), np.full_like(largest, np.inf)
    for share in SHARES:
        scales = np.maximum(share * largest / largest_code(bits), LEAST_SCALE)
        error = np.square(rounded(values, scales, bits) - values).sum(axis=1)
        better = error < least
        best[better], least[better] = scales[better], error[better]
    return best.astype(np.float32)


def scales_of(layers: Sequence[tuple[np.ndarray, np.ndarray]], bits: int) -> CacheScales:
    """For (keys, values) of each layer, float32 [heads, tokens, head_size] each."""
    return CacheScales(bits, tuple((fitted_scales(keys, bits), fitted_scales(values, bits)) for keys, values in layers))
