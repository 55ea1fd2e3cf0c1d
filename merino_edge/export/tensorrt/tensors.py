"""Types and ranks of all tensors of a graph, inferred from its inputs, against what a version of TensorRT has."""

import re
from collections.abc import Iterator

import onnx
from onnx import TensorProto, helper

from merino_edge.export.tensorrt.support import Problem, Support, label

# Inputs by position that are indices, shapes or scales of the operator. ONNX defines their types.
BESIDES = {
    "ConstantOfShape": (0,), "CumSum": (1,), "DequantizeLinear": (1,), "Expand": (1,), "Gather": (1,),
    "GatherElements": (1,), "GatherND": (1,), "OneHot": (0, 1), "Pad": (1, 3), "QuantizeLinear": (2,),
    "ReduceSum": (1,), "Reshape": (1,), "Resize": (3,), "Scatter": (1,), "ScatterElements": (1,), "ScatterND": (1,),
    "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Tile": (1,), "TopK": (1,), "Trilu": (1,), "Unsqueeze": (1,),
}  # fmt: skip
FAULTS = (onnx.shape_inference.InferenceError, RuntimeError, ValueError)
LENGTH = "sequence"  # the axis of the new tokens


def type_name(code: int) -> str:
    """Return the name of a type, such as `float32`; for a code that ONNX lacks, its number."""
    if code == TensorProto.BFLOAT16:
        return "bfloat16"
    try:
        return str(helper.tensor_dtype_to_np_dtype(code)) if code else "no type"
    except (KeyError, TypeError):
        return f"type {code}"


def with_shapes(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return the model with the inferred type and shape of each tensor; None if they contradict each other, which
    `shape_problems` reports."""
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except FAULTS:
        return None


def shape_problems(model: onnx.ModelProto, length: int) -> Iterator[Problem]:
    """Yield the first node whose shapes do not fit with `length` new tokens."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for info in (*fixed.graph.input, *fixed.graph.output):
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param == LENGTH:
                dim.dim_value = length
    try:
        onnx.shape_inference.infer_shapes(fixed, check_type=True, strict_mode=True, data_prop=True)
    except FAULTS as error:
        text = " ".join(str(error).split())
        match = re.search(r"op_type:(\w*), node name: ([^)]*)\): *(.*)", text)
        kind, name, what = match.groups() if match else ("", "the graph", text)
        yield Problem(name, kind, f"with {length} new tokens its types or shapes do not fit: {what[:200]}")


def tensor_problems(model: onnx.ModelProto, support: Support) -> Iterator[Problem]:
    """Yield types that the version lacks, or lacks for an operator, and unknown ranks. `model`: from `with_shapes`."""
    infos = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    known = {info.name: info.type.tensor_type for info in infos}
    ranked = {name for name, inferred in known.items() if inferred.HasField("shape")}
    ranked |= {tensor.name for tensor in model.graph.initializer}
    codes = {name: inferred.elem_type for name, inferred in known.items()}
    codes |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for place, node in enumerate(model.graph.node):
        if node.domain not in ("", "ai.onnx") or node.op_type not in support.operators:
            continue  # it is refused as a whole, and ONNX knows no types of it
        name, allowed = label(node, place), support.operators[node.op_type]
        for index, tensor in enumerate(node.input):
            dtype = type_name(codes[tensor]) if tensor in codes else ""
            stored = support.stored_as(dtype)
            if dtype and stored not in support.types:
                what = f"{tensor} is {dtype}, which TensorRT {support.version} does not support"
                yield Problem(name, node.op_type, what)
            elif dtype and stored not in allowed and index not in BESIDES.get(node.op_type, ()):
                yield Problem(name, node.op_type, f"{tensor} is {dtype}; allowed is {', '.join(sorted(allowed))}")
        if ranked.issuperset(filter(None, node.input)):
            for tensor in filter(None, node.output):
                yield from _output_problems(name, node.op_type, tensor, known.get(tensor), support)


def _output_problems(
    name: str, kind: str, tensor: str, inferred: onnx.TypeProto.Tensor | None, support: Support
) -> Iterator[Problem]:
    if inferred is None or not inferred.HasField("shape"):
        yield Problem(name, kind, f"the rank of its output {tensor} is unknown")
        return
    dtype = type_name(inferred.elem_type)
    if support.stored_as(dtype) not in support.types:
        yield Problem(name, kind, f"its output {tensor} is {dtype}, which TensorRT {support.version} does not support")
    if len(inferred.shape.dim) > support.most_dims:
        dims = len(inferred.shape.dim)
        yield Problem(name, kind, f"its output {tensor} has {dims} dimensions; allowed are {support.most_dims}")
