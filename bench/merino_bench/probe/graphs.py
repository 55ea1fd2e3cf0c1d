"""The graphs that `machine` times: many equal operators side by side, as a decoder's graph has them.

Side by side and not one behind the other: each reads weights of its own and all read one input, so values neither
grow nor vanish. Operators are those of the exporter's dialects: `fused` where ONNX Runtime knows them (1.18, and
1.23 for int8 and int4), else `portable`.
"""
import os
from typing import List, NamedTuple, Sequence, Set, Tuple

import numpy as np

from merino_bench.probe.onnx_writer import (
    CONTRIB,
    FLOAT,
    INT8,
    INT32,
    INT64,
    UINT8,
    Node,
    Port,
    Stored,
    model,
)

WEIGHTS_FILE = "weights.bin"
PAGE = 4096
SLICE_BYTES = 16 << 20  # of a head in float32, as the exporter cuts it
BLOCKS = (128, 64, 32)  # of weights that share a scale, the largest that divides a row
BITS = {"fp32": 32, "int8": 8, "int4": 4}
FUSED_OPSET, PORTABLE_OPSET, IR_VERSION = 17, 13, 8
EPS = 1e-6
LIMIT = 0.05  # of the random weights, both signs


class Kernel(NamedTuple):
    """A graph, and what to feed it. Inputs and outputs are float32 [1, tokens, ...] where not said otherwise."""
    model: bytes
    inputs: Tuple[Port, ...]
    outputs: Tuple[Port, ...]
    weight_bytes: int  # of the file that it reads


