"""The command `export`: from any source to a bundle in one dialect and format."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from merino_edge.cli.options import KV
from merino_edge.cli.terminal import put, say
from merino_runtime.errors import MerinoError
from merino_runtime.sampling import read_settings, settings_help

if TYPE_CHECKING:
    from merino_edge.bundles.source_name import FoundSource
    from merino_edge.export.export import Exported
    from merino_edge.export.quantize.weights import MatrixError
    from merino_edge.export.request import ExportRequest
    from merino_edge.families.geometry import Geometry

SETTINGS: dict[str, tuple[type, str]] = {
    "weights": (str, "for a catalog name: a Hugging Face folder, or random; default: the published ones"),
    "chat": (bool, "include the model's chat template; default true"),
    "all_logits": (bool, "return the logits of all positions: faster `eval`, slower prefill; default false"),
    "embeddings": (bool, "return the last hidden states for /v1/embeddings of `serve`; default false"),
    "adapters": (str, "LoRA adapters that a request chooses by name: folders of `train --lora` or of peft, separated"
                      " by commas"),
    "file_mb": (float, "with --precision mixed: limit of all weights in MB; default: the mean of int4 and int8"),
    "decode_ms": (float, "with --precision mixed: limit of the predicted decode latency on the board in ms"),
}
FormatOption = partial(typer.Option, rich_help_panel="Format")


def export(
    source: Annotated[str, typer.Argument(
        help="checkpoint folder, GGUF file, design.json, bundle in fp32 or int8, or a model's name in the catalog or on"
        " the hub"
    )],
    out: Annotated[Path, typer.Option("-o", help="folder of the bundle")],
    name: Annotated[str | None, typer.Option(
        help="name of the bundle, by which `serve` and `bench` list it; default: the source's"
    )] = None,
    precision: Annotated[str | None, FormatOption(
        help="weight format: fp32, fp16, int8 or int4; default: the design's, else fp32; auto: the fastest on the board"
        " of --board that keeps 95 % of the model's answers; mixed: int4, with 8 bits for the most sensitive matrices",
    )] = None,
    board_name: Annotated[str | None, FormatOption(
        "--board", metavar="BOARD",
        help="target board: sets the dialect; --precision auto and --set decode_ms predict for it",
    )] = None,
    dialect: Annotated[str | None, FormatOption(
        help="fused: ONNX Runtime 1.18 and later; portable: ONNX Runtime 1.10 and TensorRT; default: the board's or the"
        " design's, else fused",
    )] = None,
    context: Annotated[int | None, FormatOption(
        help="length of the KV cache in tokens; default: the model's context"
    )] = None,
    kv: Annotated[str | None, FormatOption(help=KV)] = None,
    text: Annotated[Path | None, FormatOption(
        metavar="FILE", help="text for quantization: GPTQ, SmoothQuant and the scales of --kv"
    )] = None,
    given: Annotated[list[str] | None, typer.Option(
        "--set", metavar="NAME=VALUE", help=settings_help(SETTINGS)
    )] = None,
) -> None:  # fmt: skip
    """Export a model to an ONNX bundle with KV cache, compared with torch at each step."""
    from merino_edge.bundles.source_name import find_source, published
    from merino_edge.cli.over_ssh import board
    from merino_edge.cli.terminal import working
    from merino_edge.export.request import NAME, ExportRequest
    from merino_edge.families.hub import fetch

    # 1. Check all that needs neither torch nor weights.
    if name is not None and not NAME.fullmatch(name):
        raise MerinoError(f"--name {name!r:.80} is not allowed: use up to 64 letters, digits and . _ -")
    settings = read_settings(given or (), SETTINGS)
    weights = settings.pop("weights", None)
    random = weights == "random"
    folder = Path(weights) if weights and not random else None
    request = ExportRequest(
        precision=precision, board=board(board_name, say) if board_name is not None else None, dialect=dialect, kv=kv,
        context=context, calibration=text,
        adapters=tuple(Path(path) for path in settings.pop("adapters", "").split(",") if path), **settings,
    )  # fmt: skip
    check_files_of(source, folder, request, out)
    found = find_source(source, folder, random=random)
    check_model(found, folder, request)
    with working(f"exporting {source}") as progress:
        # 2. Download a model of the hub, once its geometry is known to fit the memory.
        hub_model = None if random else published(found, folder)
        if hub_model:

            def judge(geometry: "Geometry") -> None:
                from merino_edge.export.memory import room_for  # imports torch

                room_for(geometry, hub_model.name)

            fetch(hub_model, say, judge)
        # 3. Load and export it.
        from merino_edge.export.export import export as export_source
        from merino_edge.export.source import load_source

        loaded = load_source(found, folder, say, random=random)
        loaded = loaded._replace(name=name or loaded.name)
        done = export_source(loaded, out, request, last_use=True, say=say, progress=progress)
    print_export(done, request)


def check_files_of(what: str, weights: Path | None, request: "ExportRequest", out: Path) -> None:
    """Raise MerinoError for a calibration text that cannot be read, and for an output that would replace an input or
    another file."""
    from merino_edge.bundles.files import is_bundle_alone
    from merino_edge.families.names import resolve
    from merino_edge.storage.atomic import check_folder, check_keeps
    from merino_edge.text.documents import check_files, read_texts

    text = request.calibration
    if text:
        check_files([text], "--text")
        read_texts([text], "--text")
    inputs = (weights, text, resolve(what))
    check_keeps(out, [Path(path) for path in inputs if isinstance(path, str | Path)])
    check_folder(out, is_bundle_alone)


def check_model(source: "FoundSource", weights: Path | None, request: "ExportRequest") -> None:
    """Raise MerinoError for a model's folder that cannot be exported, and for a request that its model excludes."""
    from merino_edge.bundles.files import is_bundle
    from merino_edge.bundles.source_name import DesignFile
    from merino_edge.design.design_file import DESIGN, load_design
    from merino_edge.export.request import LEAST_CONTEXT, check_context, graph_format, in_one_format
    from merino_edge.families.checkpoint import check_tokenizer
    from merino_edge.families.config_json import judged_config
    from merino_edge.families.zoo import Model

    folder = source if isinstance(source, Path) else weights if isinstance(source, Model) else None
    if folder and folder.is_dir() and not is_bundle(folder):
        check_tokenizer(folder)
        judged_config(folder)
    geometry = source.geometry if isinstance(source, DesignFile | Model) else None
    check_context(request.context, geometry.context if geometry else None)
    design = source.design if isinstance(source, DesignFile) else None
    if isinstance(source, Path) and (source / DESIGN).is_file():  # the design that a checkpoint was trained from
        design = load_design(source / DESIGN)
    graph_format(in_one_format(request), design, request.context or LEAST_CONTEXT)


