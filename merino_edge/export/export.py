"""An export: source -> plan -> quantized weights -> graph -> bundle -> proof.

The numbered steps are in `export` and `export_planned`. `source.load_source` loads the model that a name, a folder or a
GGUF file means. `quantize.weights` quantizes its matrices; those of a GGUF keep their blocks if the format allows it.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from merino_edge.bundles.description import ModelFacts, write_bundle
from merino_edge.bundles.files import is_bundle_alone
from merino_edge.bundles.other_programs import files_for_others
from merino_edge.export.adapters import read_adapters
from merino_edge.export.dialects import build_graph
from merino_edge.export.divergence import (
    MOST_CACHE_KL,
    Answer,
    Divergence,
    answers_of,
    cache_divergence,
    divergence,
    divergence_words,
    keeps,
)
from merino_edge.export.memory import folder_of
from merino_edge.export.mixed import mixed_plan
from merino_edge.export.parity import GOLDEN_STEPS, check_parity, decode_golden, dequantized_model
from merino_edge.export.plan import ExportPlan, fastest_plans, resolve_plan
from merino_edge.export.quantize.calibration import (
    LONGEST_ROW,
    ROW,
    calibrated_cache,
    filled_layers,
    hessians_on,
    input_hessians,
    norm_input_sizes,
    rows_to_read,
)
from merino_edge.export.quantize.gptq import Hessians
from merino_edge.export.quantize.kv_cache import BITS, CacheScales, scales_of
from merino_edge.export.quantize.outliers import TWICE, with_outliers
from merino_edge.export.quantize.smoothquant import NOTE, smoothed
from merino_edge.export.quantize.weights import Matrices, MatrixError, Rounding, matrix_errors, quantized_matrices
from merino_edge.export.request import ExportRequest, in_one_format
from merino_edge.export.source import Source, graph_weights, not_finite
from merino_edge.storage.atomic import check_folder, new_folder, parents_made, scratch_folder
from merino_edge.storage.faults import one_line
from merino_runtime.bundle import Bundle, Golden, load_bundle
from merino_runtime.errors import MerinoError
from merino_runtime.io.memory import return_free_pages

DEFAULTS = ExportRequest()
Say = Callable[[str], None]


class Exported(NamedTuple):
    """A finished export.

    Attributes:
        error: relative to torch with the weights as stored, at the worst step of prefill and decode: in float32 the
            maximum logit error, in other formats the RMS.
        steps: decode steps behind the prefill that were compared.
        unrounded: maximum logit error of a quantized graph with float activations; None if nothing is quantized.
        matrices: the quantization error of each; empty if nothing is quantized.
        stored: (GGUF type, matrices kept exactly, matrices quantized again) for each type in the source; empty if
            its matrices are floats, or nothing is quantized.
        why_jinja: why the board needs jinja2 for the chat template; empty if it does not.
        calibrated: number of matrices that GPTQ rounded.
        cache_rise: relative rise of the perplexity by a quantized KV cache that the user asked for, in torch, on the
            text that its scales are fitted to; None without such a cache, or for random weights.
        cache_alone: the divergence by the default KV cache alone, which is float if that is measurable; None if the
            user chose the cache, or nothing is compared.
        note: the graph's metadata, in words: whether SmoothQuant or outlier groups changed it.
        divergence: from float32, on the model's own answers; None for random weights, for a model without a tokenizer,
            and if nothing is quantized.
    """

    folder: Path
    bundle: Bundle
    error: float
    steps: int
    unrounded: float | None
    matrices: list[MatrixError]
    stored: list[tuple[str, int, int]]
    why_jinja: str = ""
    calibrated: int = 0
    cache_rise: float | None = None
    cache_alone: Divergence | None = None
    note: str = ""
    divergence: Divergence | None = None


class Calibration(NamedTuple):
    """Statistics for quantization, measured on a text, or without one on text that the model generates.

    Attributes:
        rows: a function that returns the text's ids [rows, T], for SmoothQuant, outliers, and GPTQ without a text from
            the user.
        hessians: a function that returns the Hessians of the matrices' inputs; None if GPTQ rounds no weight.
        scales: scales of a quantized KV cache; None if it is not quantized, or the default one would change answers.
        cache_rise, cache_alone: see `Exported`.
        answers: answers of the float32 model, to compare the bundle with; empty if nothing is compared.
    """

    rows: Callable[[], np.ndarray]
    hessians: Callable[[], Hessians] | None
    scales: CacheScales | None
    cache_rise: float | None
    cache_alone: Divergence | None
    answers: list[Answer]


def export(
    source: Source, out: Path, request: ExportRequest = DEFAULTS, *, last_use: bool = False,
    say: Say = lambda _: None, progress: Say = lambda _: None,
) -> Exported:  # fmt: skip
    """Write the bundle `out`.

    `last_use`: the source's model is changed and then emptied, so that memory holds one copy of the weights at a time.
    `say` gets a line for each format that `auto` tries, and one on what `mixed` chose. `progress` gets the name of each
    step. Raises MerinoError for a request that is not possible, for a chat template that raises, for weights that give
    no finite logits, and if the graph differs from torch; then nothing is written.
    """
    # 1. Resolve the plan. `auto` has several, the fastest first: the first that keeps the model's answers is used.
    if request.precision == "auto":
        plans = fastest_plans(request, source, out)
    else:
        plans = [resolve_plan(in_one_format(request), source, out)]

    # 2. Calibrate: run the float32 model on a text, and let it answer questions. `auto` calibrates once for all plans.
    calibration = calibrate(source, plans[0], progress)
    return_free_pages()
    if calibration.scales is None:
        plans = [plan._replace(form=plan.form._replace(kv=None)) for plan in plans]
    if request.precision == "mixed":
        plans = [mixed_plan(plans[0], source, request, calibration.answers, say)]

    # 3 to 8. Quantize, build the graph, write the bundle, prove it.
    if len(plans) == 1:
        return export_planned(source, out, plans[0], calibration, last_use, progress=progress)
    return export_fastest(source, out, plans, calibration, say=say, progress=progress)


def export_planned(
    source: Source, out: Path, plan: ExportPlan, calibration: Calibration, last_use: bool = False, *,
    progress: Say = lambda _: None,
) -> Exported:  # fmt: skip
    """Write the bundle `out` by one plan. See `export` for `last_use` and MerinoError."""
    form, hessians, note = plan.form, calibration.hessians, ""
    scales = calibration.scales if form.kv else None

    # 3. SmoothQuant: move outlier channels of activations into the weights.
    adapters = read_adapters(plan.adapters, source.arch, graph_weights(source))
    if plan.smoothquant and (
        rescaled := smoothed(source, calibration.rows, adapters, in_place=last_use)
    ) is not source:
        source, last_use, note = rescaled, True, NOTE
        hessians = hessians_on(source, plan.calibration) if plan.calibration else None

    # 4. Quantize: keep a GGUF's blocks, round the other matrices (GPTQ), store groups with outliers twice.
    weights = graph_weights(source)
    rounding = Rounding(source.blocks, hessians, plan.eight_bits, folder_of(source.model))
    matrices = quantized_matrices(source.arch, weights, form, rounding, progress)
    if plan.outliers:
        matrices = with_outliers(matrices, norm_input_sizes(source, calibration.rows()))
        note = TWICE if any(matrix.outliers for matrix in matrices.values()) else note
    errors, stored = matrix_errors(weights, matrices), type_counts(source, matrices)
    calibrated = sum(len(name.split("+")) for name, matrix in matrices.items() if matrix.by_gptq)

    # 5. Build the graph. Its size is known now, so check the disk before the slow steps.
    graph = build_graph(source.arch, weights, matrices, form, scales, adapters=adapters)
    graph.note = note
    check_folder(out, is_bundle_alone, graph.weight_bytes)

    # 6. Decode golden ids in torch, with the dequantized weights.
    progress("decoding in torch")
    dequantized = dequantized_model(source.model, matrices, source.arch.layout, in_place=last_use)
    golden = decode_golden(dequantized, source.arch.vocab, form.context, scales)
    if not np.isfinite(golden.logits).all():
        raise not_finite(source.model, source.name)

    # 7. Write the bundle.
    progress("writing the bundle")
    model = ModelFacts(
        source.name, source.family, source.arch, source.weights, source.weights_source, stop_ids=source.stop_ids,
        chat=plan.chat.chat if plan.chat else None,
    )  # fmt: skip
    beside = {}
    if form.dialect == "fused" and form.kv is None:  # other programs allocate float caches
        inputs = [port.name for port in graph.inputs]
        beside = files_for_others(
            model, inputs, form.context, source.tokenizer, plan.template, library=bool(graph.own_kernels)
        )
    with new_folder(out, is_bundle_alone, graph.weight_bytes) as folder:
        write_bundle(
            folder, model, graph, form, Golden(tuple(golden.prompt_ids), tuple(golden.greedy_ids[:GOLDEN_STEPS])),
            threads=plan.threads, tokenizer=source.tokenizer, template=plan.template, beside=beside,
        )  # fmt: skip
        del weights, matrices, adapters
        if last_use:
            graph.forget()
            for parameter in source.model.parameters():  # references to the model may remain
                parameter.data = torch.empty(0)

        return_free_pages()

        # 8. Prove it: compare logits with torch's, and answers with the float32 model's. Write a quantized bundle's own
        #    golden ids.
        progress("comparing with torch")
        bundle, error, unrounded = check_parity(load_bundle(str(folder)), golden, bool(errors), form.kv)
        progress(f"answering {len(calibration.answers)} questions in {form.precision}")
        diverges = divergence(bundle, calibration.answers) if plan.compared and calibration.answers else None
    return Exported(
        out, bundle._replace(folder=str(out)), error, steps=len(golden.logits) - 1, unrounded=unrounded,
        matrices=errors, stored=stored, why_jinja=plan.chat.why_jinja if plan.chat else "", calibrated=calibrated,
        cache_rise=calibration.cache_rise, cache_alone=calibration.cache_alone, note=note, divergence=diverges,
    )  # fmt: skip


def calibrate(source: Source, plan: ExportPlan, progress: Say = lambda _: None) -> Calibration:
    """Measure the statistics that the plan needs.

    Raises MerinoError if the text cannot be read, or if a quantized KV cache costs too much on it.
    """
    form, text = plan.form, plan.calibration
    rows = cache(lambda: rows_to_read(source, form.context, text))
    hessians = None
    if plan.gptq:
        hessians = hessians_on(source, text) if text else cache(lambda: input_hessians(source.model, rows()))
    scales = rise = alone = None
    if form.kv:
        progress("fitting the KV cache")
        long_rows = rows_to_read(source, form.context, text, LONGEST_ROW) if text else rows()
        if plan.cache_by_default:
            enough = long_rows if source.weights == "trained" else long_rows[:1, :ROW]  # random ids are all alike
            scales = scales_of(filled_layers(source.model, enough), BITS[form.kv])
        else:
            scales, rise = calibrated_cache(source, form.kv, long_rows, text)
    progress("answering questions in float32")
    answers = answers_of(source, form.context) if plan.compared else []
    if scales and plan.cache_by_default and answers:
        alone = cache_divergence(source.model, answers, scales)
        scales = None if alone.kl_mean > MOST_CACHE_KL else scales
    return Calibration(rows, hessians, scales, cache_rise=rise, cache_alone=alone, answers=answers)


def export_fastest(
    source: Source, out: Path, plans: Sequence[ExportPlan], calibration: Calibration, *, say: Say, progress: Say
) -> Exported:
    """Write the bundle `out` by the first plan that loses no more than MOST_LOST of the model's answers.

    The answers of random weights mean nothing, so for these the first format that can be written is used. The last of
    `plans` is float32, which is not compared.
    """
    with parents_made(out), scratch_folder(out) as scratch:
        for plan in plans:
            line = f"{plan.form.precision}: {plan.predicted}"
            try:
                made = export_planned(source, scratch / plan.form.precision, plan, calibration, progress=progress)
            except MerinoError as error:  # such as groups that do not divide a row
                if plan is plans[-1]:
                    raise
                say(f"{line}, refused: {one_line(error)}")
                continue
            measured = made.divergence if plan is not plans[-1] else None
            taken = keeps(measured)
            words = f", {divergence_words(measured)}" if measured else ""
            say(f"{line}{words}: {'taken' if taken else 'refused'}")
            if taken:
                break
            shutil.rmtree(made.folder)
        with new_folder(out, is_bundle_alone) as folder:
            for file in made.folder.iterdir():
                file.rename(folder / file.name)
    return made._replace(folder=out, bundle=made.bundle._replace(folder=str(out)))


def type_counts(source: Source, matrices: Matrices) -> list[tuple[str, int, int]]:
    """Count the matrices of each GGUF type that are kept exactly, and those that are quantized again."""
    blocks = source.blocks
    if blocks is None:
        return []
    totals = Counter(blocks.kind(name) for joined in matrices for name in joined.split("+"))
    exact = Counter(blocks.kind(name) for matrix in matrices.values() for name in matrix.exact)
    return [(kind, exact[kind], total - exact[kind]) for kind, total in totals.items()]
