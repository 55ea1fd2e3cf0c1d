"""Export in one resolved format: graph, golden ids by torch, bundle folder, parity with torch."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from merino_edge.bundles.description import RUNTIME_CHOOSES, GraphFormat, ModelFacts, write_bundle, write_description
from merino_edge.bundles.files import is_bundle_alone
from merino_edge.export.divergence import Answer, Divergence, answers_of, divergence
from merino_edge.export.golden import GOLDEN_STEPS, clear_golden
from merino_edge.export.graphs import build_graph
from merino_edge.export.onnx.graph import Graph
from merino_edge.export.other_programs import files_for_others
from merino_edge.export.parity import (
    Golden,
    allowed_error,
    allowed_unrounded,
    bundle_error,
    empty,
    greedy_ids,
    unrounded_error,
    with_quantized,
)
from merino_edge.export.quantize.gptq import Hessians
from merino_edge.export.quantize.groups import MatrixError
from merino_edge.export.quantize.hessians import hessians_on, input_hessians
from merino_edge.export.quantize.kv_calibration import Calibrated, calibrated_cache
from merino_edge.export.quantize.outliers import TWICE
from merino_edge.export.quantize.smoothquant import NOTE, input_sizes, rows_to_read, smoothed
from merino_edge.export.request import ROUNDED
from merino_edge.export.resolved import ResolvedExport
from merino_edge.export.source import Source, not_finite
from merino_edge.families.registry import decoder_of, layout_of
from merino_edge.storage.atomic import check_folder, new_folder
from merino_runtime.bundle import Bundle, Threads, load_bundle
from merino_runtime.bundle import Golden as GoldenIds
from merino_runtime.errors import MerinoError


class Stored(NamedTuple):
    """The source's matrices of one GGUF type: how many are taken over bit-exactly, and how many are quantized again."""

    kind: str
    exact: int
    requantized: int


class Exported(NamedTuple):
    """A finished export.

    Attributes:
        error: relative to torch with the weights as stored, at the worst step of prefill and decode: in float32 the
            maximum logit error, in other formats the RMS.
        steps: decode steps behind the prefill that were compared.
        unrounded: maximum logit error of a quantized graph with float activations; None where nothing is quantized.
        matrices: the quantization error of each; empty where nothing is quantized.
        stored: how the source's quantized matrices were taken over; empty where it has none, or nothing is quantized.
        why_jinja: why the board needs jinja2 for the chat template; empty where it does not.
        calibrated: number of matrices that GPTQ rounded.
        cache_rise: relative rise of the perplexity by a quantized KV cache, in torch, on the text that its scales are
            fitted to; None without such a cache, or for random weights.
        note: of the graph.
        divergence: from float32, on the model's own answers; None for random weights, for a model without a tokenizer,
            and where nothing is quantized.
        instead: where too many answers are lost, the options of a format that keeps them; set by `export_named`.
    """

    folder: Path
    bundle: Bundle
    error: float
    steps: int
    unrounded: float | None
    matrices: list[MatrixError]
    stored: list[Stored]
    why_jinja: str = ""
    calibrated: int = 0
    cache_rise: float | None = None
    note: str = ""
    divergence: Divergence | None = None
    instead: str = ""


class Calibration(NamedTuple):
    """Statistics for quantization, measured on a text, or without one on text that the model generates.

    Attributes:
        rows: gives the text's ids [rows, T], for SmoothQuant, and for GPTQ without a text from the user.
        hessians: of the inputs of the matrices, for GPTQ; None where no weight is rounded by it.
        cache: scales of a quantized KV cache; None where it is not quantized.
        answers: of the model in float32, to compare the bundle with; empty where nothing is compared.
    """

    rows: Callable[[], np.ndarray]
    hessians: Callable[[], Hessians] | None
    cache: Calibrated | None
    answers: list[Answer]


def calibrate(source: Source, resolved: ResolvedExport) -> Calibration:
    """Raises MerinoError where the text cannot be read, or the cache costs too much on it."""
    form, text = resolved.form, resolved.calibration
    rows = cache(lambda: rows_to_read(source, form.context, text))
    hessians = None
    if resolved.gptq:
        hessians = hessians_on(source, text) if text else cache(lambda: input_hessians(source.model, rows()))
    fitted = calibrated_cache(source, form.kv, form.context, text, None if text else rows()) if form.kv else None
    judged = source.weights == "trained" and source.tokenizer is not None
    rounds = form.kv is not None or form.precision in ROUNDED
    answers = answers_of(source, form.context) if judged and rounds else []
    return Calibration(rows, hessians, fitted, answers)