def print_export(done: "Exported", request: "ExportRequest") -> None:
    """Print the result of an export."""
    from merino_edge.export.divergence import divergence_words, keeps
    from merino_runtime.bundle import quantized_cache

    bundle = done.bundle
    put(summary_line(done))
    print_calibration(done, request)
    if done.divergence:
        put(f"{divergence_words(done.divergence)}, of questions that the model answered in float32")
        if not keeps(done.divergence):
            lost = done.divergence.answers - done.divergence.kept
            say(f"warning: {bundle.precision} loses {lost} of {done.divergence.answers} answers of {bundle.name}."
                " Choose a larger format, or --precision auto --board BOARD")  # fmt: skip
    others_run = request.board is None or request.board.id == "host"
    if others_run and bundle.dialect == "fused" and quantized_cache(bundle):
        say("for onnxruntime-genai export with --kv fp32")
    if others_run and bundle.kernels and (done.folder / "genai_config.json").is_file():
        say("other programs load its operators from merino_runtime/bundle/native/kernels-MACHINE.so: onnxruntime-genai"
            " as kernels.so in the bundle, others by register_custom_ops_library")  # fmt: skip
    if bundle.chat:
        needed = f"jinja2 on the board, since {done.why_jinja}" if done.why_jinja else "nothing but the bundle"
        put(f"chat template included (`merino-edge chat {done.folder}`); it needs {needed}")
    if done.matrices:
        put(matrices_line(done.matrices))


def summary_line(done: "Exported") -> str:
    from merino_edge.bundles.files import bundle_bytes
    from merino_runtime.bundle import cache_formats

    bundle = done.bundle
    measure = "maximum logit error" if bundle.precision == "fp32" else "RMS error of the logits"
    with_floats = "" if done.unrounded is None else f", maximum {done.unrounded:.1e} with float activations"
    return (
        f"{done.folder}: {bundle.name}, {bundle.dialect} {bundle.precision}, KV cache in {cache_formats(bundle)},"
        f" {bundle.params / 1e6:.1f} M parameters ({bundle.weights} weights),"
        f" {bundle_bytes(done.folder) / 2**20:.1f} MB; {measure} against torch with the same weights {done.error:.1e}"
        f" relative, over prefill and {done.steps} decode steps{with_floats};"
        f" fits {', '.join(bundle.boards) or 'no board of the profiles'}"
    )


def matrices_line(matrices: "Sequence[MatrixError]") -> str:
    """Summarize the number of matrices and their errors in one line."""
    worst = max(matrices, key=lambda row: row.mean)
    megabytes = sum(row.nbytes for row in matrices) / 1e6
    first, *others = (part.split(".") for part in worst.name.split("+"))  # joined matrices: `a.q.weight+a.k.weight`
    name = ".".join([*first[:-2], "+".join(part[-2] for part in (first, *others)), first[-1]])
    return (
        f"{len(matrices)} quantized matrices, {megabytes:,.1f} MB; error relative to the RMS of the matrix:"
        f" {median(row.mean for row in matrices):.2%} in the median matrix, {worst.mean:.2%} in {name}"
    )


def print_calibration(done: "Exported", request: "ExportRequest") -> None:
    """Print the effects of GPTQ, SmoothQuant and the KV cache's scales, and what was copied from a GGUF."""
    from merino_edge.export.divergence import divergence_words
    from merino_edge.export.request import ROUNDED
    from merino_runtime.bundle import cache_formats, quantized_cache

    text = request.calibration
    on = text or "text that the model generated"
    if done.cache_rise is not None:
        put(f"the KV cache in {cache_formats(done.bundle)} changes the perplexity on {on} by {done.cache_rise:+.2%}")
    if done.cache_alone:
        words = divergence_words(done.cache_alone)
        if quantized_cache(done.bundle):
            put(f"by the KV cache in int8 alone: {words}")
        else:
            say(f"the KV cache is float32. In int8, that alone changes the answers: {words}. --kv int8 takes it anyway")
    for kind, exact, requantized in done.stored:
        say(f"{kind}: {exact} matrices taken over exactly, {requantized} requantized")
    if done.note:
        say(f"{done.note}, calibrated on {on}; in float32 the model is the same")
    if done.calibrated or text and done.bundle.precision in ROUNDED:
        name = text.name if text else on
        say(f"{done.calibrated} matrices quantized by GPTQ on {name}; those taken over are unchanged")
