"""Matmuls with the matrices of a graph: floats, and quantized matrices by their layout (`quantize/matrix`).

`groups`: MatMulNBits quantizes activations to int8 and multiplies in int8. `rows`: MatMulInteger. `tiles`: this
project's kernels.
"""

import numpy as np
from onnx import TensorProto

from merino_edge.export.dialects.external_data import Deferred
from merino_edge.export.dialects.graph import Graph
from merino_edge.export.dialects.tiles import tile_node
from merino_edge.export.quantize.matrix import QuantizedMatrix, packed_points
from merino_edge.export.quantize.outliers import groups_of, input_order

CONTRIB = "com.microsoft"
ACCURACY = 4  # of MatMulNBits: activations in int8


def matmul(graph: Graph, x: str, name: str) -> str:
    """Multiply x [1, T, in] by joined matrices [sum of out, in]; the result is [1, T, sum of out]."""
    matrix = graph.matrices.get(name)
    if matrix is None:
        return graph.node("MatMul", [x, graph.matrix(name)])
    if matrix.layout == "tiles":
        return tile_node(graph, "MatMul", x, name)
    if matrix.layout == "rows":
        codes = graph.stored(f"{name}.codes", signed(matrix, transposed=True))
        return integer_matmul(graph, x, codes, graph.stored(f"{name}.scales", matrix.scales[:, 0]))
    return grouped_matmul(graph, x, name, matrix)


def table_rows(graph: Graph, ids: str, name: str) -> str:
    """Look up rows [1, T, columns] of an embedding [rows, columns], of which a decode step reads one."""
    matrix = graph.matrices.get(name)
    if matrix is None:
        value = graph.real_weight(name)
        return graph.node("Gather", [graph.stored(name, value, value[0].nbytes), ids])
    if matrix.layout == "tiles":
        return tile_node(graph, "Rows", ids, name, rows=1)
    if matrix.layout == "rows":
        codes, scales = signed_table(graph, name, matrix)
        row = graph.node("Cast", [graph.node("Gather", [codes, ids])], to=TensorProto.FLOAT)
        return graph.node("Mul", [row, graph.node("Gather", [scales, ids])])
    codes_of, scales_of = matrix.codes.reshape(len(matrix.codes), -1), matrix.scales
    codes = graph.stored(f"{name}.rows", codes_of, codes_of[0].nbytes)
    scales = graph.stored(f"{name}.row_scales", scales_of, scales_of[0].nbytes)
    return graph.node(
        "GatherBlockQuantized", [codes, ids, scales], domain=CONTRIB,
        bits=matrix.bits, block_size=matrix.group_size, gather_axis=0, quantize_axis=1,
    )  # fmt: skip


def quantized_head(graph: Graph, x: str, table: str) -> str:
    """Return logits [1, T, vocab] of x [1, T, width] for a quantized table, which may be the embedding too."""
    matrix = graph.matrices[table]
    if matrix.layout != "rows":
        return matmul(graph, x, table)
    # A tied embedding is stored once; the backend transposes it when it opens the graph.
    codes, scales = signed_table(graph, table, matrix)
    graph.decode_weight_bytes += matrix.nbytes
    transposed = graph.node("Transpose", [codes], perm=[1, 0])
    return integer_matmul(graph, x, transposed, graph.node("Squeeze", [scales, graph.integers(1)]))


# One scale per row


def integer_matmul(graph: Graph, x: str, codes: str, scales: str) -> str:
    """Compute x @ codes * scales, with x quantized to uint8 over its range; codes [in, out], scales [out]."""
    quantized = graph.node("DynamicQuantizeLinear", [x], outputs=3)
    matmul = graph.node("MatMulInteger", [quantized, codes, f"{quantized}.2"])
    scale = graph.node("Mul", [f"{quantized}.1", scales])
    return graph.node("Mul", [graph.node("Cast", [matmul], to=TensorProto.FLOAT), scale])