def write_export(
    source: Source, out: Path, resolved: ResolvedExport, calibration: Calibration, last_use: bool = False
) -> Exported:
    """Write the bundle `out` as it was resolved. `last_use`, and MerinoError: see `export`."""
    form, text, hessians, given = resolved.form, resolved.calibration, calibration.hessians, source
    scales, rise = calibration.cache or (None, None)
    if form.precision == "int8" and rounds_in_groups(form):
        source = smoothed(source, calibration.rows, in_place=last_use)
    if source is not given:
        last_use = True
        hessians = hessians_on(source, text) if text else None
    sizes = channel_sizes(source, resolved, calibration)
    graph = build_graph(source, form, hessians, scales, sizes, resolved.eight_bits, text is not None)
    graph.note = NOTE if source is not given else TWICE if graph.outliers else ""
    check_folder(out, is_bundle_alone, graph.weight_bytes)
    errors, stored, calibrated = graph.matrix_errors(), stored_blocks(source, graph), graph.calibrated
    dequantized = with_quantized(source.model, graph.quantized, layout_of(source.arch), in_place=last_use)
    golden = clear_golden(dequantized, source.arch.vocab, form.context, scales)
    if not np.isfinite(golden.logits).all():
        raise not_finite(source.model, source.name)
    model = ModelFacts(
        source.name, source.family, source.arch, source.weights, source.weights_source, source.stop_ids,
        resolved.chat.chat if resolved.chat else None,
    )  # fmt: skip
    names = [port.name for port in graph.inputs]
    # Other programs allocate float caches, and lack this project's operators.
    others = form.dialect == "fused" and form.kv is None and not graph.own_kernels
    beside = files_for_others(model, names, form.context, source.tokenizer, resolved.template) if others else {}
    with new_folder(out, is_bundle_alone, graph.weight_bytes) as folder:
        bundle = write_bundle(
            folder, model, graph, form,
            GoldenIds(tuple(golden.prompt_ids), tuple(golden.greedy_ids[:GOLDEN_STEPS])),
            threads=planned_threads(source, form.precision), tokenizer=source.tokenizer, template=resolved.template,
            beside=beside,
        )  # fmt: skip
        if last_use:
            graph.forget()
            empty(source.model)
        bundle, error, unrounded = proved(load_bundle(str(folder)), golden, bool(errors), form.kv)
        diverges = divergence(bundle, calibration.answers) if calibration.answers and (errors or form.kv) else None
    made, why_jinja = bundle._replace(folder=str(out)), resolved.chat.why_jinja if resolved.chat else ""
    return Exported(
        out, made, error, len(golden.logits) - 1, unrounded, errors, stored, why_jinja, calibrated, rise, graph.note,
        diverges,
    )  # fmt: skip


def rounds_in_groups(form: GraphFormat) -> bool:
    """Whether activations are rounded in groups where they are multiplied, by MatMulNBits or this project's kernels."""
    return form.dialect == "fused"


def channel_sizes(source: Source, resolved: ResolvedExport, calibration: Calibration) -> dict[str, np.ndarray] | None:
    """Sizes of the channels behind norms, for int4, where groups with outlier channels are stored twice (int8 has
    SmoothQuant). None for random weights, which have no outliers, and for families with a graph builder of their
    own."""
    decoder, rounds = decoder_of(source.arch), resolved.form.precision == "int4" and rounds_in_groups(resolved.form)
    if decoder is None or not rounds or source.weights == "random":
        return None
    names = [linear.weights[0] for layer in decoder.layers for linear in (layer.qkv, layer.up)]
    return input_sizes(source.model, names, calibration.rows())


def proved(
    bundle: Bundle, golden: Golden, quantized: bool, kv: str | None = None
) -> tuple[Bundle, float, float | None]:
    """The bundle, its error, and its error with float activations (None if not `quantized`).

    Raises MerinoError where the graph differs from torch. A bundle with quantized weights, or with the quantized cache
    `kv`, carries its own greedy ids: after rounding, the argmax may differ from torch's.
    """
    unrounded = unrounded_error(bundle, golden) if quantized else None
    if unrounded is not None:
        check_error(bundle, unrounded, allowed_unrounded(bundle), " with float activations")
    error = bundle_error(bundle, golden)
    check_error(bundle, error, allowed_error(bundle))
    own = quantized or kv
    chosen = tuple(greedy_ids(bundle, golden.prompt_ids, len(bundle.golden.greedy_ids))) if own else ()
    if chosen and chosen != bundle.golden.greedy_ids:
        bundle = bundle._replace(golden=bundle.golden._replace(greedy_ids=chosen))
        write_description(bundle)
    return bundle, error, unrounded


def check_error(bundle: Bundle, error: float, allowed: float, how: str = "") -> None:
    """Raises MerinoError where the error is above the allowed one, or NaN."""
    if not error <= allowed:
        raise MerinoError(
            f"the {bundle.dialect} graph{how} differs from torch by {error:.1e}, relative, allowed is {allowed:.0e}: a"
            " defect of the exporter or of this onnxruntime; nothing was written"
        )


def stored_blocks(source: Source, graph: Graph) -> list[Stored]:
    """By GGUF type, in the order of the graph: matrices in the source's own blocks, and matrices quantized again."""
    if source.blocks is None:
        return []
    kinds = {name: source.blocks.kind(name) for names in graph.quantized for name in names}
    return [
        Stored(
            kind, sum(kinds[name] == kind for name in graph.exact),
            sum(each == kind and name not in graph.exact for name, each in kinds.items()),
        )
        for kind in dict.fromkeys(kinds.values())
    ]  # fmt: skip


def planned_threads(source: Source, precision: str) -> Threads:
    """The thread counts of the source's design or bundle where they were planned for this weight format; otherwise
    the runtime chooses."""
    plan = source.design.predicted if source.design and source.design.precision == precision else None
    if plan:
        return Threads(prefill=plan.prefill_threads, decode=plan.decode_threads)
    if source.bundle and source.bundle.precision == precision:
        return source.bundle.threads
    return RUNTIME_CHOOSES
