"""Lists what a version of TensorRT refuses in a bundle's graph, by node: `merino-edge check`.

Checked are operators and opset, types, ranks and shapes (`tensors`), constants and their place in the data file
(`constants`), and inputs and outputs as the runtime binds them (`ports`). Weights are not read. Not checked are the
kernels, speed and memory of an engine: only a build on the board shows these.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import onnx
from google.protobuf.message import DecodeError  # raised for a damaged file

from merino_edge.export.dialects.graph import MODEL_FILE
from merino_edge.export.tensorrt.constants import constant_problems
from merino_edge.export.tensorrt.ports import port_problems
from merino_edge.export.tensorrt.support import Problem, Support, label, support_of
from merino_edge.export.tensorrt.tensors import shape_problems, tensor_problems, with_shapes
from merino_runtime.bundle import Bundle
from merino_runtime.errors import MerinoError


class Checked(NamedTuple):
    """`lengths`: the numbers of new tokens that shapes were checked with; `opset`: None if the graph has none."""

    version: str
    lengths: tuple[int, ...]
    opset: int | None
    nodes: int
    problems: tuple[Problem, ...]


def check_bundle(bundle: Bundle, version: str, chunk: int | None = None) -> Checked:
    """Judge the graph of `bundle` for TensorRT `version`, for decode and for a prefill of `chunk` new tokens (default:
    the context).

    Raises MerinoError for a version without a table and for a model.onnx that cannot be read.
    """
    support = support_of(version)
    path = Path(bundle.folder) / MODEL_FILE
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (OSError, DecodeError) as error:
        raise MerinoError(f"cannot read {path}: {error}. Export the bundle again") from error
    lengths = tuple(dict.fromkeys((1, chunk or bundle.context)))
    problems = tuple(dict.fromkeys(_problems(model, bundle, support, lengths)))
    return Checked(version, lengths, _opset(model), len(model.graph.node), problems)


def _problems(model: onnx.ModelProto, bundle: Bundle, support: Support, lengths: tuple[int, ...]) -> Iterator[Problem]:
    yield from _opset_problems(model, support)
    yield from _node_problems(model, support)
    yield from port_problems(model.graph, bundle, support, max(lengths))
    yield from constant_problems(model.graph, bundle, support)
    for length in lengths:
        yield from shape_problems(model, length)
    inferred = with_shapes(model)
    if inferred is not None:
        yield from tensor_problems(inferred, support)


def _opset(model: onnx.ModelProto) -> int | None:
    return next((entry.version for entry in model.opset_import if not entry.domain), None)


def _opset_problems(model: onnx.ModelProto, support: Support) -> Iterator[Problem]:
    opset, (first, last) = _opset(model), support.opsets
    if opset is None or not first <= opset <= last:
        yield Problem(MODEL_FILE, "", f"opset {opset or 'of no number'}; allowed is {first} to {last}")
    for function in model.functions:
        yield Problem(function.name, "", "a function of the model's own")
    for sparse in model.graph.sparse_initializer:
        yield Problem(sparse.values.name, "", "a sparse constant")


def _node_problems(model: onnx.ModelProto, support: Support) -> Iterator[Problem]:
    """Yield operators that the parser does not support, and inputs that must be constants."""
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    for place, node in enumerate(model.graph.node):
        name = label(node, place)
        if node.domain not in ("", "ai.onnx"):
            yield Problem(name, node.op_type, f"the parser has no operators of {node.domain}")
        elif node.op_type not in support.operators:
            yield Problem(name, node.op_type, "the parser has no such operator")
        if any(one.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for one in node.attribute):
            yield Problem(name, node.op_type, "a nested graph, which is not checked")
        for index in support.constants.get(node.op_type, ()):
            if index < len(node.input) and node.input[index] and node.input[index] not in constants:
                yield Problem(name, node.op_type, f"its input {index}, {node.input[index]}, must be a constant")
