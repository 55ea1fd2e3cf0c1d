"""The commands that read records: `compare` and `report`. Each parses, makes one call and shows the result."""

from pathlib import Path
from typing import Annotated

import typer

from merino_edge.cli.options import Json, parse_percent

ALLOWED_LOSS = "0% to below 100%, such as 5%"


def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="records, JSON or JSON lines")],
    after: Annotated[Path, typer.Argument(metavar="B", help="records to compare with A")],
    fail_if_slower: Annotated[
        str | None, typer.Option(metavar="SHARE", help="such as 5%: exit 1 if a row of B is slower by more")
    ] = None,
    as_json: Json = False,
) -> None:
    """Is B faster or slower than A, or is there no difference? Disturbed rows are shown without a verdict."""
    from merino_edge.cli.record_tables import print_comparison
    from merino_edge.cli.terminal import say
    from merino_edge.records.compare import check_not_slower, compare_files

    share = None if fail_if_slower is None else parse_percent("--fail-if-slower", fail_if_slower, ALLOWED_LOSS)
    found = compare_files(before, after, say)
    if as_json:
        print(found.to_json(), end="")
    else:
        print_comparison(found)
    if share is not None:
        check_not_slower(found, share)


def report(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT...", help="records, JSON or JSON lines")],
    out: Annotated[Path | None, typer.Option("-o", help="one HTML file, opens offline")] = None,
    md: Annotated[bool, typer.Option("--md", help="print a summary in Markdown, for a pull request")] = False,
    device: Annotated[str | None, typer.Option(help="a board: predictions for it beside the measurements")] = None,
) -> None:
    """Records as one HTML page with charts and tables, or, with --md, as Markdown on stdout."""
    from merino_edge.calibration.board import board
    from merino_edge.cli.terminal import save, say
    from merino_edge.records.reading import read_records
    from merino_edge.report.page import markdown, page
    from merino_edge.report.summary import summarise
    from merino_edge.storage.atomic import check_file, check_keeps

    if out is None and not md:
        raise typer.BadParameter("give -o report.html, --md, or both")
    if out is not None:
        check_keeps(out, [*results, *([Path(device)] if device else [])])
        check_file(out)
    summary = summarise(read_records(results, say), board(device, say) if device else None)
    free = save(out, page(summary)) if out else True
    if md and free:
        print(markdown(summary), end="")
