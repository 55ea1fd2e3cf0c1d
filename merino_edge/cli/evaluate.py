"""`eval`: what models know, by tasks of lm-evaluation-harness, or their perplexity on a text."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from merino_edge.cli.options import Json

if TYPE_CHECKING:
    from merino_edge.records.evaluation import Evaluation


def evaluate(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="bundles, which run in the board's runtime; or checkpoint"
                                  " folders, GGUF files and names, which run in torch")
    ],
    tasks: Annotated[
        str | None, typer.Option(metavar="LIST", help="tasks of lm-evaluation-harness, such as hellaswag,arc_easy")
    ] = None,
    perplexity: Annotated[
        Path | None, typer.Option(metavar="FILE", help="perplexity on this text instead; <|endoftext|> between"
                                  " documents")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="folder of the tasks' data (docs/benchmark.md); default: the hub")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="only the first N items of each task, or documents of the text")
    ] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="put each question in the model's chat template")
    ] = False,
    out: Annotated[Path | None, typer.Option("-o", help="output path of the record; `report` shows it")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="resume an interrupted evaluation with the same -o")
    ] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Score models on tasks or on a text, bundles through the board's runtime."""
    from merino_edge.cli.record_tables import evaluation_table
    from merino_edge.cli.tables import show
    from merino_edge.cli.terminal import save
    from merino_edge.records.evaluation import to_json

    if (tasks is None) == (perplexity is None):
        raise typer.BadParameter("give --tasks LIST or --perplexity FILE, one of them")
    if perplexity and (data or chat_template):
        raise typer.BadParameter("--data and --chat-template go with --tasks")
    if resume and out is None:
        raise typer.BadParameter("--resume goes on with the evaluation whose record is -o FILE: give that")
    rows = scored(sources, tasks, perplexity, data, limit, chat_template, out, resume)
    text = to_json(rows)
    free = save(out, text)
    if out:
        out.with_name(f"{out.name}.partial").unlink(missing_ok=True)
    if as_json:
        print(text, end="")
    elif free:
        show(evaluation_table(rows))


def scored(
    sources: list[str], tasks: str | None, perplexity: Path | None, data: Path | None, limit: int | None,
    chat_template: bool, out: Path | None, resume: bool,
) -> "list[Evaluation]":  # fmt: skip
    from merino_edge.cli.terminal import counted_progress, say
    from merino_edge.evaluation.perplexity import evaluate_text
    from merino_edge.evaluation.request_cache import open_cache
    from merino_edge.evaluation.run import TaskRequest, evaluate
    from merino_edge.storage.atomic import check_file, check_keeps
    from merino_runtime.errors import MerinoError

    if out is not None:
        check_keeps(out, [*map(Path, sources), *([perplexity] if perplexity else [])])
        check_file(out)
    if limit is not None and limit < 1:
        raise MerinoError(f"--limit {limit} is not allowed: choose 1 or more")
    cache = open_cache(out, resume)
    with counted_progress("request" if tasks else "document", again=True) as progress:
        if perplexity:
            return list(evaluate_text(sources, perplexity, limit, cache, progress, say))
        request = TaskRequest(tuple((tasks or "").split(",")), data, limit, chat_template)
        return list(evaluate(sources, request, cache, progress, say))
