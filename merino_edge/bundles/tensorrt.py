"""Lists what a version of TensorRT refuses in a bundle's graph, by node: `merino-edge check`.

Judged without TensorRT, by the facts in `tensorrt.toml`: opset, operators, inputs that must be constants, types, ranks,
and symbolic lengths. Weights are not read. Kernels, speed and memory of an engine are not judged: only a build on the
board shows these.
"""

import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import onnx
from google.protobuf.message import DecodeError  # raised for a damaged file
from onnx import TensorProto, helper

from merino_edge.storage.faults import one_line
from merino_runtime.bundle import Bundle
from merino_runtime.errors import MerinoError

# Inputs by position that are indices, shapes or scales of the operator. ONNX defines their types.
BESIDES = {
    "ConstantOfShape": (0,), "CumSum": (1,), "DequantizeLinear": (1,), "Expand": (1,), "Gather": (1,),
    "GatherElements": (1,), "GatherND": (1,), "OneHot": (0, 1), "Pad": (1, 3), "QuantizeLinear": (2,),
    "ReduceSum": (1,), "Reshape": (1,), "Resize": (3,), "Scatter": (1,), "ScatterElements": (1,), "ScatterND": (1,),
    "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Tile": (1,), "TopK": (1,), "Trilu": (1,), "Unsqueeze": (1,),
}  # fmt: skip
MODEL_FILE = "model.onnx"
LENGTH = "sequence"  # the axis of the new tokens: an engine has a profile for decode and one for prefill


class Support(NamedTuple):
    """What the parser of one version of TensorRT supports.

    Attributes:
        opsets: the first and the last of ONNX's own operators.
        types: of tensors.
        becomes: types that the parser turns into one of `types`.
        most_dims: of a tensor.
        constants: by operator, positions of the inputs that must be constants.
        operators: by name, the types of its values. Indices and shapes are integers besides.
    """

    version: str
    opsets: tuple[int, int]
    types: frozenset[str]
    becomes: Mapping[str, str]
    most_dims: int
    constants: Mapping[str, tuple[int, ...]]
    operators: Mapping[str, frozenset[str]]

    def stored_as(self, dtype: str) -> str:
        """Return the type that TensorRT uses for a tensor of this ONNX type."""
        return self.becomes.get(dtype, dtype)


class Problem(NamedTuple):
    """`node`: the name of a node, an input, an output or the model's file; `operator`: empty except for a node."""

    node: str
    operator: str
    what: str


class Checked(NamedTuple):
    """`opset`: None if the graph has none."""

    version: str
    opset: int | None
    nodes: int
    problems: tuple[Problem, ...]


@cache
def table() -> Mapping[str, Support]:
    """Return the versions of TensorRT that can be judged."""
    text = files("merino_edge.bundles").joinpath("tensorrt.toml").read_text(encoding="utf-8")
    versions = {}
    for version, facts in tomllib.loads(text).items():
        operators = {name: frozenset(group["types"]) for group in facts["operators"] for name in group["names"]}
        constants = {name: tuple(places) for name, places in facts["constants"].items()}
        versions[version] = Support(
            version, tuple(facts["opsets"]), frozenset(facts["types"]), becomes=facts["becomes"],
            most_dims=facts["most_dims"], constants=constants, operators=operators,
        )  # fmt: skip
    return versions


def check_bundle(bundle: Bundle, version: str) -> Checked:
    """Judge the graph of `bundle` for TensorRT `version`.

    Raises MerinoError for a version without a table and for a model.onnx that cannot be read.
    """
    if version not in table():
        raise MerinoError(f"--tensorrt {version} is not allowed: choose {' or '.join(table())}")
    support, path = table()[version], Path(bundle.folder) / MODEL_FILE
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (OSError, DecodeError) as error:
        raise MerinoError(f"cannot read {path}: {error}. Export the bundle again") from error
    opset = next((entry.version for entry in model.opset_import if not entry.domain), None)
    problems = list(node_problems(model.graph, support))
    problems += port_problems(model.graph, support)
    try:
        problems += tensor_problems(onnx.shape_inference.infer_shapes(model, data_prop=True).graph, support)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        problems.append(Problem(MODEL_FILE, "", f"its types or shapes cannot be inferred: {one_line(error)}"))
    if opset is None or not support.opsets[0] <= opset <= support.opsets[1]:
        first, last = support.opsets
        problems.insert(0, Problem(MODEL_FILE, "", f"opset {opset or 'of no number'}; allowed is {first} to {last}"))
    return Checked(version, opset, len(model.graph.node), tuple(dict.fromkeys(problems)))


