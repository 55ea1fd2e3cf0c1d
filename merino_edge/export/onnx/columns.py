"""Extra columns of an input and of its quantized matrix, so that one MatMulNBits computes the whole matmul.

Behind the input x come the means of its groups, for the rests of GGUF minimums that zero points cannot represent, and
copies of its groups with outlier channels. The matrix has a column for each.
"""

import numpy as np

from merino_edge.export.onnx.graph import Graph
from merino_edge.export.quantize.groups import Quantized
from merino_edge.export.quantize.outliers import Outliers, groups_of, input_order


def widened(graph: Graph, x: str, name: str, matrix: Quantized, outliers: list[Outliers]) -> str:
    """x [1, T, in] with the columns that `widened_matrix` has too; `name`: of the matrix."""
    if matrix.rests:
        x = with_means(graph, x, matrix)
    return with_copies(graph, x, name, matrix, outliers) if outliers else x


def with_means(graph: Graph, x: str, matrix: Quantized) -> str:
    """x, and behind it for each of the rests the means of its groups, padded to whole groups."""
    groups, size = matrix.scales.shape[1], matrix.group_size
    means = graph.node("AveragePool", [x], kernel_shape=[size], strides=[size])  # [1, T, groups]
    if groups % size:
        means = graph.node("Pad", [means, graph.integers(0, 0, 0, 0, 0, -groups % size)])
    return graph.node("Concat", [x, *[means for _ in matrix.rests]], axis=-1)


def with_copies(graph: Graph, x: str, name: str, matrix: Quantized, outliers: list[Outliers]) -> str:
    """x with zeros for its outliers, and behind it copies of their groups that have these alone."""
    groups, size = matrix.scales.shape[1], matrix.group_size
    columns = size * (groups + sum(rest.scales.shape[1] for rest in matrix.rests))
    filled = bool(matrix.rests) and groups % size > 0
    if not filled:
        x = graph.node("Pad", [x, graph.integers(0, 0, 0, 0, 0, 1)])
    zero = size * groups + groups if filled else columns
    order = graph.constant(f"{name}.order", input_order(columns, zero, outliers))
    return graph.node("Gather", [x, order], axis=2)


def widened_matrix(matrix: Quantized, outliers: list[Outliers]) -> Quantized:
    """The matrix with the same extra columns. A rest is multiplied by group_size, since its input is a mean."""
    if not matrix.rests and not outliers:
        return matrix
    copied = groups_of(outliers, matrix.group_size)
    scales = [matrix.scales, *[matrix.group_size * rest.scales for rest in matrix.rests], matrix.scales[:, copied]]
    points = matrix.zero_points
    if points is not None:
        middle = [np.full(rest.scales.shape, 8, np.uint8) for rest in matrix.rests]
        points = np.concatenate([points, *middle, points[:, copied]], 1)
    codes = np.concatenate([matrix.codes, *[rest.codes for rest in matrix.rests], matrix.codes[:, copied]], 1)
    return Quantized(codes, np.concatenate(scales, 1), matrix.bits, matrix.group_size, points)
