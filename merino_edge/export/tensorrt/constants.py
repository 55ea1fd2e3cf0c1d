"""Checks a graph's constants: their place in the data file, integers that TensorRT clamps, infinities and NaN."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from merino_edge.export.tensorrt.support import Problem, Support
from merino_edge.export.tensorrt.tensors import type_name
from merino_runtime.bundle import Bundle

INT32 = np.iinfo(np.int32)
LIMITS = {"Slice": (1, 2)}  # starts and ends: clamped to 32 bits, they still exceed every axis


class Place(NamedTuple):
    offset: int
    end: int
    name: str
    elements: int


def constant_problems(graph: onnx.GraphProto, bundle: Bundle, support: Support) -> Iterator[Problem]:
    """Yield the problems of each constant. Values in the data file are not read."""
    limits: set[str] = set()
    others: set[str] = set()
    for node in graph.node:
        for index, name in enumerate(node.input):
            (limits if index in LIMITS.get(node.op_type, ()) else others).add(name)
    places = []
    for tensor in graph.initializer:
        dtype = type_name(tensor.data_type)
        if support.stored_as(dtype) not in support.types:
            yield Problem(tensor.name, "", f"a constant of {dtype}, which TensorRT {support.version} does not support")
        elif tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = _place(tensor)
            yield from _place_problems(tensor, place, bundle)
            places.append(place)
        else:
            yield from _value_problems(tensor, support, clamped=tensor.name not in limits - others)
    yield from _overlaps(places)


def _overlaps(places: list[Place]) -> Iterator[Problem]:
    """Yield each constant whose bytes overlap those of a constant that begins earlier, or at the same byte and is
    longer."""
    widest = Place(0, 0, "", 0)
    for place in sorted(places, key=lambda place: (place.offset, -place.end)):
        if place.offset < widest.end:
            yield Problem(
                place.name, "",
                f"its bytes overlap those of {widest.name}: the parser refuses constants of the same values but of"
                " different counts, and holds those of equal ones twice",
            )  # fmt: skip
        widest = max(widest, place, key=lambda place: place.end)


def _place(tensor: onnx.TensorProto) -> Place:
    """Return the bytes of the data file that hold a constant. An entry that is not a number counts as 0."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    offset, length = (int(text) if (text := entries.get(key, "")).isdigit() else 0 for key in ("offset", "length"))
    return Place(offset, offset + length, tensor.name, math.prod(tensor.dims))


def _place_problems(tensor: onnx.TensorProto, place: Place, bundle: Bundle) -> Iterator[Problem]:
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    listed = {file.path: file.bytes for file in bundle.files}
    if location not in listed:
        yield Problem(tensor.name, "", f"its values lie in {location!r}, which is no file of the bundle")
    elif place.end > listed[location]:
        yield Problem(tensor.name, "", f"its values end at byte {place.end}; {location} has {listed[location]}")
    needed = place.elements * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    if needed != place.end - place.offset:
        yield Problem(tensor.name, "", f"its values have {place.end - place.offset} bytes, its shape needs {needed}")


def _value_problems(tensor: onnx.TensorProto, support: Support, clamped: bool) -> Iterator[Problem]:
    """Yield the problems of a constant's values. `clamped`: whether clamping would change the result, because the value
    is not only a limit of a Slice."""
    try:
        value = numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        yield Problem(tensor.name, "", f"its values cannot be read: {error}")
        return
    if value.dtype == np.int64 and support.stored_as("int64") == "int32" and clamped:
        beyond = value[(value < INT32.min) | (value > INT32.max)]
        if beyond.size:
            yield Problem(tensor.name, "", f"{beyond.flat[0]} does not fit into the 32 bits that its integers become")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        yield Problem(tensor.name, "", "a value that is not finite: masks must be -1e4, which float16 can hold")
