"""What the stand-in's parser reads of an ONNX file: operators and names, by the wire format of protobuf alone."""
from collections import namedtuple

Node = namedtuple("Node", "name kind domain inputs outputs")
MODEL_GRAPH, MODEL_OPSET, GRAPH_NODE = 7, 8, 1


def nodes_of(data):
    """-> (nodes, opset of the standard operators). ValueError where it is no model."""
    results, opset = [], None
    for number, value in _fields(data):
        if number == MODEL_OPSET:
            domain = [text for field, text in _fields(value) if field == 1]
            if not domain or not domain[0]:
                opset = next(version for field, version in _fields(value) if field == 2)
        if number == MODEL_GRAPH:
            results = [_node(inner) for field, inner in _fields(value) if field == GRAPH_NODE]
    if not results or opset is None:
        raise ValueError("it holds no graph")
    return results, opset


def _node(data):
    by_number = {}
    for number, value in _fields(data):
        by_number.setdefault(number, []).append(value)

    def texts(number):
        return [value.decode("utf-8") for value in by_number.get(number, [])]

    return Node(texts(3)[0] if 3 in by_number else "", texts(4)[0], (texts(7) or [""])[0], texts(1), texts(2))


def _fields(data):
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
        elif wire == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("it ends too early")
            value, at = data[at:at + size], at + size
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value, at = data[at:at + size], at + size
        else:
            raise ValueError("it is no protobuf")
        yield number, value


def _varint(data, at):
    value = shift = 0
    while True:
        if at >= len(data):
            raise ValueError("it ends too early")
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if not byte & 128:
            return value, at
