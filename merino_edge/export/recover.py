"""Reads the weights of a float32 bundle back from its graph, so that it can be exported in another format or dialect.

The graph's constants carry the names of the state dict. Three things differ: a matrix that a MatMul reads is
transposed; several matrices of one input are joined into one constant, with `+` between their names; and a head that is
not the embedding is cut into slices, with the first row's number behind its name.
"""

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import onnx
from onnx import numpy_helper
from transformers import PreTrainedModel

from merino_edge.export.dialects.graph import MODEL_FILE
from merino_edge.export.parity import MOST_LOGIT_ERROR, bundle_error, torch_greedy
from merino_edge.families.weights import Layout, ModelWeights
from merino_runtime.bundle import Bundle, cache_formats, quantized_cache
from merino_runtime.bundle.external_data import check_external_data
from merino_runtime.errors import MerinoError


def recover_weights(bundle: Bundle, model: PreTrainedModel, layout: Callable[[str], Layout | None]) -> None:
    """Fill `model`, of the bundle's geometry, with the weights in its graph. `layout`: of each weight in the graph.

    Raises MerinoError if the bundle is not float32, lacks weights of the model, or computes other logits than it.
    """
    folder = bundle.folder
    if bundle.precision != "fp32" or quantized_cache(bundle):
        raise MerinoError(
            f"{folder} has {bundle.precision} weights and a KV cache in {cache_formats(bundle)}, from which the model"
            " cannot be recovered: export from a bundle in fp32 with --kv fp32, or from the checkpoint"
        )
    check_external_data(bundle)
    weights, found = ModelWeights(model, layout), dict[str, np.ndarray]()
    graph = onnx.load(f"{folder}/{MODEL_FILE}").graph
    transposed = {node.input[1] for node in graph.node if node.op_type == "MatMul"}
    slices: dict[str, dict[int, np.ndarray]] = defaultdict(dict)  # by table: rows from this one on
    for constant in graph.initializer:
        value = numpy_helper.to_array(constant)
        value = value.T if constant.name in transposed else value  # [out, in], as in the state dict
        names, (table, _, row) = constant.name.split("+"), constant.name.rpartition(".")
        if set(names) <= set(weights):
            ends = np.cumsum([len(weights[name]) for name in names])[:-1]
            found |= dict(zip(names, np.split(value, ends), strict=True))
        elif table in set(weights) and row.isdecimal():
            slices[table][int(row)] = value
    for table in slices.keys() - found.keys():
        found[table] = np.concatenate([slices[table][row] for row in sorted(slices[table])])
    wrong = set(weights) - found.keys() - set(model.all_tied_weights_keys)
    wrong |= {name for name, value in found.items() if value.shape != weights[name].shape}
    if wrong:
        some = ", ".join(sorted(wrong)[:5])
        raise MerinoError(f"{folder} does not hold the model it describes: its graph lacks {some}. Export it again")
    for name, value in found.items():
        weights[name] = value

    # Equal weights do not suffice: torch has constants such as the base of the rotary frequencies from bundle.json, and
    # the graph has its own copy.
    prompt_ids, greedy_ids = bundle.golden.prompt_ids, list(bundle.golden.greedy_ids)
    if not prompt_ids or not greedy_ids:
        return
    decoded = torch_greedy(model, prompt_ids, len(greedy_ids))
    error = bundle_error(bundle, decoded)
    if decoded.greedy_ids != greedy_ids or not error <= MOST_LOGIT_ERROR:
        raise MerinoError(
            f"{folder}: bundle.json and the graph do not belong together. The model that bundle.json describes, with"
            f" the graph's weights, decodes the golden prompt to {decoded.greedy_ids} instead of {greedy_ids}, and its"
            f" logits differ by {error:.1e}, relative, allowed is {MOST_LOGIT_ERROR:.0e}. Export from the checkpoint"
            " instead"
        )
