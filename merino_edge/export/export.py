"""From a model to a bundle: its graph in one dialect, golden ids by torch, the folder, and parity with torch."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from merino_edge.bundles.description import RUNTIME_CHOOSES, ModelFacts, write_bundle, write_description
from merino_edge.bundles.files import is_bundle_alone
from merino_edge.export.golden import GOLDEN_STEPS, clear_golden
from merino_edge.export.onnx.fused import Fused
from merino_edge.export.onnx.graph import Graph
from merino_edge.export.onnx.plain import FusedPlain
from merino_edge.export.onnx.portable import Portable
from merino_edge.export.other_programs import files_for_others
from merino_edge.export.parity import (
    Golden,
    allowed_error,
    allowed_unrounded,
    empty,
    greedy_ids,
    unrounded_error,
    with_quantized,
    worst_error,
)
from merino_edge.export.quantisation.gptq import Hessians
from merino_edge.export.quantisation.groups import MatrixError
from merino_edge.export.quantisation.hessians import hessians_on
from merino_edge.export.quantisation.kv_cache import CacheScales
from merino_edge.export.quantisation.kv_calibration import Calibrated, calibrated_cache
from merino_edge.export.quantisation.smoothquant import NOTE, rows_to_read, smoothed
from merino_edge.export.settled import Settled, settled
from merino_edge.export.source import Source, not_finite
from merino_edge.families.geometry import Geometry
from merino_edge.families.graph_ops import KvLayer, Weights
from merino_edge.families.operators import Core, core_named, core_of
from merino_edge.families.registry import family_of, key_order_of, layout_of
from merino_edge.families.weights import BlockSource, GraphWeights
from merino_edge.storage.atomic import check_folder, new_folder
from merino_runtime.bundle import Bundle, Threads, load_bundle
from merino_runtime.bundle import Golden as GoldenIds
from merino_runtime.errors import MerinoError

Dialect = type[Fused] | type[Portable]


class Stored(NamedTuple):
    """Matrices that the source has in one type: taken over as they are, and quantised again."""

    kind: str
    exact: int
    requantised: int


class Exported(NamedTuple):
    """A finished export.

    `error`: relative to torch with the weights as stored, at the worst step of prefill and decode. In float32 it is the
    largest error of a logit, in other formats the root mean square.
    `steps`: decode steps behind the prefill that were compared. `unrounded`: of a quantised graph with float
    activations, the largest error of a logit; None where nothing is quantised.
    `matrices`: the quantisation error of each; empty where nothing is quantised.
    `why_jinja`: why the board needs jinja2 for the chat template; empty where it does not.
    `stored`: what became of the source's blocks; empty where it has none, or nothing is quantised.
    `calibrated`: matrices that were rounded for a text.
    `cache_rise`: by which share a quantised cache raises the perplexity of the text that its scales were found on, by
    torch; None where there is none, or for random weights. `note`: the graph's.
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


class OnText(NamedTuple):
    """What the source's model shows on a text.

    Attributes:
        rows: gives the text's ids [rows, T]; where no text was named, of what the model writes.
        hessians: of the inputs of its matrices; None where no weight is rounded by them.
        cache: scales of a quantised one; None where there is none.
    """

    rows: Callable[[], np.ndarray]
    hessians: Callable[[], Hessians] | None
    cache: Calibrated | None


def export(
    source: Source, out: Path, *, dialect: str = "fused", precision: str | None = None, context: int | None = None,
    core: Core = "dotprod", overwrite: bool = False, chat: bool = True, last_use: bool = False,
    kv: str | None = None, calibration: Path | None = None,
) -> Exported:  # fmt: skip
    """Write the bundle `out`. Without a `precision` it has the design's weight format, or float32 without a design.

    `core`: the kind of Arm core that the products of whole numbers are written for, where the format has any.
    `kv`: the format of the cache, by default the design's, or that of the activations. `calibration`: a text, on which
    weights are rounded so that the model changes least, and the scales of the cache are found; without it, on one that
    the model writes.
    `overwrite`: random weights may replace trained ones. `chat`: with the source's chat template, if it has one.
    `last_use`: the source's model is changed and then emptied, so that memory holds one copy of the weights at a time.
    Raises MerinoError for a request that is not possible, for a template that raises, for weights that give no finite
    logits, and where the graph differs from torch; then nothing is written.
    """
    asked = settled(
        source, out, dialect=dialect, precision=precision, context=context, core=core, overwrite=overwrite, chat=chat,
        kv=kv, calibration=calibration,
    )  # fmt: skip
    return write_export(source, out, asked, on_text(source, asked), last_use)


def on_text(source: Source, asked: Settled) -> OnText:
    """Raises MerinoError where the text cannot be read, or the cache costs too much on it."""
    form, text = asked.form, asked.calibration
    rows = cache(lambda: rows_to_read(source, form.context, text))
    hessians = hessians_on(source, text) if text and asked.rounds_on_text else None
    fitted = calibrated_cache(source, form.kv, form.context, text, None if text else rows()) if form.kv else None
    return OnText(rows, hessians, fitted)


