"""A quantized graph with float activations, which computes the same as torch with the dequantized weights.

Quantized activations change real models' logits by up to a fourth, which would hide a wrong operator. So this graph is
compared with torch at a tight bound, and the exported graph at a loose one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from merino_edge.export.dialects.graph import MODEL_FILE

ONE = "one"
BLOCK_WEIGHTS = 2**21  # that are floats at a time, and their transpose: 16 MB


@contextmanager
def float_activations(folder: Path) -> Iterator[None]:
    """Replace `model.onnx` in a folder by a graph with float matmuls over the same data file. It is restored
    afterwards."""
    path = folder / MODEL_FILE
    content = path.read_bytes()
    model = onnx.load_model_from_string(content)
    nodes = [new for node in model.graph.node for new in in_floats(node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), ONE))
    onnx.save_model(model, str(path))
    try:
        yield
    finally:
        path.write_bytes(content)


def in_floats(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return the nodes that replace one node. A float matmul takes its input with the scale 1."""
    if node.op_type in ("MatMul4", "MatMul5", "MatMul6", "MatMul8"):
        return floats_of_tiles(node)
    if node.op_type == "DynamicQuantizeLinear":
        codes, scale, _ = node.output
        return [helper.make_node("Identity", [node.input[0]], [codes]), helper.make_node("Identity", [ONE], [scale])]
    if node.op_type == "MatMulInteger":
        weights = f"{node.output[0]}.weights"
        return [
            helper.make_node("Cast", [node.input[1]], [weights], to=onnx.TensorProto.FLOAT),
            helper.make_node("MatMul", [node.input[0], weights], [node.output[0]]),
        ]
    return [node]


def floats_of_tiles(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return float MatMuls that dequantize all rows of a matrix in tiles, BLOCK_WEIGHTS at a time."""
    (x, weights, *order), (out,) = node.input, node.output
    sizes = {attribute.name: attribute.i for attribute in node.attribute}
    rows = sizes["rows"]
    block = max(1, BLOCK_WEIGHTS // sizes["columns"])
    ordered = []
    if order:  # a channel behind the last is 0
        wide, pads, x_ordered = (f"{out}.{part}" for part in ("wide", "pads", "ordered"))
        ordered = [
            helper.make_node("Constant", [], [pads], value_ints=[0, 0, 0, 0, 0, 1]),
            helper.make_node("Pad", [x, pads], [wide]),
            helper.make_node("Gather", [wide, *order], [x_ordered], axis=2),
        ]
        x = x_ordered
    # Each block of rows waits for x by a sum with 0: ONNX Runtime computes what depends on constants alone in advance,
    # and would keep all weights as floats.
    size, nothing, zero = (f"{out}.{part}" for part in ("size", "nothing", "zero"))
    waiting = [
        helper.make_node("Size", [x], [size]),
        helper.make_node("Constant", [], [nothing], value_int=0),
        helper.make_node("Mul", [size, nothing], [zero]),
    ]
    blocks, results = [], []
    for first in range(0, rows, block):
        parts = ("numbers", "ids", "floats", "turned", "result")
        numbers, ids, floats, turned, result = (f"{out}.{first}.{part}" for part in parts)
        every = helper.make_node(node.op_type.replace("MatMul", "Rows"), [weights, ids], [floats], domain=node.domain)
        every.attribute.extend(node.attribute)
        blocks += [
            helper.make_node("Constant", [], [numbers], value_ints=list(range(first, min(first + block, rows)))),
            helper.make_node("Add", [numbers, zero], [ids]),
            every,
            helper.make_node("Transpose", [floats], [turned], perm=[1, 0]),
            helper.make_node("MatMul", [x, turned], [result]),
        ]
        results.append(result)
    return [*ordered, *waiting, *blocks, helper.make_node("Concat", results, [out], axis=-1)]
