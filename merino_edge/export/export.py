"""From a model to a bundle: its graph in one dialect, golden ids by torch, the folder, and parity with torch."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedModel

from merino_edge.bundles.description import RUNTIME_CHOOSES, GraphFormat, ModelFacts
from merino_edge.bundles.files import described, is_bundle, is_bundle_alone
from merino_edge.bundles.write import write_bundle
from merino_edge.export.memory import IMPORTS_MB, check_memory, weights_mb
from merino_edge.export.onnx.fused import Fused
from merino_edge.export.onnx.graph import Graph
from merino_edge.export.onnx.plain import FusedPlain
from merino_edge.export.onnx.portable import Portable
from merino_edge.export.parity import Golden, allowed_error, torch_greedy, with_quantized, worst_error
from merino_edge.export.quantize import MatrixError
from merino_edge.export.request import chosen_precision
from merino_edge.export.source import Source
from merino_edge.families.geometry import Geometry
from merino_edge.families.graph_ops import KvLayer, Weights
from merino_edge.families.operators import Core, core_of
from merino_edge.families.registry import family_of
from merino_edge.storage.atomic import check_folder, check_keeps, new_folder
from merino_runtime.bundle import Bundle, Threads, load_bundle
from merino_runtime.bundle import Golden as GoldenIds
from merino_runtime.errors import MerinoError

GOLDEN_STEPS = 16
GOLDEN_PROMPTS = 8  # tried at most
CLEAR_LEAD = 0.15  # three times the error that quantised formats are allowed
Dialect = type[Fused] | type[Portable]


class Exported(NamedTuple):
    """A finished export.

    `error`: relative to torch with the weights as stored, at the worst step of prefill and decode. In float32 it is the
    largest error of a logit, in other formats the root mean square.
    `matrices`: the quantisation error of each; empty where nothing is quantised.
    """

    folder: Path
    bundle: Bundle
    error: float
    matrices: list[MatrixError]


def export(
    source: Source, out: Path, *, dialect: str = "fused", precision: str | None = None, context: int | None = None,
    core: Core = "dotprod", overwrite: bool = False,
) -> Exported:  # fmt: skip
    """Write the bundle `out`. Without a `precision` it has the design's weight format, or float32 without a design.

    `core`: the kind of Arm core that the products of whole numbers are written for, where the format has any.
    `overwrite`: random weights may replace trained ones. Raises MerinoError for a request that is not possible, for
    weights that give no finite logits, and where the graph differs from torch; then nothing is written.
    """
    precision = chosen_precision(dialect, precision, source.design)
    context = chosen_context(source, context)
    check_replaces(source, out, overwrite)
    check_memory(source.arch, source.name, precision, IMPORTS_MB + weights_mb(source.arch))
    graph = build_graph(source, dialect, context, precision, core)
    check_folder(out, is_bundle_alone, graph.weight_bytes)
    golden = clear_golden(with_quantized(source.model, graph.quantized), source.arch.vocab, context)
    if not np.isfinite(golden.logits).all():
        raise MerinoError(f"the weights of {source.name} give logits that are no numbers: train at a lower rate")
    model = ModelFacts(
        source.name, source.family, source.arch, source.weights, source.weights_source, source.stop_ids
    )
    with new_folder(out, is_bundle_alone, graph.weight_bytes) as folder:
        bundle = write_bundle(
            folder, model, graph, GraphFormat(precision, dialect, context, core_of(dialect, precision, core)),
            GoldenIds(tuple(golden.prompt_ids), tuple(golden.greedy_ids)),
            threads=planned_threads(source, precision), tokenizer=source.tokenizer,
        )  # fmt: skip
        error = worst_error(load_bundle(str(folder)), golden)
        if not error <= allowed_error(precision):
            raise MerinoError(
                f"the {dialect} graph differs from torch by {error:.1e}, relative, allowed is"
                f" {allowed_error(precision):.0e}: a defect of the exporter or of this onnxruntime; nothing was written"
            )
    return Exported(out, bundle._replace(folder=str(out)), error, graph.matrix_errors())


def chosen_context(source: Source, context: int | None) -> int:
    """The bundle's context in tokens. Raises MerinoError, with what is allowed, for one that the model cannot have."""
    longest = source.arch.context
    if context is not None and not 8 <= context <= longest:
        raise MerinoError(f"--context {context} is not allowed: {source.name} takes 8 to {longest} tokens")
    return context or longest


