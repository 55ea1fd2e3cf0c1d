"""The export of what a SOURCE names: judged before torch is imported, then fetched, loaded and exported."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from merino_edge.export.request import ExportRequest, check_request
from merino_edge.families.hub import fetch

if TYPE_CHECKING:
    from merino_edge.export.one_format import Exported


def export_named(
    what: str, out: Path, request: ExportRequest, weights: Path | None, say: Callable[[str], None]
) -> "Exported":
    """`weights`: see `find_source`. `say` gets what a download and AUTO report. Raises MerinoError as `export` does."""
    hub_model = check_request(request, what, weights, out)
    if hub_model:
        fetch(hub_model, say)
    from merino_edge.export.export import export  # imports torch
    from merino_edge.export.source import load_source

    return export(load_source(what, weights), out, request, last_use=True, say=say)
