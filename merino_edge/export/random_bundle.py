"""Bundles with random weights of a geometry, without torch and without its comparison: for timing alone.

The graph is the exporter's own walk and dialect. The values are random, so quantised codes are random bytes and not
found by the quantiser, in the block that it takes for normally distributed weights (the largest that divides the row).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from merino_edge.design.design_file import Design
from merino_edge.export import export as exporter
from merino_edge.export.onnx.fused import Fused
from merino_edge.export.parity import Golden
from merino_edge.export.quantize import Quantized
from merino_edge.export.source import Source
from merino_edge.families.graph_ops import KvLayer
from merino_edge.families.merino.architecture import Architecture
from merino_edge.families.merino.model import MerinoConfig, MerinoForCausalLM
from merino_edge.families.merino.walk import walk_merino
from merino_edge.families.operators import largest_block
from merino_edge.storage.atomic import new_folder, write_text


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
) -> dict[str, Any]:
    """-> bundle.json's content, with the design's thread counts. Its golden ids mean nothing."""
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
    graph = Quick(weights, layers, arch.context, precision)
    walk_merino(graph, arch, theta=config.rope_theta, eps=config.rms_norm_eps)
    source = Source(name, "merino", arch, None, "random", "random, for timing", None, None, design)  # type: ignore[arg-type]
    golden = Golden([1], [1], np.zeros((1, arch.vocab), np.float32))
    with new_folder(folder, exporter.is_bundle) as place:
        graph.save(place)
        exporter.write_board_app(place / exporter.APP_FILE)
        description = exporter.describe(
            source, graph, golden, place, dialect="fused", precision=precision, context=arch.context
        )
        write_text(place / exporter.DESCRIPTION, json.dumps(description, indent=1) + "\n")
    return description
