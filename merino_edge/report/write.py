"""`merino-edge report`: records in, the page and the Markdown out."""

from collections.abc import Sequence
from pathlib import Path

from merino_edge.calibration.board import board
from merino_edge.records.reading import read_records
from merino_edge.report.markdown import markdown
from merino_edge.report.page import page
from merino_edge.report.summary import summarise
from merino_edge.storage.atomic import write_text
from merino_runtime.commands import say


def write_report(results: Sequence[Path], out: Path | None, md: bool, device: str | None) -> None:
    """The page to `out`, the Markdown to stdout, either where it is asked for. device: as `board` takes it."""
    records = read_records(results)
    summary = summarise(records, board(device) if device else None)
    if out is not None:
        write_text(out, page(summary))
        say(f"wrote {out}")
    if md:
        print(markdown(summary), end="")