def signed_table(graph: Graph, name: str, matrix: QuantizedMatrix) -> tuple[str, str]:
    """Store codes [rows, columns] and scales [rows, 1] of an embedding, of which a decode step reads one row."""
    columns, scales = matrix.columns, matrix.scales
    codes = graph.stored(f"{name}.codes", signed(matrix, transposed=False), columns)
    return codes, graph.stored(f"{name}.scales", scales, scales[0].nbytes)


def signed(matrix: QuantizedMatrix, *, transposed: bool) -> Deferred:
    """Return the codes as int8 around zero: [rows, columns], or [columns, rows] if `transposed`. No code is -128: two
    multiplications by it overflow the 16 bits in which no-dotprod Arm cores accumulate."""
    codes = matrix.codes[:, 0]

    def make() -> np.ndarray:
        values = (codes.astype(np.int16) - 128).astype(np.int8)
        return values.T if transposed else values

    return Deferred(codes.shape[::-1] if transposed else codes.shape, np.dtype(np.int8), make)


# Groups


def grouped_matmul(graph: Graph, x: str, name: str, matrix: QuantizedMatrix) -> str:
    """Multiply x by a matrix in groups, by MatMulNBits. That operator also takes GGUF minimums as float zero points,
    but then it multiplies in float32, fifty times slower."""
    if matrix.rests:
        x = with_means(graph, x, matrix)
    if matrix.outliers:
        x = with_copies(graph, x, name, matrix)
    wide: QuantizedMatrix = graph.once(("wide", name), lambda: widened(matrix))
    arrays = [wide.codes, wide.scales.reshape(-1)]
    if (points := wide.zero_points) is not None:
        arrays.append(graph.once(("points", name), lambda: packed_points(points)))
    parts = zip(("codes", "scales", "zero_points"), arrays, strict=False)
    return graph.node(
        "MatMulNBits", [x, *(graph.stored(f"{name}.{part}", value) for part, value in parts)], domain=CONTRIB,
        K=wide.columns, N=len(wide.codes), bits=wide.bits, block_size=wide.group_size, accuracy_level=ACCURACY,
    )  # fmt: skip


def with_means(graph: Graph, x: str, matrix: QuantizedMatrix) -> str:
    """Append to x, for each of the matrix's rests, the means of its groups, padded to whole groups."""
    groups, size = matrix.scales.shape[1], matrix.group_size
    means = graph.node("AveragePool", [x], kernel_shape=[size], strides=[size])  # [1, T, groups]
    if groups % size:
        means = graph.padded(means, -groups % size)
    return graph.node("Concat", [x, *[means for _ in matrix.rests]], axis=-1)


def with_copies(graph: Graph, x: str, name: str, matrix: QuantizedMatrix) -> str:
    """Set the outliers of x to zero, and append copies of their groups that hold the outliers alone."""
    groups, size = matrix.scales.shape[1], matrix.group_size
    columns = size * (groups + sum(rest.scales.shape[1] for rest in matrix.rests))
    filled = bool(matrix.rests) and groups % size > 0
    if not filled:
        x = graph.padded(x, 1)
    zero = size * groups + groups if filled else columns
    order = graph.constant(f"{name}.order", input_order(columns, zero, matrix.outliers))
    return graph.node("Gather", [x, order], axis=2)


def widened(matrix: QuantizedMatrix) -> QuantizedMatrix:
    """Return the matrix with the columns that multiply the appended means and copies. A rest is multiplied by
    group_size, because its input is a mean."""
    if not matrix.rests and not matrix.outliers:
        return matrix
    copied = groups_of(matrix.outliers, matrix.group_size)
    scales = [matrix.scales, *[matrix.group_size * rest.scales for rest in matrix.rests], matrix.scales[:, copied]]
    points = matrix.zero_points
    if points is not None:
        middle = [np.full(rest.scales.shape, 8, np.uint8) for rest in matrix.rests]
        points = np.concatenate([points, *middle, points[:, copied]], 1)
    codes = np.concatenate([matrix.codes, *[rest.codes for rest in matrix.rests], matrix.codes[:, copied]], 1)
    return QuantizedMatrix(codes, np.concatenate(scales, 1), matrix.bits, matrix.group_size, points)
