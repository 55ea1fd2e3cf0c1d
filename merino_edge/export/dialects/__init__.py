"""The ONNX graph of a decoder: its family's graph builder calls the operations of a dialect, `fused` or `portable`."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from merino_edge.bundles.description import GraphFormat
from merino_edge.export.dialects.fused import Fused
from merino_edge.export.dialects.graph import Factors
from merino_edge.export.dialects.portable import Portable
from merino_edge.export.quantize.kv_cache import CacheScales
from merino_edge.export.quantize.matrix import QuantizedMatrix
from merino_edge.families.geometry import Geometry
from merino_edge.families.graph_ops import KvLayer, Weights

Decoder = Fused | Portable
DIALECTS: dict[str, type[Fused] | type[Portable]] = {"fused": Fused, "portable": Portable}


def build_graph(
    arch: Geometry, weights: Weights, matrices: Mapping[str, QuantizedMatrix], form: GraphFormat,
    scales: CacheScales | None = None, *, adapters: Mapping[str, Factors] = MappingProxyType({}),
) -> Decoder:  # fmt: skip
    """Build the graph of a geometry. `weights`: in the graph's layout. `scales`: of a quantized cache, in the order of
    torch's model. `adapters`: their factors by matrix."""
    order = arch.key_order()  # of a head's channels in the graph
    if scales and order is not None:
        layers = [(np.ascontiguousarray(keys[:, order]), values) for keys, values in scales.layers]
        scales = scales._replace(layers=tuple(layers))
    graph = DIALECTS[form.dialect](weights, matrices, form, scales, adapters)
    graph.begin_decoder([KvLayer(index, heads, size) for index, (heads, size) in enumerate(arch.kv_layers)])
    arch.build_graph(graph)
    return graph
