"""A small decoder for the probe, as the exporter's `fused` dialect writes it, and the bundle that opens it.

So the runtime's own backend is timed, with all that it does around a graph: what single operators cost when others
stand between them shows here alone. Weights are the probe's random bytes; the walk is the exporter's.
"""
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

from merino_bench.probe.graphs import (
    BITS,
    EPS,
    FUSED_OPSET,
    IR_VERSION,
    Kernel,
    Shelf,
    block_of,
    block_product,
    real_head,
    rows_of_table,
)
from merino_bench.probe.onnx_writer import CONTRIB, FLOAT, INT32, INT64, Node, Port, model
from merino_runtime import bundle as bundles
from merino_runtime.bundle import Bundle

DTYPES = {FLOAT: "float32", INT64: "int64"}


class Place(NamedTuple):
    """Which of the distinct layers, and which of their uses, all layers counted on."""
    layer: int
    use: int


def decoder(form: str, width: int, ffn: int, layers: int, heads: int, vocab: int, context: int,
            uses: int = 1) -> Kernel:
    """Equal pre-norm layers, each run `uses` times in a row on a cache of its own each time; inputs and outputs as
    docs/formats.md has them for `fused`."""
    shelf = Shelf()
    nodes = _positions()
    table_form = "fp32" if form == "fp32" else "int8"
    x, table = rows_of_table(shelf, nodes, table_form, vocab, width, "input_ids")
    rotary = tuple(shelf.take(name, FLOAT, (context, width // heads // 2)) for name in ("cos", "sin"))
    inputs = [Port("input_ids", INT64, (1, "sequence")), Port("attention_mask", INT64, (1, "total"))]
    outputs = []  # type: List[Port]
    delta = ""
    for index in range(layers * uses):
        at = Place(index // uses, index)
        normed, x = _norm(shelf, nodes, at, "a", x, delta, width)
        qkv = _linear(shelf, nodes, form, at, "qkv", normed, 3 * width, width)
        cache = ["past_key_values.{}.{}".format(index, part) for part in ("key", "value")]
        new = ["present.{}.{}".format(index, part) for part in ("key", "value")]
        inputs += [Port(name, FLOAT, (1, heads, context, width // heads)) for name in cache]
        outputs += [Port(name, FLOAT, (1, heads, context, width // heads)) for name in new]
        mixed = "mixed{}".format(index)
        nodes.append(Node("GroupQueryAttention", (qkv, "", "", *cache, "last", "total_length", *rotary),
                          (mixed, *new), CONTRIB, (("num_heads", heads), ("kv_num_heads", heads), ("do_rotary", 1))))
        if index == layers * uses - 1:
            nodes += [Node("Gather", (name, "minus_one"), (name + ".end",), "", (("axis", 1),)) for name in (mixed, x)]
            mixed, x = mixed + ".end", x + ".end"
        attended = _linear(shelf, nodes, form, at, "out", mixed, width, width)
        normed, x = _norm(shelf, nodes, at, "f", x, attended, width)
        up = _linear(shelf, nodes, form, at, "up", normed, ffn, width)
        nodes.append(Node("FastGelu", (up,), (up + ".g",), CONTRIB))
        delta = _linear(shelf, nodes, form, at, "down", up + ".g", width, ffn)
    normed, _ = _norm(shelf, nodes, Place(layers, layers * uses), "end", x, delta, width)
    if form == "fp32":
        nodes += [Node("Squeeze", (normed, "one"), ("row",)), *real_head(shelf, table, vocab, width, "row", "flat"),
                  Node("Unsqueeze", ("flat", "one"), ("end",))]
    else:
        nodes.append(block_product(table_form, table, table + ".s", vocab, width, normed, "end"))
    nodes.append(Node("Identity", ("end",), ("logits",)))
    outputs.append(Port("logits", FLOAT, (1, 1, vocab)))
    content = model(nodes, inputs, outputs, shelf.constants, FUSED_OPSET, IR_VERSION)
    return Kernel(content, tuple(inputs), tuple(outputs), shelf.end)


def _positions() -> List[Node]:
    """From the mask's sum and length to what the attention wants."""
    return [
        Node("Constant", (), ("one",), "", (("value_ints", (1,)),)),
        Node("Constant", (), ("minus_one",), "", (("value_ints", (-1,)),)),
        Node("Constant", (), ("second",), "", (("value_int", 1),)),
        Node("ReduceSum", ("attention_mask", "one"), ("filled",), "", (("keepdims", 0),)),
        Node("Sub", ("filled", "one"), ("last64",)),
        Node("Cast", ("last64",), ("last",), "", (("to", INT32),)),
        Node("Shape", ("attention_mask",), ("shape",)),
        Node("Gather", ("shape", "second"), ("total64",)),
        Node("Cast", ("total64",), ("total_length",), "", (("to", INT32),)),
    ]


def _norm(shelf: Shelf, nodes: List[Node], at: Place, part: str, x: str, delta: str, width: int) -> Tuple[str, str]:
    """-> (the norm of x + delta, x + delta)."""
    name = "norm{}{}".format(part, at.use)
    weight = shelf.take("norm{}{}.w".format(part, at.layer), FLOAT, (width,))
    if not delta:
        nodes.append(Node("SimplifiedLayerNormalization", (x, weight), (name,), "", (("axis", -1), ("epsilon", EPS))))
        return name, x
    nodes.append(Node("SkipSimplifiedLayerNormalization", (delta, x, weight), (name, "", "", name + ".sum"), CONTRIB,
                      (("epsilon", EPS),)))
    return name, name + ".sum"


def _linear(shelf: Shelf, nodes: List[Node], form: str, at: Place, part: str, x: str, rows: int, columns: int) -> str:
    name, weight = "{}{}".format(part, at.use), "{}{}.w".format(part, at.layer)
    if form == "fp32":
        nodes.append(Node("MatMul", (x, shelf.take(weight, FLOAT, (columns, rows))), (name,)))
    else:
        codes, scales = shelf.take_blocks(weight, BITS[form], rows, columns, block_of(columns))
        nodes.append(block_product(form, codes, scales, rows, columns, x, name))
    return name


def _described(ports: Sequence[Port]) -> Tuple[bundles.Port, ...]:
    return tuple(bundles.Port(port.name, DTYPES[port.kind], port.shape) for port in ports)


def decoder_bundle(folder: str, kernel: Kernel, form: str, width: int, heads: int, layers: int) -> Bundle:
    """What bundle.json would say of the graph in `folder`, as far as a backend asks."""
    known: Dict[str, Any] = dict.fromkeys(Bundle._fields)
    known.update(
        folder=folder, name="probe", precision=form, dialect="fused", vocab=kernel.outputs[-1].shape[-1],
        context=kernel.inputs[2].shape[2], kv_layers=(bundles.KvLayer(heads, width // heads),) * layers,
        inputs=_described(kernel.inputs), outputs=_described(kernel.outputs), weight_bytes=kernel.weight_bytes,
        decode_weight_bytes=kernel.weight_bytes, kv_bytes=0, isa=(), threads=bundles.Threads(None, None),
        backend=bundles.BackendNeed("onnxruntime", "1.18", ()))
    return Bundle(**known)
