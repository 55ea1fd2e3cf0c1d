"""Build the graphs that a board's probe times, by the exporter's own dialects, as one archive beside the probe's code,
with the library of this project's kernels that some of them need.

Constants have shapes and places in the data file, but no values, so the graph of a large decoder is built in
milliseconds: memory is reserved for its weights and never touched.

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

import numpy as np
from onnx import ModelProto

import merino_bench.probe
from merino_bench.probe import tasks as plan
from merino_bench.probe.graphs import ARCHIVE, INDEX
from merino_edge.benchmarking.random_bundle import timing_matrices, timing_matrix
from merino_edge.bundles.description import GraphFormat
from merino_edge.calibration.probe import timed_decoder
from merino_edge.export.dialects.build import DIALECTS, Decoder, build_graph
from merino_edge.export.dialects.external_data import INLINE_BYTES, DataFile
from merino_edge.export.dialects.graph import Port
from merino_edge.export.quantize.kv_cache import BITS as CACHE_BITS
from merino_edge.export.quantize.kv_cache import CacheScales
from merino_edge.families.designed import Architecture, attention_operators, ffn_operators
from merino_edge.families.geometry import Geometry
from merino_edge.families.graph_ops import Attention, KvLayer, Norm
from merino_edge.families.hugging_face import build_model
from merino_edge.families.operators import FORMATS, KERNEL_CORES
from merino_edge.families.rotary import Rotary
from merino_edge.families.weights import GraphWeights
from merino_runtime.io.outputs import open_output
from probe_graphs.grid import GraphKey, graph_keys

EPS, THETA = 1e-6, 10000.0  # of the graphs that are no whole decoders
PRESET = 9 | lzma.PRESET_EXTREME  # 7 % smaller than preset 9
Shape = tuple[int, ...]


def form_of(key: GraphKey, context: int = 1) -> GraphFormat:
    """Return the graph's format. `no-dotprod` and `avx512-vnni` have the same graphs, without codes in few bits,
    because random weights have none."""
    kernels = key.dialect in KERNEL_CORES
    return GraphFormat(
        key.format, "portable" if key.dialect == "portable" else "fused", context,
        "no-dotprod" if kernels else None, by_groups=key.by_groups,
    )  # fmt: skip


def unset(shape: Shape, dtype: Any = np.float32) -> np.ndarray:
    """Return an array whose memory is not touched; ones if it is so small that the model holds its values."""
    array = np.empty(shape, dtype)
    return np.ones(shape, dtype) if array.nbytes < INLINE_BYTES else array


def decoder_graph(arch: Geometry, form: GraphFormat) -> Decoder:
    """Return the graph of a whole model."""
    import torch

    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in build_model(arch).state_dict().items()}
    weights = GraphWeights(weights_of(shapes, form), arch.layout)
    return build_graph(arch, weights, timing_matrices(arch, weights, form, unset_codes), form)


def operator_graph(
    shapes: dict[str, Shape], form: GraphFormat, *, embedding: bool = False, scales: CacheScales | None = None
) -> Decoder:
    """Return a graph without inputs and nodes, whose matrices [rows, columns] have the bits of an embedding or of
    others."""
    numbers, matrices = FORMATS[form.precision], {}
    if numbers.grouped:
        bits = numbers.embedding_bits if embedding else numbers.bits
        matrices = {
            name: timing_matrix((shape[0], shape[1]), bits, form, unset_codes)
            for name, shape in shapes.items() if len(shape) == 2
        }  # fmt: skip
    return DIALECTS[form.dialect](weights_of(shapes, form), matrices, form, scales)


def unset_codes(shape: Shape, _lowest: int) -> np.ndarray:
    return unset(shape, np.uint8)


def weights_of(shapes: dict[str, Shape], form: GraphFormat) -> dict[str, np.ndarray]:
    """Return weights in the graph's type, so that none is converted; vectors in float32."""
    real = np.float16 if form.precision == "fp16" else np.float32
    return {name: unset(shape, real if len(shape) > 1 else np.float32) for name, shape in shapes.items()}


def model_without_weights(graph: Decoder) -> tuple[ModelProto, int]:
    """Return the model, and the length in bytes of the data file that it reads; nothing is written."""
    data = DataFile()
    return graph.model(data), data.length


def linears(key: GraphKey) -> Decoder:
    """Return `count` matrices side by side: x [1, T, columns] -> `count` outputs [1, T, rows].

    All read one input and each has weights of its own, so values neither grow nor vanish.
    """
    graph = operator_graph({f"w{index}": (key.rows, key.columns) for index in range(key.count)}, form_of(key))
    x = graph.input("x", "float32", [1, "sequence", key.columns])
    for name in graph.weights:
        graph.output(graph.linear(x, name), "float32", [1, "sequence", key.rows])
    return graph


def in_a_row(key: GraphKey) -> Decoder:
    """Return `count` operators on x [1, T, columns], each applied to the result before it.

    chain: matrices, for a GPU, which fuses none of them. norm: of the sum of the one before and x. activation. call:
    one addition, to measure the cost of running a graph, and an operator of it.
    """
    weights = {
        "chain": {f"w{index}": (key.columns, key.columns) for index in range(key.count)}, "norm": {"w": (key.columns,)},
    }  # fmt: skip
    graph = operator_graph(weights.get(key.kind, {}), form_of(key))
    x = last = graph.input("x", "float32", [1, "sequence", key.columns])
    for index in range(key.count):
        if key.kind == "chain":
            last = graph.linear(last, f"w{index}")
        elif key.kind == "norm":
            last, _ = graph.add_norm(last, x, Norm("w", None, EPS))
        elif key.kind == "activation":
            last = graph.activation(last, "gelu")
        else:
            last = graph.add(last, x)
    graph.output(last, "float32", [1, "sequence", key.columns])
    return graph


def head(key: GraphKey) -> Decoder:
    """Return the LM head: x [1, 1, columns] -> logits [1, 1, rows]. table: a tied embedding, stored once, before it:
    input_ids [1, T] -> logits."""
    graph = operator_graph({"table": (key.rows, key.columns)}, form_of(key), embedding=True)
    if key.kind == "table":
        graph.input("input_ids", "int64", [1, "sequence"])
        graph.batched = True  # as in a whole decoder
        x = graph.last(graph.embed("table"))
    else:
        x = graph.input("x", "float32", [1, 1, key.columns])
    graph.head(x, "table")
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


def decoder(key: GraphKey) -> Decoder:
    """Return a decoder of the designed family: `count` layers, each used `uses` times in a row."""
    arch = decoder_architecture(key)
    return decoder_graph(arch, form_of(key, arch.context))


def decoder_architecture(key: GraphKey) -> Architecture:
    return timed_decoder(key.columns, key.rows, key.count, key.uses, key.heads, key.cached_heads)


BUILDERS: dict[str, Callable[[GraphKey], Decoder]] = {
    "linear": linears, "chain": in_a_row, "norm": in_a_row, "activation": in_a_row, "call": in_a_row, "head": head,
    "table": head, "attention": attentions, "decoder": decoder,
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
    # By the kind of core only integer matmuls differ, and two kinds have those of this project's kernels.
    if key.dialect == "fused" and not FORMATS[key.format].grouped:
        dialects: tuple[str, ...] = ("fused", *KERNEL_CORES)
    else:
        dialects = KERNEL_CORES if key.dialect in KERNEL_CORES else (key.dialect,)
    return ProbeGraph(
        key, dialects, graph.inputs, graph.outputs, model, weight_bytes=weight_bytes,
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
