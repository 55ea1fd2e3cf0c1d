"""Bundles with random weights of a geometry, for timing only: there is no torch model and no parity.

The graph is the exporter's own, built from quantized matrices whose codes mean nothing. Their groups are those that
quantization takes for normally distributed weights: the largest that divide the row.
"""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from merino_edge.bundles.description import RUNTIME_CHOOSES, GraphFormat, ModelFacts, write_bundle
from merino_edge.bundles.files import is_bundle_alone
from merino_edge.design.design_file import Design
from merino_edge.export.dialects import build_graph
from merino_edge.export.quantize.kv_cache import BITS, CacheScales
from merino_edge.export.quantize.matrix import QuantizedMatrix
from merino_edge.export.quantize.weights import matrix_bits, matrix_layout
from merino_edge.families.geometry import Geometry
from merino_edge.families.hugging_face import build_model
from merino_edge.families.operators import GROUP
from merino_edge.families.registry import family_of
from merino_edge.families.weights import GraphWeights
from merino_edge.storage.atomic import new_folder
from merino_runtime.bundle import Bundle, Golden, Threads

Codes = Callable[[tuple[int, int, int], int], np.ndarray]  # (shape, the lowest byte) -> uint8 codes


def write_random_bundle(
    arch: Geometry, precision: str, folder: Path, name: str, design: Design | None = None, *, kv: str | None = None,
    dialect: str = "fused",
) -> Bundle:  # fmt: skip
    """Write the bundle into `folder`, with the design's thread counts and without golden ids."""
    with torch.device("meta"):
        model = build_model(arch)
    kv = design.kv if design else kv
    form = GraphFormat(precision, dialect, arch.context, kv)
    weights = GraphWeights(random_weights(model), arch.layout)
    seeds = itertools.count()  # one per matrix: ONNX Runtime stores equal matrices once

    def random_codes(shape: tuple[int, int, int], lowest: int) -> np.ndarray:
        return np.random.default_rng(next(seeds)).integers(lowest, 256, shape, dtype=np.uint8)

    matrices = timing_matrices(arch, weights, form, random_codes)
    graph = build_graph(arch, weights, matrices, form, even_scales(arch, kv) if kv else None)
    facts = ModelFacts(name, family_of(arch).name, arch, "random", "random, for timing")
    plan = design.predicted if design else None
    threads = Threads(plan.prefill_threads, plan.decode_threads) if plan else RUNTIME_CHOOSES
    with new_folder(folder, is_bundle_alone, graph.weight_bytes) as place:
        bundle = write_bundle(place, facts, graph, form, Golden((), ()), threads=threads)
    return bundle._replace(folder=str(folder))


def timing_matrices(
    arch: Geometry, weights: Mapping[str, np.ndarray], form: GraphFormat, codes: Codes
) -> dict[str, QuantizedMatrix]:
    """Return matrices of the shapes of `weights`, in the order of the graph."""
    matrices = {}
    for name, bits in matrix_bits(arch, form).items():
        shapes = [weights[one].shape for one in name.split("+")]
        matrices[name] = timing_matrix((sum(rows for rows, _ in shapes), shapes[0][1]), bits, form, codes)
    return matrices


def timing_matrix(shape: tuple[int, int], bits: int, form: GraphFormat, codes: Codes) -> QuantizedMatrix:
    """Return a matrix [rows, columns] with equal scales."""
    (rows, columns), layout = shape, matrix_layout(form, bits)
    group_size = columns if layout == "rows" else GROUP
    groups = columns // group_size
    drawn = codes((rows, groups, group_size * bits // 8), 1 if layout == "rows" else 0)
    scales = np.full((rows, groups), 0.02 / 2 ** (bits - 1), np.float32)
    return QuantizedMatrix(drawn, scales, bits, group_size, layout=layout)


def even_scales(arch: Geometry, kv: str) -> CacheScales:
    """Return the same scale everywhere, since the cache holds random values."""
    layers = [np.full(layer, 0.1, np.float32) for layer in arch.kv_layers]  # [heads, head_size]
    return CacheScales(BITS[kv], tuple((layer, layer) for layer in layers))


def random_weights(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Return a state dict of the model's shapes: matrices uniform in +-0.02, norms and biases 1."""
    pool = np.random.default_rng(0)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    return {
        key: np.ones(shape, np.float32) if len(shape) == 1
        else pool.random(shape, np.float32) * np.float32(0.04) - np.float32(0.02)
        for key, shape in shapes.items()
    }  # fmt: skip
