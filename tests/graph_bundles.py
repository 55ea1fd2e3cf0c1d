"""Bundles whose weights are zeros that no disk holds: the graph of a large decoder in milliseconds, for what judges or
builds graphs and runs none."""

import onnx

from merino_edge.bundles.description import BackendNeed, GraphFormat
from merino_edge.export.dialects.external_data import DATA_FILE
from merino_edge.export.dialects.graph import MODEL_FILE
from merino_edge.families.registry import family_of
from merino_runtime.bundle import Bundle, BundleFile, Golden, KvLayer, Port, Threads
from probe_graphs.layout import decoder_graph, model_without_weights


def graph_bundle(folder, arch, dialect="portable", precision="fp32", context=None):
    """The bundle in `folder`, in memory; on disk are model.onnx and a data file of holes."""
    context = context or arch.context
    graph = decoder_graph(arch, GraphFormat(precision, dialect, context))
    model, length = model_without_weights(graph)
    folder.mkdir(parents=True)
    onnx.save_model(model, str(folder / MODEL_FILE))
    with open(folder / DATA_FILE, "wb") as data:
        data.truncate(length)
    return Bundle(
        folder=str(folder), schema=2, name=folder.name, family=family_of(arch).name, architecture={},
        precision=precision, dialect=dialect, core=None, weights="random", weights_source="holes", context=context,
        vocab=arch.vocab, stop_ids=(), kv_layers=tuple(KvLayer(*layer) for layer in arch.kv_layers),
        inputs=tuple(Port(port.name, port.dtype, tuple(port.shape)) for port in graph.inputs),
        outputs=tuple(Port(port.name, port.dtype, tuple(port.shape)) for port in graph.outputs),
        params=0, flops_per_token=0, head_flops=0, weight_bytes=graph.weight_bytes,
        decode_weight_bytes=graph.decode_weight_bytes, kv_bytes=0, isa=(), boards=(), slower_on=(),
        backends=(BackendNeed("onnxruntime", "1.10", ()),),
        threads=Threads(None, None), golden=Golden((), ()), chat=None, files=(BundleFile(DATA_FILE, length, ""),),
    )  # fmt: skip