def node_problems(graph: onnx.GraphProto, support: Support) -> Iterator[Problem]:
    """Yield operators that the parser does not support, and inputs that must be constants."""
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            yield Problem(node.name, node.op_type, f"the parser has no operators of {node.domain}")
        elif node.op_type not in support.operators:
            yield Problem(node.name, node.op_type, "the parser has no such operator")
        for index in support.constants.get(node.op_type, ()):
            if index < len(node.input) and node.input[index] and node.input[index] not in constants:
                yield Problem(node.name, node.op_type, f"its input {index}, {node.input[index]}, must be a constant")


def port_problems(graph: onnx.GraphProto, support: Support) -> Iterator[Problem]:
    """Yield inputs and outputs that the board's TensorRT backend cannot bind."""
    for info in (*graph.input, *graph.output):
        tensor = info.type.tensor_type
        dtype = type_name(tensor.elem_type)
        if support.stored_as(dtype) not in support.types:
            yield Problem(info.name, "", f"it is {dtype}, which TensorRT {support.version} does not support")
        lengths = [dim.dim_param for dim in tensor.shape.dim if not dim.HasField("dim_value")]
        others = [length or "no name" for length in lengths if length != LENGTH]
        if others:
            yield Problem(info.name, "", f"a symbolic length: {', '.join(others)}; only `{LENGTH}` may be symbolic")


def tensor_problems(graph: onnx.GraphProto, support: Support) -> Iterator[Problem]:
    """Yield types that the version lacks, or lacks for an operator, and unknown ranks, of a graph with inferred
    shapes."""
    known = {info.name: info.type.tensor_type for info in (*graph.input, *graph.value_info, *graph.output)}
    codes = {name: tensor.elem_type for name, tensor in known.items()}
    codes |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    ranks = {name: len(tensor.shape.dim) for name, tensor in known.items() if tensor.HasField("shape")}
    ranks |= {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in support.operators:
            continue  # it is refused as a whole, and ONNX knows no types of it
        inputs, outputs = ([name for name in names if name] for names in (node.input, node.output))
        allowed, whats = support.operators[node.op_type], []
        for index, name in enumerate(node.input):
            dtype = type_name(codes.get(name, 0))
            is_value = name in codes and index not in BESIDES.get(node.op_type, ())
            if is_value and support.stored_as(dtype) in support.types - allowed:
                whats.append(f"{name} is {dtype}; allowed is {', '.join(sorted(allowed))}")
        for name in (*inputs, *outputs):
            dtype = type_name(codes.get(name, 0))
            if name in codes and support.stored_as(dtype) not in support.types:
                whats.append(f"{name} is {dtype}, which TensorRT {support.version} does not support")
            if ranks.get(name, 0) > support.most_dims:
                whats.append(f"{name} has {ranks[name]} dimensions; allowed are {support.most_dims}")
        if ranks.keys() >= set(inputs):
            whats += [f"the rank of its output {name} is unknown" for name in outputs if name not in ranks]
        yield from (Problem(node.name, node.op_type, what) for what in whats)


def type_name(code: int) -> str:
    """Return the name of a type, such as `float32`; for a code that ONNX lacks, its number."""
    if code == TensorProto.BFLOAT16:
        return "bfloat16"
    try:
        return str(helper.tensor_dtype_to_np_dtype(code)) if code else "no type"
    except (KeyError, TypeError):
        return f"type {code}"
