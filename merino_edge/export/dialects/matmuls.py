"""Matmuls with the matrices of a graph: floats, and quantized matrices by their layout (`quantize/matrix`).

`tiles`: this project's kernels. `rows`: MatMulInteger.
"""

import numpy as np
from onnx import TensorProto

from merino_edge.export.dialects.external_data import Deferred
from merino_edge.export.dialects.graph import Graph
from merino_edge.export.dialects.tiles import tile_node
from merino_edge.export.quantize.matrix import QuantizedMatrix

CONTRIB = "com.microsoft"


def matmul(graph: Graph, x: str, name: str) -> str:
    """Multiply x [1, T, in] by joined matrices [sum of out, in]; the result is [1, T, sum of out]."""
    matrix = graph.matrices.get(name)
    if matrix is None:
        return graph.node("MatMul", [x, graph.matrix(name)])
    if matrix.layout == "tiles":
        return tile_node(graph, "MatMul", x, name)
    codes = graph.stored(f"{name}.codes", signed(matrix, transposed=True))
    return integer_matmul(graph, x, codes, graph.stored(f"{name}.scales", matrix.scales[:, 0]))


def table_rows(graph: Graph, ids: str, name: str) -> str:
    """Look up rows [1, T, columns] of an embedding [rows, columns], of which a decode step reads one."""
    matrix = graph.matrices.get(name)
    if matrix is None:
        value = graph.real_weight(name)
        return graph.node("Gather", [graph.stored(name, value, value[0].nbytes), ids])
    if matrix.layout == "tiles":
        return tile_node(graph, "Rows", ids, name, rows=1)
    codes, scales = signed_table(graph, name, matrix)
    row = graph.node("Cast", [graph.node("Gather", [codes, ids])], to=TensorProto.FLOAT)
    return graph.node("Mul", [row, graph.node("Gather", [scales, ids])])


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
