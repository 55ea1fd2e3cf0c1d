"""What tests of exports share: matrices as an export quantizes them without calibration, the loss of a bundle, and
bundles that are only a graph."""
from pathlib import Path

import onnx

from merino_edge.bundles.description import BackendNeed, GraphFormat
from merino_edge.export.dialects.external_data import DATA_FILE
from merino_edge.export.dialects.graph import MODEL_FILE
from merino_edge.export.quantize.weights import Rounding, quantized_matrices
from merino_edge.export.source import graph_weights
from merino_edge.families.registry import family_of
from merino_edge.text.documents import read_texts
from merino_edge.text.rows import packed_rows
from merino_edge.text.scoring import log_likelihood
from merino_edge.text.tokenizer import load_tokenizer
from merino_runtime.backends import open_backend
from merino_runtime.bundle import Bundle, BundleFile, Golden, KvLayer, Port, Threads, load_bundle
from probe_graphs.build import decoder_graph, model_without_weights


def quantized(source, form):
    """{names joined with `+`: QuantizedMatrix}"""
    return quantized_matrices(source.arch, graph_weights(source), form, Rounding(source.blocks))


def parts(matrices):
    """The names of all matrices, each by itself."""
    return [name for joined in matrices for name in joined.split("+")]


def mean_loss(folder, text, most_tokens=20_000):
    """(nats per predicted token, how many) of the text's first tokens, in rows as long as the context."""
    bundle = load_bundle(str(folder), verify=False)
    packed = packed_rows(read_texts([text])[0], load_tokenizer(Path(folder) / "tokenizer.json"), bundle.context)
    rows = packed[: max(1, most_tokens // bundle.context)].tolist()
    backend, total = open_backend(bundle), 0.0
    for row in rows:
        backend.truncate(0)
        total -= log_likelihood((backend.step(token)[None] for token in row[:-1]), row[1:])[0]
    backend.close()
    tokens = len(rows) * (bundle.context - 1)
    return total / tokens, tokens


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
        precision=precision, dialect=dialect, weights="random", weights_source="holes", context=context,
        vocab=arch.vocab, stop_ids=(), kv_layers=tuple(KvLayer(*layer) for layer in arch.kv_layers),
        inputs=tuple(Port(port.name, port.dtype, tuple(port.shape)) for port in graph.inputs),
        outputs=tuple(Port(port.name, port.dtype, tuple(port.shape)) for port in graph.outputs),
        params=0, flops_per_token=0, head_flops=0, weight_bytes=graph.weight_bytes,
        decode_weight_bytes=graph.decode_weight_bytes, kv_bytes=0, boards=(),
        backends=(BackendNeed("onnxruntime", "1.10", ()),),
        threads=Threads(None, None), golden=Golden((), ()), chat=None, files=(BundleFile(DATA_FILE, length, ""),),
    )  # fmt: skip
