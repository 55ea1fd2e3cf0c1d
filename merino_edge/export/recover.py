"""A float32 bundle as a source: its weights read back, so that it can be exported in another format or dialect.

The graph's constants carry the names of the state dict. Three things differ: a matrix that a MatMul reads is
transposed; several matrices of one input are joined into one constant, with `+` between their names (see
`Graph.matrix`); and a head that is not the embedding is cut into slices, with the first row's number behind its name
(see `Graph.real_head`).
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from transformers import PreTrainedModel

from merino_edge.export.dialects.graph import MODEL_FILE
from merino_edge.export.parity import MOST_LOGIT_ERROR, bundle_error, torch_greedy
from merino_edge.families.weights import Layout, ModelWeights
from merino_runtime.bundle import Bundle, quantized_cache
from merino_runtime.bundle.verified import check_external_data
from merino_runtime.errors import MerinoError

AGAIN = "Export it again"


def recover_weights(bundle: Bundle, model: PreTrainedModel, layout: Callable[[str], Layout | None]) -> None:
    """Fill `model`, of the bundle's geometry, with the weights in its graph. `layout`: of each weight in the graph.

    Raises MerinoError if the bundle is not float32, or does not hold each weight of the model.
    """
    folder = bundle.folder
    if bundle.precision != "fp32":
        raise MerinoError(
            f"{folder} has {bundle.precision} weights, from which float32 weights cannot be recovered: export from a"
            " bundle in fp32, or from the checkpoint"
        )
    if quantized_cache(bundle):
        raise MerinoError(
            f"{folder} has a KV cache in {quantized_cache(bundle)}, so its weights cannot be checked against its golden"
            " ids: export from a bundle with --kv fp32, or from the checkpoint"
        )
    check_external_data(bundle)
    weights = ModelWeights(model, layout)
    missing = set(weights) - set(model.all_tied_weights_keys)
    rows = {name: len(weights[name]) for name in weights}
    for constant, value in whole_tables(graph_constants(Path(folder)), set(rows)):
        for name, part in split(constant, value, rows):
            if part.shape != weights[name].shape:
                raise MerinoError(f"{folder} does not hold the model it describes: {name} is {part.shape}. {AGAIN}")
            weights[name] = part
            missing.discard(name)
    if missing:
        raise MerinoError(
            f"{folder} lacks weights of the model it describes: {', '.join(sorted(missing)[:5])}. {AGAIN}"
        )


def check_recovered(bundle: Bundle, model: PreTrainedModel) -> None:
    """Raises MerinoError if `model` and the bundle compute different logits, or other greedy ids than the golden
    ones. A bundle without golden ids is not checked.

    Equal weights do not suffice: torch has constants such as the base of the rotary frequencies from bundle.json, and
    the graph has its own copy.
    """
    golden = bundle.golden
    if not golden.prompt_ids or not golden.greedy_ids:
        return
    decoded = torch_greedy(model, golden.prompt_ids, len(golden.greedy_ids))
    error = bundle_error(bundle, decoded)
    if decoded.greedy_ids != list(golden.greedy_ids) or not error <= MOST_LOGIT_ERROR:
        raise MerinoError(
            f"{bundle.folder}: bundle.json and the graph do not belong together. The model that bundle.json describes,"
            f" with the graph's weights, decodes the golden prompt to {decoded.greedy_ids}; the golden ids are"
            f" {list(golden.greedy_ids)}. Its logits differ from the graph's by {error:.1e}, relative, allowed is"
            f" {MOST_LOGIT_ERROR:.0e}. Export from the checkpoint instead"
        )


def graph_constants(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and value of each constant, as in the state dict: [out, in] for matrices."""
    graph = onnx.load(str(folder / MODEL_FILE)).graph
    transposed = {node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for constant in graph.initializer:
        value = numpy_helper.to_array(constant)
        yield constant.name, value.T if constant.name in transposed else value


def whole_tables(constants: Iterable[tuple[str, np.ndarray]], names: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the constants, then the tables that are stored only as slices, joined."""
    slices: dict[str, dict[int, np.ndarray]] = {}
    whole = set()
    for name, value in constants:
        table, _, row = name.rpartition(".")
        if table in names and row.isdecimal():
            slices.setdefault(table, {})[int(row)] = value
        else:
            whole.add(name)
            yield name, value
    for table in slices.keys() - whole:
        yield table, np.concatenate([value for _, value in sorted(slices[table].items(), key=lambda item: item[0])])


def split(name: str, value: np.ndarray, rows: dict[str, int]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the weights in a constant, by name: several if matrices are joined, none if it is no weight. `rows`: length
    of the first axis of each weight."""
    names = name.split("+")
    if set(names) <= set(rows):
        yield from zip(names, np.split(value, np.cumsum([rows[one] for one in names])[:-1]), strict=True)