def write_export(source: Source, out: Path, asked: Settled, found: OnText, last_use: bool = False) -> Exported:
    """Write the bundle `out` as it was settled. `last_use`, and MerinoError: see `export`."""
    form, scales, hessians, given = asked.form, found.cache.scales if found.cache else None, found.hessians, source
    if form.precision == "int8" and written_by(form.dialect, form.precision, core_named(form.core)) is Fused:
        source = smoothed(source, found.rows, in_place=last_use)
    if source is not given:
        last_use = True
        hessians = hessians_on(source, asked.calibration) if asked.calibration else None
    graph = build_graph(source, form.dialect, form.context, form.precision, core_named(form.core), hessians, scales)
    graph.note = NOTE if source is not given else ""
    check_folder(out, is_bundle_alone, graph.weight_bytes)
    errors, stored, calibrated = graph.matrix_errors(), stored_blocks(source, graph), graph.calibrated
    dequantised = with_quantized(source.model, graph.quantized, layout_of(source.arch), in_place=last_use)
    golden = clear_golden(dequantised, source.arch.vocab, form.context, scales)
    if not np.isfinite(golden.logits).all():
        raise not_finite(source.model, source.name)
    model = ModelFacts(
        source.name, source.family, source.arch, source.weights, source.weights_source, source.stop_ids,
        asked.chat.chat if asked.chat else None,
    )  # fmt: skip
    names = [port.name for port in graph.inputs]
    others = form.dialect == "fused" and form.kv is None  # other programs make caches of floats
    beside = files_for_others(model, names, form.context, source.tokenizer, asked.template) if others else {}
    with new_folder(out, is_bundle_alone, graph.weight_bytes) as folder:
        bundle = write_bundle(
            folder, model, graph, form,
            GoldenIds(tuple(golden.prompt_ids), tuple(golden.greedy_ids[:GOLDEN_STEPS])),
            threads=planned_threads(source, form.precision), tokenizer=source.tokenizer, template=asked.template,
            beside=beside,
        )  # fmt: skip
        if last_use:
            graph.forget()
            empty(source.model)
        bundle, error, unrounded = proved(load_bundle(str(folder)), golden, bool(errors), form.kv)
    made, why_jinja = bundle._replace(folder=str(out)), asked.chat.why_jinja if asked.chat else ""
    steps, rise = len(golden.logits) - 1, found.cache.rise if found.cache else None
    return Exported(out, made, error, steps, unrounded, errors, stored, why_jinja, calibrated, rise, graph.note)


def proved(
    bundle: Bundle, golden: Golden, quantised: bool, kv: str | None = None
) -> tuple[Bundle, float, float | None]:
    """The bundle, its error, and that with float activations (None if not `quantised`).

    Raises MerinoError where its graph differs from torch. A graph of quantised weights, or with the quantised cache
    `kv`, carries the greedy ids that it itself chooses: rounded values may choose others than torch.
    """
    unrounded = unrounded_error(bundle, golden) if quantised else None
    if unrounded is not None:
        check_error(bundle, unrounded, allowed_unrounded(bundle), " with float activations")
    error = worst_error(bundle, golden)
    check_error(bundle, error, allowed_error(bundle))
    own = quantised or kv
    chosen = tuple(greedy_ids(bundle, golden.prompt_ids, len(bundle.golden.greedy_ids))) if own else ()
    if chosen and chosen != bundle.golden.greedy_ids:
        bundle = bundle._replace(golden=bundle.golden._replace(greedy_ids=chosen))
        write_description(bundle)
    return bundle, error, unrounded


def check_error(bundle: Bundle, error: float, allowed: float, how: str = "") -> None:
    """Raises MerinoError where it is above what is allowed, or no number."""
    if not error <= allowed:
        raise MerinoError(
            f"the {bundle.dialect} graph{how} differs from torch by {error:.1e}, relative, allowed is {allowed:.0e}: a"
            " defect of the exporter or of this onnxruntime; nothing was written"
        )


def stored_blocks(source: Source, graph: Graph) -> list[Stored]:
    """By type, in the order of the graph: how many matrices the graph has in the source's own blocks, and how many in
    blocks that they were quantised into."""
    if source.blocks is None:
        return []
    kinds = {name: source.blocks.kind(name) for names in graph.quantized for name in names}
    return [
        Stored(
            kind, sum(kinds[name] == kind for name in graph.exact),
            sum(found == kind and name not in graph.exact for name, found in kinds.items()),
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


def build_graph(
    source: Source, dialect: str, context: int, precision: str, core: Core = "dotprod",
    hessians: Callable[[], Hessians] | None = None, scales: CacheScales | None = None,
) -> Graph:  # fmt: skip
    """The graph of the source's model, with its weights in float32 or quantised. `hessians`: see `Graph`. `scales`: of
    a quantised cache, in the order of torch's model."""
    weights = {name: tensor.detach().float().numpy() for name, tensor in source.model.state_dict().items()}
    scales = scales.in_order(key_order_of(source.arch)) if scales else None
    form = written_by(dialect, precision, core)
    return walked_graph(form, source.arch, weights, context, precision, source.blocks, hessians, scales)


def written_by(dialect: str, precision: str, core: Core) -> Dialect:
    if dialect == "portable":
        return Portable
    return FusedPlain if core_of(dialect, precision, core) == "plain" else Fused


def walked_graph(
    dialect: Dialect, arch: Geometry, weights: Weights, context: int, precision: str,
    blocks: BlockSource | None = None, hessians: Callable[[], Hessians] | None = None,
    scales: CacheScales | None = None,
) -> Graph:  # fmt: skip
    """The graph of a geometry by its family's builder, in a dialect. `weights`: the state dict of its torch model."""
    kv_layers = [KvLayer(index, heads, size) for index, (heads, size) in enumerate(arch.kv_layers)]
    graph = dialect(GraphWeights(weights, layout_of(arch)), context, precision, blocks)
    graph.hessians, graph.cache_scales = hessians, scales
    graph.begin_decoder(kv_layers)
    family_of(arch).build_graph(graph, arch)
    return graph
