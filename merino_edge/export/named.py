"""Export of a SOURCE by its name: the request is checked before torch is imported, then the model is fetched, loaded
and exported."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from merino_edge.export.request import ROUNDED, ExportRequest, check_request
from merino_edge.families.hub import fetch
from merino_edge.storage.atomic import scratch_folder
from merino_runtime.bundle import quantized_cache

if TYPE_CHECKING:
    from merino_edge.export.export import Exported

Say = Callable[[str], None]


def export_named(what: str, out: Path, request: ExportRequest, weights: Path | None, say: Say) -> "Exported":
    """Write the bundle `out`. `weights`: see `find_source`.

    `say` gets the progress of a download and of `auto`. If the format loses too many of the model's answers, other
    formats are tried until one keeps them. Raises MerinoError as `export` does.
    """
    hub_model = check_request(request, what, weights, out)
    if hub_model:
        fetch(hub_model, say)
    from merino_edge.export.divergence import keeps
    from merino_edge.export.export import export  # imports torch
    from merino_edge.export.source import load_source

    def keeping(made: "Exported") -> bool:
        return made.divergence is None or keeps(made.divergence)

    source = load_source(what, weights, random=request.random_weights)
    made = export(source, out, request, last_use=True, say=say)
    if keeping(made) or request.precision == "auto":
        return made
    for other in nearest_formats(made, request):
        options = f"--precision {other.precision}" + (f" --kv {other.kv}" if other.kv != request.kv else "")
        say(f"{made.bundle.precision} loses answers: {options} is tried")
        source = load_source(what, weights, random=request.random_weights)
        with scratch_folder(out) as place:
            if keeping(export(source, place / "tried", other, last_use=True)):
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
