"""Graphs whose constants have shapes and places in the data file, but no values.

So the graph of a large decoder is built in milliseconds: memory is reserved for its weights and never touched.
"""

from typing import Any

import numpy as np
from onnx import ModelProto

from merino_edge.benchmarking.random_bundle import timing_matrices, timing_matrix
from merino_edge.bundles.description import GraphFormat
from merino_edge.export.dialects.build import DIALECTS, Decoder, build_graph
from merino_edge.export.dialects.external_data import INLINE_BYTES, DataFile
from merino_edge.export.quantize.kv_cache import CacheScales
from merino_edge.families.geometry import Geometry
from merino_edge.families.hugging_face import build_model
from merino_edge.families.operators import FORMATS
from merino_edge.families.weights import GraphWeights

Shape = tuple[int, ...]


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
