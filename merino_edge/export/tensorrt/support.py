"""The operators, types and constants that each TensorRT's parser supports, read from `support.toml` with the source of
each fact; and the problems that a graph has with them."""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import onnx

from merino_runtime.errors import MerinoError


class Support(NamedTuple):
    """One version of TensorRT.

    opsets: the first and the last of ONNX's own operators.
    types: of tensors; becomes: types that the parser turns into one of these.
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


@cache
def table() -> Mapping[str, Support]:
    text = files("merino_edge.export.tensorrt").joinpath("support.toml").read_text(encoding="utf-8")
    versions = {}
    for version, facts in tomllib.loads(text).items():
        operators = {name: frozenset(group["types"]) for group in facts["operators"] for name in group["names"]}
        versions[version] = Support(
            version, opsets=tuple(facts["opsets"]), types=frozenset(facts["types"]), becomes=facts["becomes"],
            most_dims=facts["most_dims"], operators=operators,
            constants={name: tuple(places) for name, places in facts["constants"].items()},
        )  # fmt: skip
    return versions


def support_of(version: str) -> Support:
    """Raises MerinoError for a version without a table."""
    if version not in table():
        raise MerinoError(f"--tensorrt {version} is not allowed: choose {' or '.join(table())}")
    return table()[version]


class Problem(NamedTuple):
    """`node`: the name of a node, an input, an output, a constant or the model's file; `operator`: empty except for a
    node."""

    node: str
    operator: str
    what: str


def label(node: onnx.NodeProto, place: int) -> str:
    """Return a node's name; without one, its first output, as NVIDIA's tools do; without that, its index in the
    graph."""
    return node.name or next(iter(node.output), "") or f"node {place}"
