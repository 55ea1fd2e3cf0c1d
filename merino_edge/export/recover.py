"""A float32 bundle as a source: its weights read back, so that it can be exported in another format or dialect.

The graph's constants carry the names of the state dict. Matrices that a MatMul reads are turned and may be several
joined by `+` (see `Graph.matrix`); all else is as it was.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from transformers import PreTrainedModel

from merino_edge.export.onnx.graph import MODEL_FILE
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError


def recover_weights(folder: Path, model: PreTrainedModel) -> None:
    """Fill `model`, of the bundle's architecture, with the weights in its graph.

    Raises MerinoError where the bundle is damaged, is not float32, or does not hold each weight of the model.
    """
    bundle = load_bundle(str(folder))
    if bundle.precision != "fp32":
        raise MerinoError(
            f"{folder} has {bundle.precision} weights, and what they lost does not come back: export from a bundle in"
            " fp32, or from the checkpoint"
        )
    state = model.state_dict()
    tied = {name for name in model.all_tied_weights_keys if name in state}
    missing = set(state) - tied
    with torch.no_grad():
        for name, value in graph_weights(folder):
            for part_name, part in split(name, value, {key: len(weight) for key, weight in state.items()}):
                if tuple(part.shape) != tuple(state[part_name].shape):
                    raise MerinoError(f"{folder} does not hold the model it describes: {part_name} is {part.shape}")
                state[part_name].copy_(torch.from_numpy(np.array(part)))
                missing.discard(part_name)
    if missing:
        raise MerinoError(f"{folder} lacks weights of the model it describes: {', '.join(sorted(missing)[:5])}")


def graph_weights(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and value of each constant, as in the state dict: [out, in] for matrices."""
    graph = onnx.load(str(folder / MODEL_FILE)).graph
    turned = {node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for constant in graph.initializer:
        value = numpy_helper.to_array(constant)
        yield constant.name, value.T if constant.name in turned else value


def split(name: str, value: np.ndarray, rows: dict[str, int]) -> Iterator[tuple[str, np.ndarray]]:
    """The parts of a joined constant by name; nothing for a constant that is no weight. `rows`: of each weight."""
    names = name.split("+")
    if set(names) <= set(rows):
        yield from zip(names, np.split(value, np.cumsum([rows[one] for one in names])[:-1]), strict=True)
