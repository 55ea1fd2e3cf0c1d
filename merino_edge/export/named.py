"""Export of a SOURCE by its name: the request is checked before torch is imported, then the model is fetched, loaded
and exported."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from merino_edge.export.request import AUTO, ExportRequest, check_request
from merino_edge.families.hub import fetch

if TYPE_CHECKING:
    from merino_edge.export.one_format import Exported

Say = Callable[[str], None]


def export_named(what: str, out: Path, request: ExportRequest, weights: Path | None, say: Say) -> "Exported":
    """`weights`: see `find_source`. `say` gets the progress of a download and of AUTO. Where the format loses too many
    of the model's answers, other formats are tried until one keeps them. Raises MerinoError as `export` does."""
    hub_model = check_request(request, what, weights, out)
    if hub_model:
        fetch(hub_model, say)
    from merino_edge.export.divergence import keeps
    from merino_edge.export.export import export  # imports torch
    from merino_edge.export.source import load_source

    made = export(load_source(what, weights), out, request, last_use=True, say=say)
    if made.divergence is None or keeps(made.divergence) or request.precision == AUTO:
        return made
    return made._replace(instead=kept_by(what, weights, out, request, made, say))


def kept_by(what: str, weights: Path | None, out: Path, request: ExportRequest, made: "Exported", say: Say) -> str:
    """The options of the nearest format that keeps the answers: each is exported and measured. Float32 always does."""
    from merino_edge.export.divergence import keeps
    from merino_edge.export.export import export
    from merino_edge.export.source import load_source
    from merino_edge.storage.atomic import scratch_folder
    from merino_runtime.bundle import quantized_cache

    tried: list[tuple[str, str | None]] = [("int8", None)] if made.bundle.precision == "int4" else []
    quantized = quantized_cache(made.bundle) is not None
    if quantized and made.bundle.precision != "fp32":
        tried.insert(0, (made.bundle.precision, "fp32"))
    for precision, kv in tried:
        options = f"--precision {precision}" + (f" --kv {kv}" if kv else "")
        say(f"{made.bundle.precision} loses answers: {options} is tried")
        calibration = request.calibration if precision in ("int8", "int4") else None
        changed = request._replace(precision=precision, kv=kv or request.kv, calibration=calibration)
        with scratch_folder(out) as place:
            other = export(load_source(what, weights), place / "tried", changed, last_use=True)
        if other.divergence is None or keeps(other.divergence):
            return options
    return "--precision fp32 --kv fp32" if quantized else "--precision fp32"