def check_replaces(source: Source, out: Path, overwrite: bool) -> None:
    """Raises MerinoError where `out` may not be replaced: it is the source itself, or it holds weights that may be
    trained, and the source's are random."""
    check_keeps(out, [Path(source.bundle.folder)] if source.bundle else [])
    there = described(out)
    kind, origin = there.get("weights", "unknown"), there.get("weights_source", "bundle.json is damaged")
    if source.weights == "random" and is_bundle(out) and kind != "random" and not overwrite:
        raise MerinoError(
            f"{out} holds {kind} weights ({origin}), and those of {source.name} are random: choose another -o, or give"
            " --overwrite to replace them"
        )


def clear_golden(model: PreTrainedModel, vocab: int, context: int) -> Golden:
    """The first greedy continuation whose every choice leads by CLEAR_LEAD; of GOLDEN_PROMPTS without one, the best.

    CPUs round differently, above all where activations are quantised to int8, and would choose differently between
    logits that are nearly equal.
    """
    found = []
    for attempt in range(GOLDEN_PROMPTS):
        prompt_ids = golden_prompt(vocab, context, attempt)
        found.append(torch_greedy(model, prompt_ids, min(GOLDEN_STEPS, context - len(prompt_ids))))
        if least_lead(found[-1]) >= CLEAR_LEAD:
            break
    return max(found, key=least_lead)


def golden_prompt(vocab: int, context: int, attempt: int) -> list[int]:
    """Ids spread over the vocabulary, so that the self-test needs no tokenizer."""
    return [(37 + 7919 * index + 104729 * attempt) % vocab for index in range(min(8, context // 2))]


def least_lead(golden: Golden) -> float:
    """The smallest difference between a step's two largest logits, relative to the root mean square of that step."""
    second, first = np.sort(golden.logits, axis=1)[:, -2:].T
    return float(((first - second) / np.sqrt(np.square(golden.logits).mean(axis=1))).min())


def planned_threads(source: Source, precision: str) -> Threads:
    """The thread counts of the source's design or bundle where they were planned for this weight format; otherwise
    the runtime chooses."""
    plan = source.design.predicted if source.design and source.design.precision == precision else None
    if plan:
        return Threads(prefill=plan.prefill_threads, decode=plan.decode_threads)
    if source.bundle and source.bundle.precision == precision:
        return source.bundle.threads
    return RUNTIME_CHOOSES


def build_graph(source: Source, dialect: str, context: int, precision: str, core: Core = "dotprod") -> Graph:
    """The graph of the source's model, with its weights in float32 or quantised."""
    weights = {name: tensor.detach().float().numpy() for name, tensor in source.model.state_dict().items()}
    return walked_graph(written_by(dialect, precision, core), source.arch, weights, context, precision)


def written_by(dialect: str, precision: str, core: Core) -> Dialect:
    if dialect == "portable":
        return Portable
    return FusedPlain if core_of(dialect, precision, core) == "plain" else Fused


def walked_graph(
    dialect: Dialect, arch: Geometry, weights: Weights, context: int, precision: str
) -> Graph:
    """The walk of the geometry's family, written in a dialect."""
    kv_layers = [KvLayer(index, heads, size) for index, (heads, size) in enumerate(arch.kv_layers)]
    graph = dialect(weights, context, precision)
    graph.begin_decoder(kv_layers)
    family_of(arch).walk(graph, arch)
    return graph
