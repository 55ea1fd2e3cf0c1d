"""Groups with outlier channels are stored twice: one copy multiplies the outliers, the other one all other channels.

What an outlier channel costs: `smoothquant`, which scales it down and changes the weights; but a GGUF's codes must
stay. Here the input has the group twice: once with the outliers zeroed, once with all others zeroed. Codes and scales
are the same, and the two multiplications add up to the whole. Figures: docs/decisions/quantization.md.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from merino_edge.export.quantize.matrix import Outliers, QuantizedMatrix, dequantize
from merino_edge.families.operators import GROUP

TWICE = "groups with outlier channels stored twice"  # doc_string of the model's file
MOST_BYTES = 0.05  # share of all matrices' bytes that copies may add


def with_outliers(
    matrices: Mapping[str, QuantizedMatrix], sizes: Mapping[str, np.ndarray]
) -> Mapping[str, QuantizedMatrix]:
    """Mark the groups whose copies lower the relative errors of their matrices' outputs most per byte.

    `sizes`: of the channels of a matrix's input [columns], by the name of the matrix; others get no copies.
    """
    candidates, total = [], 0
    for name, matrix in matrices.items():
        channels = sizes.get(name.split("+")[0])
        if channels is None:
            continue
        total += matrix.nbytes
        norms = np.square(dequantize(matrix)).sum(0)  # [columns]
        size = max(GROUP, matrix.group_size)
        output, groups = float(np.square(channels) @ norms), size // matrix.group_size
        nbytes = groups * (matrix.codes[:, 0].nbytes + matrix.scales[:, 0].nbytes)
        for first in range(0, len(channels), size):
            here = slice(first, first + size)
            gain, largest = outliers_of(channels[here], norms[here])
            if len(largest):
                candidates.append((gain / output / nbytes, nbytes, name, Outliers(first, size, first + largest)))
    chosen: dict[str, tuple[Outliers, ...]] = {}
    left = MOST_BYTES * total
    for _, nbytes, name, outliers in sorted(candidates, key=lambda candidate: -candidate[0]):
        left -= nbytes
        if left < 0:
            break
        chosen[name] = (*chosen.get(name, ()), outliers)
    return {name: matrix._replace(outliers=chosen.get(name, ())) for name, matrix in matrices.items()}


def outliers_of(sizes: np.ndarray, norms: np.ndarray) -> tuple[float, np.ndarray]:
    """Split a group into outliers and others: return (fall of the output's squared error, outlier channels) of the best
    split.

    A channel's rounding error is proportional to the largest channel of its group. It is multiplied by the channel's
    column of weights, whose squared norm is in `norms`.
    """
    order = np.argsort(-sizes, kind="stable")
    largest, weights = np.square(sizes[order]), norms[order]
    separate = np.cumsum(weights)[:-1]  # [n - 1]: of the k + 1 largest channels
    gains = (largest[0] - largest[1:]) * (weights.sum() - separate)
    best = int(gains.argmax())
    return float(gains[best]), order[: best + 1] if gains[best] > 0 else order[:0]


def input_order(columns: int, zero: int, outliers: Iterable[Outliers]) -> np.ndarray:
    """Return the indices that gather an input of `columns` channels, which is 0 at index `zero`: its groups, then the
    copies."""
    whole, copies = np.arange(columns), []
    for first, size, channels in outliers:
        copies.append(np.full(size, zero))
        copies[-1][channels - first] = channels
        whole[channels] = zero
    return np.concatenate([whole, *copies])


def groups_of(outliers: Iterable[Outliers], group_size: int) -> list[int]:
    """Return the groups of a matrix that are stored twice, in the order of the copies."""
    return [at // group_size for first, size, _ in outliers for at in range(first, first + size, group_size)]
