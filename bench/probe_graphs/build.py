"""Build the graphs that a board's probe times, by the exporter's own dialects, as one archive beside the probe's code,
with the library of this project's kernels that some of them need.

Boards have no onnx package, so the graphs are built here and shipped: models without weights, and `index.json`, which
describes each of them (read by `merino_bench.probe.graphs`). `grid` lists the sizes.

`cd bench && python -m probe_graphs.build` rewrites the file after a change of a dialect, a family's graph builder or
the grid. It is a maintainer's script and is not installed.
"""

import io
import json
import lzma
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

import merino_bench.probe
from merino_bench.probe import tasks as plan
from merino_bench.probe.graphs import ARCHIVE, INDEX
from merino_edge.bundles.description import GraphFormat
from merino_edge.calibration.probe import timed_decoder
from merino_edge.export.dialects.build import Decoder
from merino_edge.export.dialects.graph import Port
from merino_edge.export.quantize.kv_cache import BITS as CACHE_BITS
from merino_edge.export.quantize.kv_cache import CacheScales
from merino_edge.families.designed import Architecture, attention_operators, ffn_operators
from merino_edge.families.graph_ops import Attention, KvLayer, Norm
from merino_edge.families.rotary import Rotary
from merino_runtime.io.outputs import open_output
from probe_graphs.grid import GraphKey, graph_keys
from probe_graphs.layout import decoder_graph, model_without_weights, operator_graph, unset

EPS, THETA = 1e-6, 10000.0  # of the graphs that are no whole decoders
PRESET = 9 | lzma.PRESET_EXTREME  # 7 % smaller than preset 9


def form_of(key: GraphKey, context: int = 1) -> GraphFormat:
    """Return the graph's format. Attention by groups is that of quantized weights, which its graph has none of."""
    return GraphFormat("int8" if key.by_groups else key.format, key.dialect, context)


def linears(key: GraphKey) -> Decoder:
    """Return `count` matrices side by side: x [1, T, columns] -> `count` outputs [1, T, rows].

    All read one input and each has weights of its own, so values neither grow nor vanish.
    """
    graph = operator_graph({f"w{index}": (key.rows, key.columns) for index in range(key.count)}, form_of(key))
    x = graph.input("x", "float32", [1, "sequence", key.columns])
    for index in range(key.count):
        graph.output(graph.linear(x, f"w{index}"), "float32", [1, "sequence", key.rows])
    return graph


def chain(key: GraphKey) -> Decoder:
    """Return `count` square matrices in a row on x [1, T, columns], each applied to the result before it: for a GPU,
    which runs one after the other and fuses none."""
    graph = operator_graph({f"w{index}": (key.rows, key.columns) for index in range(key.count)}, form_of(key))
    last = graph.input("x", "float32", [1, "sequence", key.columns])
    for index in range(key.count):
        last = graph.linear(last, f"w{index}")
    graph.output(last, "float32", [1, "sequence", key.rows])
    return graph


def head(key: GraphKey) -> Decoder:
    """Return the LM head: x [1, 1, columns] -> logits [1, 1, rows]."""
    graph = operator_graph({"table": (key.rows, key.columns)}, form_of(key), embedding=True)
    graph.head(graph.input("x", "float32", [1, 1, key.columns]), "table")
    return graph


def table(key: GraphKey) -> Decoder:
    """Return a tied embedding, stored once: input_ids [1, T] -> logits [1, 1, rows]."""
    graph = operator_graph({"table": (key.rows, key.columns)}, form_of(key), embedding=True)
    graph.input("input_ids", "int64", [1, "sequence"])
    graph.batched = True  # as in a whole decoder
    graph.head(graph.last(graph.embed("table")), "table")
    return graph


def attentions(key: GraphKey) -> Decoder:
    """Return `count` attentions of one x [1, T, columns + 2 * kv_heads * head_size], each over a cache of its own ->
    `count` outputs [1, T, columns]."""
    kv_heads, head_size = key.cached_heads, key.columns // key.heads
    layers = [KvLayer(index, kv_heads, head_size) for index in range(key.count)]
    one = unset((kv_heads, head_size))
    scales = CacheScales(CACHE_BITS[key.kv], ((one, one),) * key.count) if key.kv in CACHE_BITS else None
    graph = operator_graph({}, form_of(key, plan.ATTENTION_CONTEXT), scales=scales)
    x = graph.input("x", "float32", [1, "sequence", key.columns + 2 * kv_heads * head_size])
    graph.begin_attention(layers)
    for layer in layers:
        attention = Attention(key.heads, head_size**-0.5, Rotary(THETA, head_size))
        graph.output(graph.attention(x, layer, attention), "float32", [1, "sequence", key.columns])
    return graph


def norms(key: GraphKey) -> Decoder:
    """Return `count` norms in a row on [1, T, columns], each of the sum of the one before and x."""
    graph = operator_graph({"w": (key.columns,)}, form_of(key))
    x = last = graph.input("x", "float32", [1, "sequence", key.columns])
    for _ in range(key.count):
        last, _ = graph.add_norm(last, x, Norm("w", None, EPS))
    graph.output(last, "float32", [1, "sequence", key.columns])
    return graph


