"""Bundles with random weights of a geometry, for timing only: there is no torch model and no parity.

The graph is the exporter's own. Quantized codes are drawn at random, in the group_size that quantization takes for
normally distributed weights: the largest that divides the row. One scale per row of 8 bits in dialect `portable`, whose
integer matmul takes no other.
"""

from pathlib import Path

import numpy as np
import torch

from merino_edge.bundles.description import RUNTIME_CHOOSES, GraphFormat, ModelFacts, write_bundle
from merino_edge.bundles.files import is_bundle_alone
from merino_edge.design.design_file import Design
from merino_edge.export.graphs import Dialect, dialect_of, geometry_graph
from merino_edge.export.onnx.fused import Fused
from merino_edge.export.onnx.graph import Graph
from merino_edge.export.onnx.own_kernels import FusedTiles, GroupAttention, NoDotprodTiles, PortableTiles
from merino_edge.export.quantize.groups import Quantized
from merino_edge.export.quantize.kv_cache import BITS, CacheScales
from merino_edge.families.geometry import Geometry
from merino_edge.families.hugging_face import build_model
from merino_edge.families.operators import Core, core_of, largest_group
from merino_edge.families.registry import family_of
from merino_edge.prediction.formats import core_here
from merino_edge.storage.atomic import new_folder
from merino_runtime.bundle import Bundle, Golden, Threads
from merino_runtime.io.board import runs_kernels, this_board


class Quick(Graph):
    """Random codes in place of quantized weights."""

    def quantize(self, name: str, matrix: np.ndarray, bits: int) -> Quantized:  # noqa: ARG002 - as in Graph
        columns = matrix.shape[1]
        return self.random_codes(matrix, bits, largest_group(columns) or columns, 0)

    def random_codes(self, matrix: np.ndarray, bits: int, group_size: int, lowest: int) -> Quantized:
        """`lowest`: of the bytes."""
        rows, columns = matrix.shape
        # A seed per matrix: ONNX Runtime stores equal matrices once.
        random = np.random.default_rng(len(self.quantized))
        groups = columns // group_size
        codes = random.integers(lowest, 256, (rows, groups, group_size * bits // 8), dtype=np.uint8)
        return Quantized(codes, np.full((rows, groups), 0.02 / 2 ** (bits - 1), np.float32), bits, group_size)


class QuickFused(Quick, Fused):
    """Dialect `fused`."""


class QuickGroups(Quick, GroupAttention):
    """The same with attention by groups."""


class QuickTiles(Quick, FusedTiles):
    """The same in int8 and int4 for cores with AVX-512 VNNI."""


class QuickNoDotprod(Quick, NoDotprodTiles):
    """The same for no-dotprod cores."""


class QuickPortable(Quick, PortableTiles):
    """Dialect `portable` in int4."""

    def quantize(self, name: str, matrix: np.ndarray, bits: int) -> Quantized:
        if bits == 8:
            return self.random_codes(matrix, bits, matrix.shape[1], 1)
        return super().quantize(name, matrix, bits)


QUICK: dict[Dialect, Dialect] = {
    Fused: QuickFused, GroupAttention: QuickGroups, FusedTiles: QuickTiles, NoDotprodTiles: QuickNoDotprod,
    PortableTiles: QuickPortable,
}  # fmt: skip


def write_random_bundle(
    arch: Geometry, precision: str, folder: Path, name: str, design: Design | None = None, core: Core | None = None,
    kv: str | None = None, by_groups: bool | None = None, dialect: str = "fused",
) -> Bundle:  # fmt: skip
    """Write the bundle into `folder`, with the design's thread counts and without golden ids. `core`, `by_groups`: see
    `GraphFormat`; None: this machine's kind, and where this machine has kernels for it. `dialect`: `portable` in int4
    alone."""
    with torch.device("meta"):
        model = build_model(arch)
    kv = design.kv if design else kv
    scales = even_scales(arch, kv) if kv else None
    here = this_board()
    written_for = core_of(dialect, precision, core or core_here())
    groups = runs_kernels(here.architecture, here.isa) if by_groups is None else by_groups
    form = GraphFormat(precision, dialect, arch.context, written_for, kv=kv, by_groups=groups)
    quick = QUICK[dialect_of(form)]
    graph = geometry_graph(quick, arch, random_weights(model), arch.context, precision, scales=scales)
    facts = ModelFacts(name, family_of(arch).name, arch, "random", "random, for timing")
    plan = design.predicted if design else None
    threads = Threads(plan.prefill_threads, plan.decode_threads) if plan else RUNTIME_CHOOSES
    with new_folder(folder, is_bundle_alone, graph.weight_bytes) as place:
        bundle = write_bundle(place, facts, graph, form, Golden((), ()), threads=threads)
    return bundle._replace(folder=str(folder))


def even_scales(arch: Geometry, kv: str) -> CacheScales:
    """The same scale everywhere, since the cache holds random values."""
    layers = [np.full(layer, 0.1, np.float32) for layer in arch.kv_layers]  # [heads, head_size]
    return CacheScales(BITS[kv], tuple((one, one) for one in layers))


def random_weights(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """A state dict of the model's shapes: matrices uniform in +-0.02, norms and biases 1."""
    pool = np.random.default_rng(0)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    return {
        key: np.ones(shape, np.float32) if len(shape) == 1
        else pool.random(shape, np.float32) * np.float32(0.04) - np.float32(0.02)
        for key, shape in shapes.items()
    }  # fmt: skip
