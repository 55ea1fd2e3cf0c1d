"""Inputs and quantised matrices with further columns, so that one MatMulNBits takes a whole matrix multiplication.

Behind the input x come the means of its groups, for what zero points leave of minimums, and copies of its groups with
outlier channels. The matrix has the columns that these are multiplied with.
"""

import numpy as np

from merino_edge.export.onnx.graph import Graph
from merino_edge.export.quantisation.groups import Quantized
from merino_edge.export.quantisation.outliers import Outliers, input_order


def widened(graph: Graph, x: str, name: str, found: Quantized, outliers: list[Outliers]) -> str:
    """x [1, T, in] as `widened_matrix` multiplies it; `name`: of the matrix."""
    if found.rests:
        x = with_means(graph, x, found)
    return with_copies(graph, x, name, found, outliers) if outliers else x


def with_means(graph: Graph, x: str, found: Quantized) -> str:
    """Behind x the means of its groups, filled up to whole groups, for each of the rests."""
    groups, size = found.scales.shape[1], found.group_size
    means = graph.node("AveragePool", [x], kernel_shape=[size], strides=[size])  # [1, T, groups]
    if groups % size:
        means = graph.node("Pad", [means, graph.integers(0, 0, 0, 0, 0, -groups % size)])
    return graph.node("Concat", [x, *[means for _ in found.rests]], axis=-1)


def with_copies(graph: Graph, x: str, name: str, found: Quantized, outliers: list[Outliers]) -> str:
    """x with zeros for its outliers, and behind it copies of their groups that have these alone."""
    groups, size = found.scales.shape[1], found.group_size
    columns = size * (groups + sum(rest.scales.shape[1] for rest in found.rests))
    filled = bool(found.rests) and groups % size > 0
    if not filled:
        x = graph.node("Pad", [x, graph.integers(0, 0, 0, 0, 0, 1)])
    zero = size * groups + groups if filled else columns
    order = graph.constant(f"{name}.order", input_order(columns, size, zero, outliers))
    return graph.node("Gather", [x, order], axis=2)


def widened_matrix(found: Quantized, outliers: list[Outliers]) -> Quantized:
    """The matrix with the columns for all that. A mean is of as many values as a group has weights."""
    if not found.rests and not outliers:
        return found
    copied = [each.group for each in outliers]
    scales = [found.scales, *[found.group_size * rest.scales for rest in found.rests], found.scales[:, copied]]
    points = found.zero_points
    if points is not None:
        middle = [np.full(rest.scales.shape, 8, np.uint8) for rest in found.rests]
        points = np.concatenate([points, *middle, points[:, copied]], 1)
    codes = np.concatenate([found.codes, *[rest.codes for rest in found.rests], found.codes[:, copied]], 1)
    return Quantized(codes, np.concatenate(scales, 1), found.bits, found.group_size, points)
