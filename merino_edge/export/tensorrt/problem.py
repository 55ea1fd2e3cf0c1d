"""One thing that TensorRT refuses, with the name of its node."""

from typing import NamedTuple

import onnx


class Problem(NamedTuple):
    """`node`: the name of a node, an input, an output, a constant or the model's file; `operator`: empty except for a
    node."""

    node: str
    operator: str
    what: str


def label(node: onnx.NodeProto, place: int) -> str:
    """A node's name; the first output of one without, as NVIDIA's tools call it; else its place in the graph."""
    return node.name or next(iter(node.output), "") or f"node {place}"
