"""The plan of an export: a request, resolved against facts of its source before any work. Defaults are applied, and
impossible requests are refused.

`request` checks what needs no torch. `fastest_plans` and `mixed.mixed_plan` return plans for `--precision auto` and
`mixed`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import tokenizers

from merino_edge.bundles.chat import BundleChat, chat_of, for_texts
from merino_edge.bundles.description import RUNTIME_CHOOSES, GraphFormat
from merino_edge.bundles.files import described, is_bundle
from merino_edge.export.adapters import read_adapters
from merino_edge.export.memory import check_memory
from merino_edge.export.request import (
    ROUNDED,
    ExportRequest,
    check_calibration,
    check_context,
    graph_format,
    in_one_format,
)
from merino_edge.export.source import Source, graph_weights
from merino_edge.families.geometry import Geometry
from merino_edge.families.operators import CPU_FORMATS, caches_inputs, has_states
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.formats import default_cache
from merino_edge.prediction.shape import InferenceShape, default_prompt
from merino_edge.profiles.profile import DeviceProfile
from merino_edge.storage.atomic import check_keeps
from merino_runtime.bundle import Threads
from merino_runtime.errors import MerinoError
from merino_runtime.generation.text import Tokenizer
from merino_runtime.io.json_file import JSON, read_text

WITH_STATES = [("fused", precision, None) for precision in ("fp32", "int8", "int4")]
MOST_COLUMNS = 768  # of a matrix, for GPTQ on the 2,048 tokens that the model generates (docs/decisions/quantization)


class ExportPlan(NamedTuple):
    """What an export does.

    Attributes:
        adapters: folders of LoRA adapters.
        calibration: text for GPTQ and for the scales of a quantized cache; None: text that the model generates.
        chat: the chat template's entry in bundle.json; None: the bundle has none.
        template: the template's text; None: the bundle has none.
        threads: the thread counts of the source's design or bundle if they were planned for this weight format.
        gptq: whether weights are rounded by GPTQ.
        smoothquant: whether outlier channels of activations are moved into the weights.
        outliers: whether groups with outlier channels are stored twice.
        compared: whether the bundle's answers are compared with those of float32.
        cache_by_default: whether the user did not ask for the KV cache's format, so that it is float if the model's
            answers change.
        eight_bits: names of the matrices of an int4 export that get 8 bits.
        predicted: the decode latency on a board, for people; empty without `--precision auto`.
    """

    form: GraphFormat
    adapters: tuple[Path, ...]
    calibration: Path | None
    chat: BundleChat | None
    template: str | None
    threads: Threads
    gptq: bool
    smoothquant: bool
    outliers: bool
    compared: bool
    cache_by_default: bool
    eight_bits: frozenset[str] = frozenset()
    predicted: str = ""


def resolve_plan(request: ExportRequest, source: Source, out: Path) -> ExportPlan:
    """Resolve a request of one precision, or none. Raises MerinoError for a request that is not possible."""
    check_context(request.context, source.arch.context)
    form = format_of(request, source)
    if form.kv and caches_inputs(source.arch.operators):
        raise MerinoError(
            f"a cache in {form.kv} is not possible for {source.name}: it holds inputs of convolutions or token ids"
            " besides keys and values, which are not quantized. Give --kv fp32"
        )
    if form.kv and form.adapters:
        raise MerinoError(
            f"a cache in {form.kv} is not possible with --set adapters: its scales fit the keys and values of the model"
            " without them. Give --kv fp32"
        )
    if has_states(source.arch.operators) and (form.dialect, form.precision, form.kv) not in WITH_STATES:
        raise MerinoError(
            f"{source.name} has recurrent states (gated DeltaNet), which are exported with --dialect fused in fp32,"
            " int8 and int4, without --kv and for ONNX Runtime alone"
        )
    check_replaces(source, out)
    check_readable(source)
    read_adapters(request.adapters, source.arch, graph_weights(source))
    template = for_texts(source.chat) if request.chat and source.chat else None
    trained, rounded = source.weights == "trained", form.precision in ROUNDED
    # Random weights have no outliers, and families with a graph builder of their own do not name their norms' matrices.
    # In dialect fused activations are rounded in groups, so that an outlier costs its group precision.
    has_outliers = trained and form.dialect == "fused" and source.arch.decoder() is not None
    threads = RUNTIME_CHOOSES
    if source.bundle and source.bundle.precision == form.precision:
        threads = source.bundle.threads
    elif source.design and source.design.precision == form.precision and (predicted := source.design.predicted):
        threads = Threads(prefill=predicted.prefill_threads, decode=predicted.decode_threads)
    plan = ExportPlan(
        form=form,
        adapters=request.adapters,
        calibration=request.calibration,
        chat=chat_of(template) if template else None,
        template=template.text if template else None,
        threads=threads,
        gptq=rounded and request.calibration is not None or form.precision == "int4" and gptq_pays(source),
        smoothquant=has_outliers and form.precision == "int8",
        outliers=has_outliers and form.precision == "int4",
        compared=trained and source.tokenizer is not None and (rounded or form.kv is not None),
        cache_by_default=form.kv is not None and cache_is_open(request, source),
    )
    check_memory(source.arch, source.name, source.model, form.precision, calibrated=plan.gptq)
    return plan


def format_of(request: ExportRequest, source: Source) -> GraphFormat:
    """Return the graph's format, with the default KV cache: float with adapters, which no other fits, and for a trained
    model without a tokenizer, whose answers cannot judge another. Raises MerinoError as `graph_format` does."""
    form = graph_format(request, source.design, request.context or source.arch.context)
    unjudged = source.weights == "trained" and source.tokenizer is None
    if form.adapters or unjudged or not cache_is_open(request, source):
        return form
    return form._replace(kv=default_cache(source.arch, form.precision, form.dialect))


def cache_is_open(request: ExportRequest, source: Source) -> bool:
    """Return whether neither the user nor the design names the KV cache's format. A design names that of its own weight
    format."""
    design = source.design
    other = design is None or (design.kv is None and request.precision not in (None, design.precision))
    return request.kv is None and other


def fastest_plans(request: ExportRequest, source: Source, out: Path) -> list[ExportPlan]:
    """Return a plan for each format that is predicted to be no slower than float32 on the request's board, the fastest
    first. The first that keeps the model's answers is the fastest format.

    Raises MerinoError for a request that is not possible.
    """
    board, form = request.board, resolve_plan(in_one_format(request), source, out).form
    assert board is not None, "in_one_format refuses a request without one"
    unread = request._replace(calibration=None)
    forms = [format_of(unread._replace(precision=precision), source) for precision in CPU_FORMATS]
    times = predicted_ms(source.arch, board, forms)
    order = sorted(times, key=lambda precision: times[precision])
    order = order[: order.index("fp32") + 1]
    if order == ["fp32"]:
        check_calibration("fp32", form.kv, request.calibration)
    plans = []
    for precision in order:  # without calibration text if nothing is quantized
        text = request.calibration if form.kv is not None or precision in ROUNDED else None
        plan = resolve_plan(request._replace(precision=precision, calibration=text), source, out)
        plans.append(plan._replace(predicted=f"{times[precision]:.1f} ms predicted on {board.id}"))
    if len(plans) > 1 and source.weights == "trained" and source.tokenizer is None:
        raise MerinoError(
            f"{source.name} has no tokenizer, so --precision auto cannot compare its answers: name a --precision; by"
            f" predicted latency on {board.id} it would be {order[0]}"
        )
    return plans


def gptq_pays(source: Source) -> bool:
    """Return whether int4 uses GPTQ without a text from the user. It does for trained float weights whose matrices are
    so narrow that text from the model itself suffices to measure their inputs."""
    columns = max(op.columns for op in source.arch.operators if op.kind == "linear" and op.own)
    return source.weights == "trained" and source.blocks is None and columns <= MOST_COLUMNS


def predicted_ms(arch: Geometry, board: DeviceProfile, forms: Sequence[GraphFormat]) -> dict[str, float]:
    """Predict the latency of a decode step with a full cache by weight format."""
    on_cpu = board.with_backend("onnxruntime")
    shapes = [InferenceShape(form.precision, form.context, default_prompt(form.context), form.kv) for form in forms]
    return {shape.precision: cost_model(on_cpu, shape).predict(arch.operators).decode_ms for shape in shapes}


def check_readable(source: Source) -> None:
    """Raises MerinoError if the board's runtime cannot read the source's tokenizer, or its largest id is outside the
    model's vocabulary."""
    if source.tokenizer is None:
        return
    if isinstance(source.tokenizer, str):
        where, text = f"the tokenizer of {source.name}", source.tokenizer
    else:
        where, text = str(source.tokenizer), read_text(str(source.tokenizer), JSON, "Copy the checkpoint again.")
    Tokenizer(text, where)
    largest = max(tokenizers.Tokenizer.from_str(text).get_vocab().values(), default=0)
    if largest >= source.arch.vocab:
        raise MerinoError(
            f"{where} has a token {largest}, and {source.name} has a vocabulary of {source.arch.vocab}: they do not"
            " belong together. Copy both again from one place"
        )


def check_replaces(source: Source, out: Path) -> None:
    """Raises MerinoError if `out` may not be replaced: it is the source itself, or random weights would replace ones
    that may be trained."""
    check_keeps(out, [Path(source.bundle.folder)] if source.bundle else [])
    there = described(out)
    kind, origin = there.get("weights", "unknown"), there.get("weights_source", "bundle.json is damaged")
    if source.weights == "random" and is_bundle(out) and kind != "random":
        raise MerinoError(
            f"{out} holds {kind} weights ({origin}), and those of {source.name} are random: choose another -o, or"
            " delete that folder"
        )
