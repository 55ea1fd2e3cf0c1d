"""The ONNX graph of a model in a resolved format: its family's graph builder calls the operations of a dialect."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from merino_edge.bundles.description import GraphFormat
from merino_edge.export.onnx.fused import Fused
from merino_edge.export.onnx.graph import Graph
from merino_edge.export.onnx.own_kernels import FusedTiles, GroupAttention, NoDotprodTiles, PortableTiles
from merino_edge.export.onnx.portable import Portable
from merino_edge.export.quantize.gptq import Hessians
from merino_edge.export.quantize.kv_cache import CacheScales
from merino_edge.export.quantize.outliers import Reading, outlier_groups
from merino_edge.export.source import Source
from merino_edge.families.geometry import Geometry
from merino_edge.families.graph_ops import KvLayer, Weights
from merino_edge.families.operators import runs_on_kernels
from merino_edge.families.registry import decoder_of, family_of, key_order_of, layout_of
from merino_edge.families.weights import BlockSource, GraphWeights

Dialect = type[Fused] | type[Portable]
Sizes = Mapping[str, np.ndarray]


def build_graph(
    source: Source, form: GraphFormat, hessians: Callable[[], Hessians] | None = None,
    scales: CacheScales | None = None, sizes: Sizes | None = None, eight_bits: frozenset[str] = frozenset(),
    finest: bool = False,
) -> Graph:  # fmt: skip
    """The graph of the source's model, with its weights in float32 or quantized. `hessians`, `eight_bits`, `finest`:
    see `Graph`. `scales`: of a quantized cache, in the order of torch's model. `sizes`: of the channels of inputs, by
    the first matrix that reads them; groups with outliers among them are stored twice."""
    weights = {name: tensor.detach().float().numpy() for name, tensor in source.model.state_dict().items()}
    scales = scales.in_order(key_order_of(source.arch)) if scales else None
    return geometry_graph(
        dialect_of(form), source.arch, weights, form.context, form.precision, source.blocks, hessians, scales,
        form.all_logits, sizes, eight_bits, finest,
    )  # fmt: skip


def dialect_of(form: GraphFormat) -> Dialect:
    if form.dialect == "portable":
        return PortableTiles if form.precision == "int4" else Portable
    if runs_on_kernels(form.core, form.precision):
        return FusedTiles if form.core == "avx512-vnni" else NoDotprodTiles
    return GroupAttention if form.by_groups else Fused


def geometry_graph(
    dialect: Dialect, arch: Geometry, weights: Weights, context: int, precision: str,
    blocks: BlockSource | None = None, hessians: Callable[[], Hessians] | None = None,
    scales: CacheScales | None = None, all_logits: bool = False, sizes: Sizes | None = None,
    eight_bits: frozenset[str] = frozenset(), finest: bool = False,
) -> Graph:  # fmt: skip
    """The graph of a geometry by its family's graph builder. `weights`: the state dict of its torch model."""
    kv_layers = [KvLayer(index, heads, size) for index, (heads, size) in enumerate(arch.kv_layers)]
    graph = dialect(GraphWeights(weights, layout_of(arch)), context, precision, blocks)
    graph.hessians, graph.cache_scales, graph.all_logits = hessians, scales, all_logits
    graph.eight_bits, graph.finest = eight_bits, finest
    if sizes:
        graph.outliers = outlier_groups(read_by(graph, arch, sizes))
    graph.begin_decoder(kv_layers)
    family_of(arch).build_graph(graph, arch)
    return graph


def read_by(graph: Graph, arch: Geometry, sizes: Sizes) -> Iterator[Reading]:
    """The matrices whose inputs have known sizes."""
    decoder = decoder_of(arch)
    for layer in decoder.layers if decoder else ():
        for linear in (layer.qkv, layer.up):
            for run in graph.runs(linear.weights):
                matrix = graph.quantized_matrix(run)
                yield Reading(tuple(run), matrix, sizes[linear.weights[0]], graph.copied_channels(matrix))
