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
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

import merino_bench.probe
from merino_bench.probe import tasks as plan
from merino_bench.probe.graphs import ARCHIVE, INDEX, Kernel
from merino_bench.probe.tasks import Task
from merino_edge.benchmarking.random_bundle import timing_matrices, timing_matrix
from merino_edge.bundles.description import GraphFormat
from merino_edge.calibration.probe import timed_decoder
from merino_edge.export.dialects import DIALECTS, Decoder, build_graph
from merino_edge.export.dialects.external_data import INLINE_BYTES, DataFile
from merino_edge.export.dialects.fused import Fused
from merino_edge.export.quantize.kv_cache import BITS as CACHE_BITS
from merino_edge.export.quantize.kv_cache import CacheScales
from merino_edge.families.designed import Architecture, attention_operators, ffn_operators
from merino_edge.families.geometry import Geometry
from merino_edge.families.graph_ops import Attention, KvLayer, Norm
from merino_edge.families.hugging_face import build_model
from merino_edge.families.operators import FORMATS
from merino_edge.families.rotary import Rotary
from merino_edge.families.weights import GraphWeights
from merino_runtime.io.outputs import open_output
from probe_graphs.grid import graphs_to_ship

EPS, THETA = 1e-6, 10000.0  # of the graphs that are no whole decoders
PRESET = 9 | lzma.PRESET_EXTREME  # 7 % smaller than preset 9
Shape = tuple[int, ...]


def form_of(dialect: str, task: Task, context: int = 1) -> GraphFormat:
    """Return the graph's format. Attention by groups is that of quantized weights, which its graph has none of."""
    return GraphFormat("int8" if task.by_groups else task.format, dialect, context)


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


def linears(dialect: str, task: Task) -> Decoder:
    """Return `count` matrices side by side: x [1, T, columns] -> `count` outputs [1, T, rows].

    All read one input and each has weights of its own, so values neither grow nor vanish.
    """
    shape = (task.rows, task.columns)
    graph = operator_graph({f"w{index}": shape for index in range(task.count)}, form_of(dialect, task))
    x = graph.input("x", "float32", [1, "sequence", task.columns])
    for name in graph.weights:
        graph.output(graph.linear(x, name), "float32", [1, "sequence", task.rows])
    return graph


def in_a_row(dialect: str, task: Task) -> Decoder:
    """Return `count` operators on x [1, T, columns], each applied to the result before it.

    chain: matrices, for a GPU, which fuses none of them. norm: of the sum of the one before and x. activation. call:
    one addition, to measure the cost of running a graph, and an operator of it.
    """
    weights: dict[str, Shape] = {"w": (task.columns,)} if task.kind == "norm" else {}
    if task.kind == "chain":
        weights = {f"w{index}": (task.columns, task.columns) for index in range(task.count)}
    graph = operator_graph(weights, form_of(dialect, task))
    x = last = graph.input("x", "float32", [1, "sequence", task.columns])
    for index in range(task.count):
        if task.kind == "chain":
            last = graph.linear(last, f"w{index}")
        elif task.kind == "norm":
            last, _ = graph.add_norm(last, x, Norm("w", None, EPS))
        elif task.kind == "activation":
            last = graph.activation(last, "gelu")
        else:
            last = graph.add(last, x)
    graph.output(last, "float32", [1, "sequence", task.columns])
    return graph


def head(dialect: str, task: Task) -> Decoder:
    """Return the LM head: x [1, 1, columns] -> logits [1, 1, rows]. table: a tied embedding, stored once, before it:
    input_ids [1, T] -> logits."""
    graph = operator_graph({"table": (task.rows, task.columns)}, form_of(dialect, task), embedding=True)
    if task.kind == "table":
        graph.input("input_ids", "int64", [1, "sequence"])
        graph.batched = True  # as in a whole decoder
        x = graph.last(graph.embed("table"))
    else:
        x = graph.input("x", "float32", [1, 1, task.columns])
    graph.head(x, "table")
    return graph


