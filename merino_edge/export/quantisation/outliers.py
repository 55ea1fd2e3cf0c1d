"""Groups with outlier channels are stored twice: one copy multiplies the outliers, the other one all other channels.

An integer matmul rounds its input in groups, by the largest value of each, so a channel that is much larger than the
others of its group costs these their precision. SmoothQuant scales it down and changes the weights, which codes of a
file do not allow. Here the input has the group twice: with the outliers as zeros, and with all others as zeros. Codes
and scales are the same, and the two products add up to the one. Figures: docs/decisions/quantisation.md.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from merino_edge.export.quantisation.groups import Quantized, dequantize

TWICE = "groups with outlier channels stored twice"  # in the graph's file
MOST_BYTES = 0.05  # of all matrices together, that copies may add
Names = tuple[str, ...]


class Outliers(NamedTuple):
    """Channels of an input, all of one group."""

    group: int
    channels: np.ndarray


def outlier_groups(matrices: Iterable[tuple[Names, Quantized, np.ndarray]]) -> dict[Names, list[Outliers]]:
    """The groups whose copies lower the errors of their matrices' outputs most, for each byte and relative to the
    outputs. `matrices`: names, weights, and the size of each channel of the input [columns]."""
    found, total = [], 0
    for names, matrix, sizes in matrices:
        total += matrix.nbytes
        norms = np.square(dequantize(matrix)).sum(0)  # [columns]
        output, size = float(np.square(sizes) @ norms), matrix.group_size
        nbytes = matrix.codes[:, 0].nbytes + matrix.scales[:, 0].nbytes
        for group in range(len(sizes) // size):
            here = slice(group * size, (group + 1) * size)
            won, channels = outliers_of(sizes[here], norms[here])
            if len(channels):
                found.append((won / output / nbytes, nbytes, names, Outliers(group, group * size + channels)))
    chosen: dict[Names, list[Outliers]] = {}
    left = MOST_BYTES * total
    for _, nbytes, names, outliers in sorted(found, key=lambda each: -each[0]):
        left -= nbytes
        if left < 0:
            break
        chosen.setdefault(names, []).append(outliers)
    return chosen


def outliers_of(sizes: np.ndarray, norms: np.ndarray) -> tuple[float, np.ndarray]:
    """Which channels of a group are best apart, and by how much the squared error of the output falls then.

    A channel is rounded to a share of the largest one beside it, and its error is multiplied by its column of weights,
    whose squared norm is in `norms`.
    """
    order = np.argsort(-sizes, kind="stable")
    largest, weights = np.square(sizes[order]), norms[order]
    apart = np.cumsum(weights)[:-1]  # [n - 1]: of the first channels, in order
    won = (largest[0] - largest[1:]) * (weights.sum() - apart)
    best = int(won.argmax())
    return float(won[best]), order[: best + 1] if won[best] > 0 else order[:0]


def input_order(columns: int, size: int, zero: int, outliers: list[Outliers]) -> np.ndarray:
    """Indices into an input of `columns` channels, with 0 at index `zero`: its groups, and behind them the copies."""
    whole = np.arange(columns)
    copies = np.full((len(outliers), size), zero)
    for place, (group, channels) in enumerate(outliers):
        copies[place, channels - group * size] = channels
        whole[channels] = zero
    return np.concatenate([whole, copies.reshape(-1)])
