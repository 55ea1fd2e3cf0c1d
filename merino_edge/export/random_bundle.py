"""Bundles with random weights of a geometry, for timing alone: no torch model is filled or compared with.

The graph is the exporter's own. Quantised codes are drawn at random in place of being quantised, in the block that the
quantiser takes for normally distributed weights: the largest that divides the row.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from merino_edge.design.designer import Design
from merino_edge.export import export as exporter
from merino_edge.export.onnx.fused import Fused
from merino_edge.export.parity import Golden
from merino_edge.export.quantize import Quantized
from merino_edge.export.source import Source
from merino_edge.families.geometry import Geometry
from merino_edge.families.hugging_face import build_model
from merino_edge.families.operators import largest_block
from merino_edge.storage.atomic import new_folder, write_text


class Quick(Fused):
    """Random codes in place of quantised weights."""

    def quantize(self, name: str, matrix: np.ndarray, bits: int) -> Quantized:  # noqa: ARG002 - as in Graph
        rows, columns = matrix.shape
        block = largest_block(columns) or columns
        # A seed per matrix: ONNX Runtime stores equal matrices once.
        random = np.random.default_rng(len(self.quantized))
        codes = random.integers(0, 256, (rows, columns // block, block * bits // 8), dtype=np.uint8)
        return Quantized(codes, np.full((rows, columns // block), 0.02 / 2 ** (bits - 1), np.float32), bits, block)


def write_random_bundle(
    arch: Geometry, precision: str, folder: Path, name: str, design: Design | None = None
) -> dict[str, Any]:
    """-> bundle.json's content, with the design's thread counts. It has no golden ids: the weights mean nothing."""
    with torch.device("meta"):
        model = build_model(arch)
    graph = exporter.walked_graph(Quick, arch, random_weights(model), arch.context, precision)
    source = Source(name, arch, model, "random", "random, for timing", None, None, design)
    golden = Golden([], [], np.zeros((0, arch.vocab), np.float32))
    with new_folder(folder, exporter.is_bundle) as place:
        graph.save(place)
        exporter.write_board_app(place / exporter.APP_FILE)
        description = exporter.describe(
            source, graph, golden, place, dialect="fused", precision=precision, context=arch.context
        )
        write_text(place / exporter.DESCRIPTION, json.dumps(description, indent=1) + "\n")
    return description


def random_weights(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """A state dict of the model's shapes: matrices uniform in +-0.02, norms and biases 1."""
    pool = np.random.default_rng(0)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    return {
        key: np.ones(shape, np.float32) if len(shape) == 1
        else pool.random(shape, np.float32) * np.float32(0.04) - np.float32(0.02)
        for key, shape in shapes.items()
    }  # fmt: skip
