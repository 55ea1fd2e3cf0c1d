"""Bundles with random weights of a geometry, without torch and without its comparison: for timing alone.

The graph is the exporter's own walk and dialect. The values are random, so quantised codes are random bytes and not
found by the quantiser, in the block that it takes for normally distributed weights (the largest that divides the row).
"""

from pathlib import Path

import numpy as np
import torch

from merino_edge.bundles.description import RUNTIME_CHOOSES, GraphFormat, ModelFacts
from merino_edge.bundles.files import is_bundle
from merino_edge.bundles.write import write_bundle
from merino_edge.design.designer import Design
from merino_edge.export.onnx.fused import Fused
from merino_edge.export.quantize import Quantized
from merino_edge.families.graph_ops import KvLayer
from merino_edge.families.merino.architecture import Architecture
from merino_edge.families.merino.model import MerinoConfig, MerinoForCausalLM
from merino_edge.families.merino.walk import walk_merino
from merino_edge.families.operators import largest_block
from merino_edge.storage.atomic import new_folder
from merino_runtime.bundle import Bundle, Golden, Threads


class Quick(Fused):
    """Random codes in place of quantised weights."""

    def quantize(self, name: str, matrix: np.ndarray, bits: int) -> Quantized:  # noqa: ARG002 - as in Graph
        rows, columns = matrix.shape
        block = largest_block(columns) or columns
        # From a seed of its own: ONNX Runtime holds equal matrices once.
        random = np.random.default_rng(len(self.quantized))
        codes = random.integers(0, 256, (rows, columns // block, block * bits // 8), dtype=np.uint8)
        return Quantized(codes, np.full((rows, columns // block), 0.02 / 2 ** (bits - 1), np.float32), bits, block)


def write_random_bundle(
    arch: Architecture, precision: str, folder: Path, name: str, design: Design | None = None
) -> Bundle:
    """The bundle written into `folder`, with the design's thread counts. Its golden ids mean nothing."""
    config = MerinoConfig.from_architecture(arch)
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in MerinoForCausalLM(config).state_dict().items()}
    pool = np.random.default_rng(0)
    weights = {
        key: np.ones(shape, np.float32) if len(shape) == 1
        else pool.random(shape, np.float32) * np.float32(0.04) - np.float32(0.02)
        for key, shape in shapes.items()
    }  # fmt: skip
    layers = [KvLayer(index, heads, size) for index, (heads, size) in enumerate(arch.kv_layers)]
    graph = Quick(weights, arch.context, precision)
    graph.begin_decoder(layers)
    walk_merino(graph, arch, theta=config.rope_theta, eps=config.rms_norm_eps)
    facts = ModelFacts(name, "merino", arch, "random", "random, for timing")
    plan = design.threads if design else None
    threads = Threads(plan.prefill, plan.decode) if plan else RUNTIME_CHOOSES
    form = GraphFormat(precision, "fused", arch.context)
    with new_folder(folder, is_bundle) as place:
        bundle = write_bundle(place, facts, graph, form, Golden((1,), (1,)), threads=threads)
    return bundle._replace(folder=str(folder))