def attentions(dialect: str, task: Task) -> Decoder:
    """Return `count` attentions of one x [1, T, columns + 2 * kv_heads * head_size], each over a cache of its own ->
    `count` outputs [1, T, columns]."""
    kv_heads, head_size = task.cached_heads, task.columns // task.heads
    layers = [KvLayer(index, kv_heads, head_size) for index in range(task.count)]
    one = unset((kv_heads, head_size))
    scales = CacheScales(CACHE_BITS[task.kv], ((one, one),) * task.count) if task.kv in CACHE_BITS else None
    graph = operator_graph({}, form_of(dialect, task, plan.ATTENTION_CONTEXT), scales=scales)
    x = graph.input("x", "float32", [1, "sequence", task.columns + 2 * kv_heads * head_size])
    # Lengths and masks are inputs: in a decoder nodes derive them, once for all layers.
    if isinstance(graph, Fused):
        graph.last_index, graph.total_length = graph.input("last", "int32", [1]), graph.input("total", "int32", ())
    else:
        graph.positions = graph.input("position_ids", "int64", [1, "sequence"])
        graph.cached_mask = graph.input("cached_mask", graph.real, [1, 1, 1, graph.context])
        graph.new_mask = graph.input("new_mask", graph.real, [1, 1, "sequence", "sequence"])
    graph.cache_ports(layers, graph.context if isinstance(graph, Fused) else "sequence")
    for layer in layers:
        attention = Attention(task.heads, head_size**-0.5, Rotary(THETA, head_size))
        graph.output(graph.attention(x, layer, attention), "float32", [1, "sequence", task.columns])
    return graph


def decoder(dialect: str, task: Task) -> Decoder:
    """Return a decoder of the designed family: `count` layers, each used `uses` times in a row."""
    arch = decoder_architecture(task)
    return decoder_graph(arch, form_of(dialect, task, arch.context))


def decoder_architecture(task: Task) -> Architecture:
    return timed_decoder(task.columns, task.rows, task.count, task.uses, task.heads, task.cached_heads)


BUILDERS: dict[str, Callable[[str, Task], Decoder]] = {
    "linear": linears, "chain": in_a_row, "norm": in_a_row, "activation": in_a_row, "call": in_a_row, "head": head,
    "table": head, "attention": attentions, "decoder": decoder,
}  # fmt: skip


Graphs = list[tuple[Kernel, ModelProto]]  # of the archive's index, and without weights


def build(dialect: str, task: Task) -> tuple[Kernel, ModelProto]:
    graph = BUILDERS[task.kind](dialect, task)
    model, weight_bytes = model_without_weights(graph)
    layer_bytes = 0.0  # of a layer's matrices
    if task.kind == "decoder":
        kv_width = task.cached_heads * task.columns // task.heads
        mixer = attention_operators(task.columns, task.heads, kv_width=kv_width)
        layer = [*mixer, *ffn_operators(task.columns, task.rows)]
        layer_bytes = sum(op.stored_bytes(task.format) for op in layer if op.kind == "linear")
    fields = {name: value for name, value in task._asdict().items() if name not in ("threads", "runs")}
    return Kernel(
        file="-".join(map(str, [dialect, *fields.values()])) + ".onnx", dialects=(dialect,), **fields,
        inputs=tuple(graph.inputs), outputs=tuple(graph.outputs),
        weight_bytes=weight_bytes, layer_bytes=round(layer_bytes), own_kernels=bool(graph.own_kernels),
        in_place=dialect != "portable",
    ), model  # fmt: skip


def build_all(listed: Iterable[tuple[str, Task]]) -> Graphs:
    """Build all graphs. If both dialects write the same nodes, their graph is listed once: that of `portable`, because
    every version of ONNX Runtime has its operator set."""
    graphs: dict[tuple[str, Task], tuple[Kernel, ModelProto]] = {}
    for dialect, task in sorted(listed, key=lambda listed: listed[0], reverse=True):
        kernel, model = build(dialect, task)
        twin = graphs.get(("portable", task))
        if twin and twin[1].graph == model.graph:
            graphs["portable", task] = twin[0]._replace(dialects=(*kernel.dialects, *twin[0].dialects)), twin[1]
        else:
            graphs[dialect, task] = kernel, model
    return list(graphs.values())


def write_archive(path: Path, graphs: Graphs) -> None:
    """Write the graphs and their index. The same graphs give the same bytes.

    The archive is compressed as one stream, because the graphs are alike: a zip, which compresses each separately, is
    seven times as large.
    """
    with (
        open_output(str(path)) as file,
        lzma.open(file, "wb", preset=PRESET) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)  # with no owner and no date
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        add(INDEX, json.dumps([kernel._asdict() for kernel, _ in graphs], separators=(",", ":")).encode())
        for kernel, model in graphs:
            add(kernel.file, model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    write_archive(Path(str(merino_bench.probe.__file__)).with_name(ARCHIVE), build_all(graphs_to_ship()))
