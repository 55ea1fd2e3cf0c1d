"""Groups with outlier channels are stored twice: one copy multiplies the outliers, the other one all other channels.

An integer matmul rounds its input in groups, by the largest value of each, so that a much larger channel costs the
others of its group their precision. SmoothQuant scales it down and changes the weights, but a GGUF's codes must stay.
Here the input has the group twice: once with the outliers zeroed, once with all others zeroed. Codes and scales are the
same, and the two multiplications add up to the whole. Figures: docs/decisions/quantization.md.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from merino_edge.export.quantize.groups import Quantized, dequantize

TWICE = "groups with outlier channels stored twice"  # doc_string of the model's file
MOST_BYTES = 0.05  # share of all matrices' bytes that copies may add
Names = tuple[str, ...]


class Outliers(NamedTuple):
    """Some of an input's channels among the `size` channels from `first` on, which stand twice."""

    first: int
    size: int
    channels: np.ndarray


class Reading(NamedTuple):
    """A matrix of joined ones, the size of each channel of its input [columns], and how many of these a copy has."""

    names: Names
    matrix: Quantized
    sizes: np.ndarray
    copied: int


def outlier_groups(readings: Iterable[Reading]) -> dict[Names, list[Outliers]]:
    """The groups whose copies lower the relative errors of their matrices' outputs most per byte."""
    candidates, total = [], 0
    for names, matrix, sizes, size in readings:
        total += matrix.nbytes
        norms = np.square(dequantize(matrix)).sum(0)  # [columns]
        output, groups = float(np.square(sizes) @ norms), size // matrix.group_size
        nbytes = groups * (matrix.codes[:, 0].nbytes + matrix.scales[:, 0].nbytes)
        for first in range(0, len(sizes), size):
            here = slice(first, first + size)
            gain, channels = outliers_of(sizes[here], norms[here])
            if len(channels):
                candidates.append((gain / output / nbytes, nbytes, names, Outliers(first, size, first + channels)))
    chosen: dict[Names, list[Outliers]] = {}
    left = MOST_BYTES * total
    for _, nbytes, names, outliers in sorted(candidates, key=lambda each: -each[0]):
        left -= nbytes
        if left < 0:
            break
        chosen.setdefault(names, []).append(outliers)
    return chosen


def outliers_of(sizes: np.ndarray, norms: np.ndarray) -> tuple[float, np.ndarray]:
    """(fall of the output's squared error, channels to separate) of the best split of a group into outliers and others.

    A channel's rounding error is proportional to the largest channel of its group, and is multiplied by the channel's
    column of weights, whose squared norm is in `norms`.
    """
    order = np.argsort(-sizes, kind="stable")
    largest, weights = np.square(sizes[order]), norms[order]
    separate = np.cumsum(weights)[:-1]  # [n - 1]: of the k + 1 largest channels
    gains = (largest[0] - largest[1:]) * (weights.sum() - separate)
    best = int(gains.argmax())
    return float(gains[best]), order[: best + 1] if gains[best] > 0 else order[:0]


def input_order(columns: int, zero: int, outliers: Iterable[Outliers]) -> np.ndarray:
    """Indices that gather an input of `columns` channels, which is 0 at index `zero`: its groups, then the copies."""
    whole, copies = np.arange(columns), []
    for first, size, channels in outliers:
        copies.append(np.full(size, zero))
        copies[-1][channels - first] = channels
        whole[channels] = zero
    return np.concatenate([whole, *copies])


def groups_of(outliers: Iterable[Outliers], group_size: int) -> list[int]:
    """The groups of a matrix that stand twice, in the order of the copies."""
    return [at // group_size for first, size, _ in outliers for at in range(first, first + size, group_size)]