class Shelf:
    """Hands out places of the weights' file, one after the other, each from a page on."""

    def __init__(self) -> None:
        self.constants: List[Stored] = []
        self.taken: Set[str] = set()
        self.end = 0

    def take(self, name: str, kind: int, shape: Tuple[int, ...]) -> str:
        """A name that has a place keeps it: weights that are used again."""
        if name in self.taken:
            return name
        self.taken.add(name)
        length = (4 if kind == FLOAT else 1) * int(np.prod(shape))
        self.constants.append(Stored(name, kind, shape, WEIGHTS_FILE, self.end, length))
        self.end += -(-length // PAGE) * PAGE
        return name

    def take_blocks(self, name: str, bits: int, rows: int, columns: int, block: int) -> Tuple[str, str]:
        """Codes and scales of a quantised matrix."""
        codes = self.take(name, UINT8, (rows, columns // block, block * bits // 8))
        return codes, self.take(name + ".s", FLOAT, (rows * columns // block,))

    def again(self, name: str, other: str, shape: Tuple[int, ...], start: int = 0) -> str:
        """The same bytes, from byte `start` on, under another name and shape."""
        first = next(one for one in self.constants if one.name == name)
        length = first.length // int(np.prod(first.shape)) * int(np.prod(shape))
        self.constants.append(first._replace(name=other, shape=shape, offset=first.offset + start, length=length))
        return other


def matrix_bytes(form: str, rows: int, columns: int, fused: bool) -> int:
    """Of one matrix as it is stored, scales included."""
    codes = rows * columns * BITS[form] // 8
    if form == "fp32":
        return codes
    return codes + 4 * rows * (columns // block_of(columns) if fused else 1)


def block_of(columns: int) -> int:
    return next(block for block in BLOCKS if columns % block == 0)


def linears(form: str, rows: int, columns: int, count: int, fused: bool) -> Kernel:
    """`count` matrices [rows, columns]; input [1, T, columns], `count` outputs [1, T, rows]."""
    shelf, nodes = Shelf(), []  # type: Tuple[Shelf, List[Node]]
    for index in range(count):
        name, out = "w{}".format(index), "y{}".format(index)
        if form == "fp32":
            nodes.append(Node("MatMul", ("x", shelf.take(name, FLOAT, (columns, rows))), (out,)))
        elif fused:
            codes, scales = shelf.take_blocks(name, BITS[form], rows, columns, block_of(columns))
            nodes.append(block_product(form, codes, scales, rows, columns, "x", out))
        else:
            nodes.extend(_integer_product(shelf, name, rows, columns, out))
    outputs = [Port("y{}".format(index), FLOAT, (1, "T", rows)) for index in range(count)]
    return _kernel(nodes, [Port("x", FLOAT, (1, "T", columns))], outputs, shelf, fused)


def head(form: str, rows: int, columns: int, fused: bool) -> Kernel:
    """The LM head: input [1, columns], output [1, rows]; quantised as a linear is, for its last position alone."""
    if form != "fp32":
        return linears(form, rows, columns, 1, fused)
    shelf = Shelf()
    node = Node("Gemm", ("x", shelf.take("w", FLOAT, (rows, columns))), ("y0",), "", (("transB", 1),))
    return _kernel([node], [Port("x", FLOAT, (1, columns))], [Port("y0", FLOAT, (1, rows))], shelf, fused)


def tables(form: str, rows: int, columns: int, fused: bool) -> Kernel:
    """An embedding that is the head too, stored once: input ids int64 [1], output [1, rows]."""
    shelf, nodes = Shelf(), []  # type: Tuple[Shelf, List[Node]]
    x, table = rows_of_table(shelf, nodes, form if fused else "fp32", rows, columns, "ids")
    if form == "fp32" or not fused:
        nodes.extend(real_head(shelf, table, rows, columns, x, "y0"))
    else:
        nodes.append(block_product(form, table, table + ".s", rows, columns, x, "y0"))
    return _kernel(nodes, [Port("ids", INT64, (1,))], [Port("y0", FLOAT, (1, rows))], shelf, fused)


def rows_of_table(shelf: Shelf, nodes: List[Node], form: str, rows: int, columns: int, ids: str) -> Tuple[str, str]:
    """-> (rows of the table, the table as a product wants it; its scales are named `.s` behind that)."""
    if form == "fp32":
        table = shelf.take("table", FLOAT, (rows, columns))
        nodes.append(Node("Gather", (table, ids), ("x",)))
        return "x", table
    block, bits = block_of(columns), BITS[form]
    table, scales = shelf.take_blocks("table", bits, rows, columns, block)
    again = [shelf.again(table, "table.rows", (rows, columns * bits // 8)),
             shelf.again(scales, "table.row_scales", (rows, columns // block))]
    nodes.append(Node("GatherBlockQuantized", (again[0], ids, again[1]), ("x",), CONTRIB,
                      (("bits", bits), ("block_size", block), ("gather_axis", 0), ("quantize_axis", 1))))
    return "x", table


def real_head(shelf: Shelf, table: str, rows: int, columns: int, x: str, out: str) -> List[Node]:
    """x [1, columns] against a plain table, in slices that are constants of their own, as the exporter has them: the
    table itself can then leave memory once the slices are packed."""
    unit = PAGE // 4  # rows that fill whole pages, whatever the width
    count = max(1, SLICE_BYTES // (4 * columns) // unit) * unit
    nodes = []  # type: List[Node]
    for start in range(0, rows, count):
        shape = min(count, rows - start), columns
        piece = shelf.again(table, "{}.{}".format(table, start), shape, 4 * start * columns)
        part = out if rows <= count else "{}.{}".format(out, start)
        nodes.append(Node("Gemm", (x, piece), (part,), "", (("transB", 1),)))
    if len(nodes) > 1:
        nodes.append(Node("Concat", tuple(node.outputs[0] for node in nodes), (out,), "", (("axis", 1),)))
    return nodes


def block_product(form: str, codes: str, scales: str, rows: int, columns: int, x: str, out: str) -> Node:
    attributes = (("K", columns), ("N", rows), ("bits", BITS[form]), ("block_size", block_of(columns)),
                  ("accuracy_level", 4))
    return Node("MatMulNBits", (x, codes, scales), (out,), CONTRIB, attributes)


def _integer_product(shelf: Shelf, name: str, rows: int, columns: int, out: str) -> List[Node]:
    codes = shelf.take(name, INT8, (columns, rows))
    scales = shelf.take(name + ".scales", FLOAT, (rows,))
    parts = tuple(name + part for part in (".q", ".s", ".z", ".i", ".f", ".ss"))
    quantized, scale, zero, product, cast, both = parts
    return [
        Node("DynamicQuantizeLinear", ("x",), (quantized, scale, zero)),
        Node("MatMulInteger", (quantized, codes, zero), (product,)),
        Node("Cast", (product,), (cast,), "", (("to", FLOAT),)),
        Node("Mul", (scale, scales), (both,)),
        Node("Mul", (cast, both), (out,)),
    ]


def attentions(width: int, heads: int, context: int, count: int, fused: bool) -> Kernel:
    """`count` attentions over caches of their own [1, heads, context, head_size], which are inputs k0, v0, ...

    Fused: input x [1, T, 3 * width] packed, `last` int32 [1] and `total` int32 [] as the operator wants them;
    caches are outputs too, to be bound to the same memory. Portable: input x [1, heads, T, head_size], and
    each step reads the whole cache.
    """
    head_size = width // heads
    shape = (1, heads, context, head_size)
    nodes, inputs, outputs, shelf = [], [], [], Shelf()
    tables = [shelf.take(name, FLOAT, (context, head_size // 2)) for name in ("cos", "sin")] if fused else []
    for index in range(count):
        key, value, out = ("{}{}".format(letter, index) for letter in "kvy")
        inputs += [Port(key, FLOAT, shape), Port(value, FLOAT, shape)]
        if fused:
            outputs += [Port(name + ".new", FLOAT, shape) for name in (key, value)]
            attributes = (("num_heads", heads), ("kv_num_heads", heads), ("do_rotary", 1))
            nodes.append(Node(
                "GroupQueryAttention", ("x", "", "", key, value, "last", "total", *tables),
                (out, key + ".new", value + ".new"), CONTRIB, attributes))
        else:
            names = [out + part for part in (".k", ".s", ".w")]
            nodes += [
                Node("Transpose", (key,), (names[0],), "", (("perm", (0, 1, 3, 2)),)),
                Node("MatMul", ("x", names[0]), (names[1],)),
                Node("Softmax", (names[1],), (names[2],), "", (("axis", -1),)),
                Node("MatMul", (names[2], value), (out,)),
            ]
        outputs.append(Port(out, FLOAT, (1, "T", width) if fused else (1, heads, "T", head_size)))
    if fused:
        ports = [Port("x", FLOAT, (1, "T", 3 * width)), Port("last", INT32, (1,)), Port("total", INT32, ())]
    else:
        ports = [Port("x", FLOAT, (1, heads, "T", head_size))]
    return _kernel(nodes, ports + inputs, outputs, shelf, fused)


def vectors(kind: str, width: int, count: int, fused: bool) -> Kernel:
    """`count` operators on [1, T, width], one behind the other: `norm`, `activation`, or `call`, which is the least
    that a graph can do. In `portable` norms and activations consist of sums and products, which are timed there."""
    shelf, nodes, last = Shelf(), [], "x"
    weight = shelf.take("w", FLOAT, (width,))
    for index in range(count):
        out = "y0" if index == count - 1 else "h{}".format(index)
        if fused and kind == "norm":
            nodes.append(Node("SkipSimplifiedLayerNormalization", (last, "x", weight), (out,), CONTRIB,
                              (("epsilon", EPS),)))
        elif fused and kind == "activation":
            nodes.append(Node("FastGelu", (last,), (out,), CONTRIB))
        else:
            nodes.append(Node("Mul", (last, weight), (out,)) if index % 2 else Node("Add", (last, "x"), (out,)))
        last = out
    return _kernel(nodes, [Port("x", FLOAT, (1, "T", width))], [Port("y0", FLOAT, (1, "T", width))], shelf, fused)


def _kernel(nodes: Sequence[Node], inputs: Sequence[Port], outputs: Sequence[Port], shelf: Shelf,
            fused: bool) -> Kernel:
    opset = FUSED_OPSET if fused else PORTABLE_OPSET
    content = model(nodes, inputs, outputs, shelf.constants, opset, IR_VERSION)
    return Kernel(content, tuple(inputs), tuple(outputs), shelf.end)


def write_weights(work: str, size: int, written: int) -> int:
    """Small random float32; read as bytes they are as good as any code. -> bytes of the file."""
    path = os.path.join(work, WEIGHTS_FILE)
    random = np.random.RandomState(written // PAGE)  # no two matrices alike: ONNX Runtime would hold them once
    with open(path, "ab") as file:
        while written < size:
            piece = random.uniform(-LIMIT, LIMIT, 2 ** 18).astype(np.float32)
            file.write(piece.tobytes())
            written += piece.nbytes
    return written
