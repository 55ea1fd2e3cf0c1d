"""Export of a SOURCE by its name: the request is checked before torch is imported, then the model is fetched, loaded
and exported."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from merino_edge.bundles.files import is_bundle, is_bundle_alone
from merino_edge.design.design_file import DESIGN, Design, load_design
from merino_edge.export.request import (
    LEAST_CONTEXT,
    ROUNDED,
    DesignFile,
    ExportRequest,
    FoundSource,
    check_context,
    find_source,
    graph_format,
    in_one_format,
    published,
)
from merino_edge.families.checkpoint import check_tokenizer
from merino_edge.families.hub import HubModel, fetch
from merino_edge.families.names import resolve
from merino_edge.families.zoo import Model
from merino_edge.storage.atomic import check_folder, check_keeps, scratch_folder
from merino_edge.text.documents import check_files, read_documents
from merino_runtime.bundle import quantized_cache

if TYPE_CHECKING:
    from merino_edge.export.export import Exported

Say = Callable[[str], None]


def export_named(what: str, out: Path, request: ExportRequest, weights: Path | None, say: Say) -> "Exported":
    """Export the SOURCE `what` to the bundle `out`. `weights`: see `find_source`.

    `say` gets the progress of a download and of `auto`. If the format loses too many of the model's answers, other
    formats are tried until one keeps them. Raises MerinoError as `export` does.
    """
    hub_model = check_request(request, what, weights, out)
    if hub_model:
        fetch(hub_model, say)
    from merino_edge.export.divergence import keeps
    from merino_edge.export.export import export  # imports torch
    from merino_edge.export.source import load_source

    source = load_source(what, weights, random=request.random_weights)
    made = export(source, out, request, last_use=True, say=say)
    if keeps(made.divergence) or request.precision == "auto":
        return made
    for other in nearest_formats(made, request):
        options = f"--precision {other.precision}" + (f" --kv {other.kv}" if other.kv != request.kv else "")
        say(f"{made.bundle.precision} loses answers: {options} is tried")
        source = load_source(what, weights, random=request.random_weights)
        with scratch_folder(out) as place:
            if keeps(export(source, place / "tried", other, last_use=True).divergence):
                return made._replace(instead=options)
    return made._replace(instead=f"--precision fp32{' --kv fp32' if quantized_cache(made.bundle) else ''}")


def nearest_formats(made: "Exported", request: ExportRequest) -> list[ExportRequest]:
    """Return the formats that may keep the answers that `made` loses, the smallest first. Float32 always does."""
    precision = made.bundle.precision
    formats: list[tuple[str, str | None]] = []
    if quantized_cache(made.bundle) and precision != "fp32":
        formats.append((precision, "fp32"))
    if precision == "int4":
        formats.append(("int8", request.kv))
    return [
        request._replace(
            precision=name, kv=kv, calibration=request.calibration if name in ROUNDED else None, file_mb=None,
            decode_ms=None,
        ) for name, kv in formats
    ]  # fmt: skip


def check_request(request: ExportRequest, what: str, weights: Path | None, out: Path) -> HubModel | None:
    """Check the request without loading the model; return the model of the hub to fetch for it, if any.

    Raises MerinoError for files that cannot be read, an output that would replace an input, a SOURCE that names no
    model, and a combination of options that is not possible.
    """
    text = request.calibration
    if text:
        check_files([text], "--calibrate")
        read_documents([text], "--calibrate")
    inputs = (weights, text, resolve(what))
    check_keeps(out, [Path(path) for path in inputs if isinstance(path, str | Path)])
    check_folder(out, is_bundle_alone)
    source = find_source(what, weights, random=request.random_weights)
    folder = source if isinstance(source, Path) else weights if isinstance(source, Model) else None
    if folder and folder.is_dir() and not is_bundle(folder):
        check_tokenizer(folder)
    geometry = source.geometry if isinstance(source, DesignFile | Model) else None
    check_context(request.context, geometry.context if geometry else None)
    graph_format(in_one_format(request), design_of(source), request.context or LEAST_CONTEXT)
    return None if request.random_weights else published(source, weights)


def design_of(source: FoundSource) -> Design | None:
    """Return the design in a design file, or the one that a checkpoint was trained from."""
    if isinstance(source, DesignFile):
        return source.design
    path = source / DESIGN if isinstance(source, Path) else None
    return load_design(path) if path and path.is_file() else None