def activations(key: GraphKey) -> Decoder:
    """Return `count` activations in a row on [1, T, columns]."""
    graph = operator_graph({}, form_of(key))
    last = graph.input("x", "float32", [1, "sequence", key.columns])
    for _ in range(key.count):
        last = graph.activation(last, "gelu")
    graph.output(last, "float32", [1, "sequence", key.columns])
    return graph


def call(key: GraphKey) -> Decoder:
    """Return one addition of [1, T, columns], to measure the cost of running a graph, and an operator of it."""
    graph = operator_graph({}, form_of(key))
    x = graph.input("x", "float32", [1, "sequence", key.columns])
    graph.output(graph.add(x, x), "float32", [1, "sequence", key.columns])
    return graph


def decoder(key: GraphKey) -> Decoder:
    """Return a decoder of the designed family: `count` layers, each used `uses` times in a row."""
    arch = decoder_architecture(key)
    return decoder_graph(arch, form_of(key, arch.context))


def decoder_architecture(key: GraphKey) -> Architecture:
    return timed_decoder(key.columns, key.rows, key.count, key.uses, key.heads, key.cached_heads)


BUILDERS: dict[str, Callable[[GraphKey], Decoder]] = {
    "linear": linears, "chain": chain, "head": head, "table": table, "attention": attentions, "norm": norms,
    "activation": activations, "call": call, "decoder": decoder,
}  # fmt: skip


@dataclass(frozen=True)
class ProbeGraph:
    """A graph to ship. `dialects`: several where both write the same nodes. `weight_bytes`: the length of the weights'
    file that the graph reads, in whole pages for each weight, rotary tables included."""

    key: GraphKey
    dialects: tuple[str, ...]
    inputs: list[Port]
    outputs: list[Port]
    model: ModelProto
    weight_bytes: int
    own_kernels: bool


def build(key: GraphKey) -> ProbeGraph:
    graph = BUILDERS[key.kind](key)
    model, weight_bytes = model_without_weights(graph)
    return ProbeGraph(
        key, (key.dialect,), graph.inputs, graph.outputs, model, weight_bytes=weight_bytes,
        own_kernels=bool(graph.own_kernels),
    )  # fmt: skip


def build_all(keys: Iterable[GraphKey]) -> list[ProbeGraph]:
    """Build all graphs. If both dialects write the same nodes, their graph is listed once: that of `portable`, because
    every version of ONNX Runtime has its operator set."""
    graphs: dict[GraphKey, ProbeGraph] = {}
    for key in sorted(keys, key=lambda key: key.dialect, reverse=True):
        twin, graph = graphs.get(replace(key, dialect="portable")), build(key)
        if twin and twin.model.graph == graph.model.graph:
            graphs[twin.key] = replace(twin, dialects=(*graph.dialects, *twin.dialects))
        else:
            graphs[key] = graph
    return list(graphs.values())


def index_entry(graph: ProbeGraph) -> dict[str, Any]:
    """Return one element of index.json; `merino_bench.probe.graphs.Kernel` defines its fields."""
    key, layer_bytes = graph.key, 0.0
    if key.kind == "decoder":
        kv_width = key.cached_heads * key.columns // key.heads
        mixer = attention_operators(key.columns, key.heads, kv_width=kv_width)
        layer = [*mixer, *ffn_operators(key.columns, key.rows)]
        layer_bytes = sum(op.stored_bytes(key.format) for op in layer if op.kind == "linear")
    fields = asdict(key)
    dialect = fields.pop("dialect")
    return {
        "file": "-".join(map(str, [dialect, *fields.values()])) + ".onnx",
        "dialects": list(graph.dialects),
        **fields,
        "inputs": [[port.name, port.dtype, list(port.shape)] for port in graph.inputs],
        "outputs": [[port.name, port.dtype, list(port.shape)] for port in graph.outputs],
        "weight_bytes": graph.weight_bytes,
        "layer_bytes": round(layer_bytes),
        "in_place": dialect != "portable",
        "own_kernels": graph.own_kernels,
    }


def write_archive(path: Path, probe_graphs: Iterable[ProbeGraph]) -> None:
    """Write the graphs and their index. The same graphs give the same bytes.

    The archive is compressed as one stream, because the graphs are alike: a zip, which compresses each separately, is
    seven times as large.
    """
    graphs = [(index_entry(graph), graph) for graph in probe_graphs]
    with (
        open_output(str(path)) as file,
        lzma.open(file, "wb", preset=PRESET) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)  # with no owner and no date
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        add(INDEX, json.dumps([entry for entry, _ in graphs], separators=(",", ":")).encode())
        for entry, graph in graphs:
            add(entry["file"], graph.model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    write_archive(Path(str(merino_bench.probe.__file__)).with_name(ARCHIVE), build_all(graph_keys()))
