"""The commands that read records: `compare` and `report`. Each parses, makes one call and shows the result."""

from pathlib import Path
from typing import Annotated

import typer

from merino_edge.cli.options import Json, parse_percent

ALLOWED_LOSS = "0% to below 100%, such as 5%"


def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="records to compare against, JSON or JSON lines")],
    after: Annotated[Path, typer.Argument(metavar="B", help="records to compare, JSON or JSON lines")],
    fail_if_slower: Annotated[
        str | None, typer.Option(metavar="SHARE", help="exit 1 if a row of B is slower by more than this, such as 5%")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the speeds of two benchmarks, with confidence intervals. Disturbed rows get no verdict."""
    from merino_edge.cli.record_tables import print_comparison
    from merino_edge.cli.terminal import say
    from merino_edge.records.compare import check_not_slower, compare_files

    share = None if fail_if_slower is None else parse_percent("--fail-if-slower", fail_if_slower, ALLOWED_LOSS)
    comparison = compare_files(before, after, say)
    if as_json:
        print(comparison.to_json(), end="")
    else:
        print_comparison(comparison)
    if share is not None:
        check_not_slower(comparison, share)


def report(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT", help="records of `bench` or `eval`")],
    out: Annotated[Path | None, typer.Option("-o", help="output path of one self-contained HTML file")] = None,
    md: Annotated[bool, typer.Option("--md", help="print a Markdown summary, for a pull request")] = False,
    device: Annotated[str | None, typer.Option(help="board to show predictions for, beside the measurements")] = None,
) -> None:
    """Records as one HTML page with charts and tables, or, with --md, as Markdown on stdout."""
    from merino_edge.calibration.board import board
    from merino_edge.cli.terminal import save, say
    from merino_edge.records.reading import read_all
    from merino_edge.report.page import markdown, page
    from merino_edge.report.summary import summarize
    from merino_edge.storage.atomic import check_file, check_keeps

    if out is None and not md:
        raise typer.BadParameter("give -o report.html, --md, or both")
    if out is not None:
        check_keeps(out, [*results, *([Path(device)] if device else [])])
        check_file(out)
    records, evaluations = read_all(results, say)
    summary = summarize(records, board(device, say) if device else None, evaluations)
    free = save(out, page(summary)) if out else True
    if md and free:
        print(markdown(summary), end="")
