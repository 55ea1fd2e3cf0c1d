"""Checks inputs and outputs of a graph as the board's TensorRT backend binds them, and tables indexed by position.

An engine has one profile for decode and one for prefill. They differ in the number of new tokens, so this is the only
axis that may be symbolic. The parser accepts more new tokens than the context has, and positions beyond a table. On a
GPU both access foreign memory, so they are refused here.
"""

from collections.abc import Iterator

import onnx

from merino_edge.export.tensorrt.support import Problem, Support, label
from merino_edge.export.tensorrt.tensors import LENGTH, type_name
from merino_runtime.bundle import Bundle, Port

Shape = tuple[int | str | None, ...]
FOLLOWED = ("Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape")


def port_problems(graph: onnx.GraphProto, bundle: Bundle, support: Support, longest: int) -> Iterator[Problem]:
    """Yield the problems of inputs, outputs and tables. `longest`: new tokens of the longer profile."""
    for infos, ports in ((graph.input, bundle.inputs), (graph.output, bundle.outputs)):
        described = {port.name: port for port in ports}
        for name in sorted(set(described) - {info.name for info in infos}):
            yield Problem(name, "", "bundle.json lists it, and the graph has no such input or output")
        for info in infos:
            yield from _port_problems(info, described.get(info.name), support)
    lengths = [("input_ids", longest)]
    for info in graph.input:
        shape = _shape(info.type.tensor_type)
        if info.name in ("input_ids", "position_ids") and len(shape) == 2 and isinstance(shape[1], int):
            lengths.append((info.name, shape[1]))
    for name, length in lengths:
        if length > bundle.context:
            yield Problem(name, "", f"{length} new tokens are more than the context of {bundle.context}")
    yield from _table_problems(graph, bundle)


def _port_problems(info: onnx.ValueInfoProto, port: Port | None, support: Support) -> Iterator[Problem]:
    tensor = info.type.tensor_type
    dtype = type_name(tensor.elem_type)
    if not info.type.HasField("tensor_type") or not tensor.HasField("shape"):
        yield Problem(info.name, "", "its rank is unknown")
        return
    shape = _shape(tensor)
    if support.stored_as(dtype) not in support.types:
        yield Problem(info.name, "", f"it is {dtype}, which TensorRT {support.version} does not support")
    if len(shape) > support.most_dims:
        yield Problem(info.name, "", f"it has {len(shape)} dimensions; allowed are {support.most_dims}")
    open_axes = [str(axis or "no name") for axis in shape if not isinstance(axis, int) and axis != LENGTH]
    if open_axes:
        yield Problem(info.name, "", f"a symbolic length: {', '.join(open_axes)}; only `{LENGTH}` may be symbolic")
    if port is None:
        yield Problem(info.name, "", "bundle.json does not list it")
    elif (dtype, shape) != (port.dtype, tuple(port.shape)):
        yield Problem(info.name, "", f"it is {dtype} {list(shape)}; bundle.json has {port.dtype} {list(port.shape)}")


def _shape(tensor: onnx.TypeProto.Tensor) -> Shape:
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim)


def _table_problems(graph: onnx.GraphProto, bundle: Bundle) -> Iterator[Problem]:
    """Yield tables with fewer rows than ids or positions."""
    rows = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    counts = {"input_ids": bundle.vocab, "position_ids": bundle.context}
    for place, node in enumerate(graph.node):
        if node.op_type != "Gather" or len(node.input) != 2 or node.input[0] not in rows:
            continue
        source, offset = _source(node.input[1], makers, constants)
        needed = counts.get(source, 0) + offset
        table = node.input[0]
        if source in counts and rows[table] < needed:
            yield Problem(label(node, place), node.op_type, f"{table} has {rows[table]} rows; {source} needs {needed}")


def _source(name: str, makers: dict[str, onnx.NodeProto], constants: dict[str, onnx.TensorProto]) -> tuple[str, int]:
    """Return the graph input that indices come from, and the constant that is added to it on the way."""
    offset = 0
    for _ in range(len(makers)):  # a graph with a cycle ends too
        node = makers.get(name)
        if node is None or node.op_type not in (*FOLLOWED, "Add"):
            break
        added = next((value for value in node.input if value in constants), None) if node.op_type == "Add" else None
        if node.op_type == "Add" and (added is None or constants[added].dims):
            break
        if added is not None:
            offset += int(onnx.numpy_helper.to_array(constants[added]))
        name = next(value for value in node.input if value != added)
    return name, offset
