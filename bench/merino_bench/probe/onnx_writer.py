"""Writes a small ONNX model without the onnx package, which boards lack: nodes, ports, and weights in a file beside it.

The message layout is that of onnx.proto (ONNX's own schema), in protocol buffers' wire format. Knows the few fields
that `kernels` needs; what the operators mean is said there.
"""
import struct
from typing import Any, List, NamedTuple, Sequence, Tuple, Union

FLOAT, UINT8, INT8, INT32, INT64 = 1, 2, 3, 6, 7  # TensorProto.DataType
EXTERNAL = 1  # TensorProto.DataLocation
ATTRIBUTE_FLOAT, ATTRIBUTE_INT, ATTRIBUTE_INTS = 1, 2, 7  # AttributeProto.AttributeType
VARINT, BYTES, FIXED32 = 0, 2, 5  # wire types
CONTRIB = "com.microsoft"


class Port(NamedTuple):
    name: str
    kind: int  # FLOAT ... INT64
    shape: Tuple[Union[int, str], ...]  # a name for what varies


class Node(NamedTuple):
    op: str
    inputs: Tuple[str, ...]
    outputs: Tuple[str, ...]
    domain: str = ""
    attributes: Tuple[Tuple[str, Any], ...] = ()  # int, float or list of int


class Stored(NamedTuple):
    """A constant whose values lie in `file`, from `offset` on."""
    name: str
    kind: int
    shape: Tuple[int, ...]
    file: str
    offset: int
    length: int  # bytes


def model(nodes: Sequence[Node], inputs: Sequence[Port], outputs: Sequence[Port], constants: Sequence[Stored],
          opset: int, ir_version: int) -> bytes:
    """The bytes of an .onnx file."""
    graph = b"".join(
        [_message(1, _node(index, node)) for index, node in enumerate(nodes)] + [_text(2, "probe")]
        + [_message(5, _stored(one)) for one in constants]
        + [_message(11, _port(port)) for port in inputs] + [_message(12, _port(port)) for port in outputs])
    domains = [("", opset)] + [(CONTRIB, 1)] * any(node.domain for node in nodes)
    return b"".join(
        [_number(1, ir_version), _text(2, "merino_bench"), _message(7, graph)]
        + [_message(8, _text(1, domain) + _number(2, version)) for domain, version in domains])


def _node(index: int, node: Node) -> bytes:
    parts = [_text(1, name) for name in node.inputs] + [_text(2, name) for name in node.outputs]
    parts += [_text(3, "{}_{}".format(node.op, index)), _text(4, node.op)]
    parts += [_message(5, _attribute(name, value)) for name, value in node.attributes]
    return b"".join(parts + [_text(7, node.domain)])


def _attribute(name: str, value: Any) -> bytes:
    if isinstance(value, float):
        return _text(1, name) + _key(2, FIXED32) + struct.pack("<f", value) + _number(20, ATTRIBUTE_FLOAT)
    if isinstance(value, int):
        return _text(1, name) + _number(3, value) + _number(20, ATTRIBUTE_INT)
    return _text(1, name) + b"".join(_number(8, one) for one in value) + _number(20, ATTRIBUTE_INTS)


def _stored(one: Stored) -> bytes:
    place = (("location", one.file), ("offset", str(one.offset)), ("length", str(one.length)))
    parts = [_number(1, size) for size in one.shape] + [_number(2, one.kind), _text(8, one.name)]
    parts += [_message(13, _text(1, key) + _text(2, value)) for key, value in place]
    return b"".join(parts + [_number(14, EXTERNAL)])


def _port(port: Port) -> bytes:
    axes = [_message(1, _number(1, size) if isinstance(size, int) else _text(2, size)) for size in port.shape]
    tensor = _number(1, port.kind) + _message(2, b"".join(axes))
    return _text(1, port.name) + _message(2, _message(1, tensor))


def _number(field: int, value: int) -> bytes:
    return _key(field, VARINT) + _varint(value & (1 << 64) - 1)


def _text(field: int, value: str) -> bytes:
    return _message(field, value.encode("utf-8"))


def _message(field: int, content: bytes) -> bytes:
    return _key(field, BYTES) + _varint(len(content)) + content


def _key(field: int, wire: int) -> bytes:
    return _varint(field << 3 | wire)


def _varint(value: int) -> bytes:
    groups: List[int] = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes(groups + [value])
