"""The commands of records: `eval` makes them, `compare` and `report` read them."""

from pathlib import Path
from typing import Annotated

import typer

from merino_edge.cli.options import Json, parse_percent
from merino_runtime.errors import MerinoError

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
    out: Annotated[Path | None, typer.Option("-o", help="output path of one self-contained HTML page")] = None,
    board_name: Annotated[str | None, typer.Option(
        "--board", metavar="BOARD", help="board to show predictions for, beside the measurements"
    )] = None,
) -> None:
    """Print a Markdown summary of records, for a pull request; with -o, write one HTML page of charts and tables."""
    from merino_edge.cli.over_ssh import board
    from merino_edge.cli.terminal import save, say
    from merino_edge.records.reading import read_all
    from merino_edge.report.page import markdown, page
    from merino_edge.report.summary import summarize
    from merino_edge.storage.atomic import check_file, check_keeps

    if out is not None:
        check_keeps(out, [*results, *([Path(board_name)] if board_name else [])])
        check_file(out)
    records, evaluations = read_all(results, say)
    summary = summarize(records, board(board_name, say) if board_name is not None else None, evaluations)
    if out:
        save(out, page(summary))
    else:
        print(markdown(summary), end="")


def evaluate(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="bundles, which run in the board's runtime; or checkpoint"
                                  " folders, GGUF files and names, which run in torch")
    ],
    tasks: Annotated[
        str | None, typer.Option(metavar="LIST", help="tasks of lm-evaluation-harness, such as hellaswag,arc_easy;"
                                  " or task files of your own, FILE.yaml")
    ] = None,
    perplexity: Annotated[
        Path | None, typer.Option(metavar="FILE", help="perplexity on this text instead; <|endoftext|> between"
                                  " documents")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="folder of the tasks' data (docs/evaluate.md); default: the hub")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="only the first N items of each task, or documents of the text")
    ] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="put each question in the model's chat template")
    ] = False,
    out: Annotated[Path | None, typer.Option(
        "-o", help="output path of the record, which `report` shows; an interrupted evaluation resumes there"
    )] = None,
) -> None:  # fmt: skip
    """Score models on tasks or on a text, bundles through the board's runtime."""
    from merino_edge.cli.record_tables import evaluation_table
    from merino_edge.cli.tables import show
    from merino_edge.cli.terminal import counted_progress, save, say
    from merino_edge.records.evaluation import to_json

    if (tasks is None) == (perplexity is None):
        raise typer.BadParameter("give --tasks LIST or --perplexity FILE, one of them")
    if perplexity and (data or chat_template):
        raise typer.BadParameter("--data and --chat-template go with --tasks")
    from merino_edge.evaluation.perplexity import evaluate_text
    from merino_edge.evaluation.request_cache import open_cache
    from merino_edge.evaluation.run import TaskRequest
    from merino_edge.evaluation.run import evaluate as run
    from merino_edge.storage.atomic import check_file, check_keeps

    if out is not None:
        check_keeps(out, [*map(Path, sources), *([perplexity] if perplexity else [])])
        check_file(out)
    if limit is not None and limit < 1:
        raise MerinoError(f"--limit {limit} is not allowed: choose 1 or more")
    cache = open_cache(out, say)
    request = TaskRequest(tuple((tasks or "").split(",")), data, limit, chat_template)
    try:
        with counted_progress("request" if tasks else "document", keep=True) as progress:
            if perplexity:
                rows = list(evaluate_text(sources, perplexity, limit, cache, progress=progress, say=say))
            else:
                rows = list(run(sources, request, cache, progress, say))
    except KeyboardInterrupt:
        cache.write()
        if cache.path and len(cache):
            say(f"{len(cache):,} answers are kept: the same command goes on")
        raise
    free = save(out, to_json(rows))
    if cache.path:
        cache.path.unlink(missing_ok=True)
    if free:
        show(evaluation_table(rows))
