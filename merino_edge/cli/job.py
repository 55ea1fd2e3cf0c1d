"""The commands `merino-edge job new`, `job make` and `job eval`: a model for tools of one's own."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merino_edge.cli.terminal import counted_progress, put, say

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping

job = typer.Typer(no_args_is_help=True, help="Make a small model for tools of your own, from a folder of phrases.")
COLUMNS = "right", "asked, right", "asked, wrong", "refused wrongly", "wrong call"


@job.command()
def new(folder: Annotated[Path, typer.Argument(help="folder to write")]) -> None:
    """Start a job: an example to change, a kiosk's menu."""
    from merino_edge.jobs.folder import new_job, read_job

    new_job(folder)
    made = read_job(folder)
    say(f"wrote {folder}: {len(made.tools)} tools, {sum(map(len, made.phrases.values()))} phrases. Change its files,"
        f" then: merino-edge job make {folder} -o OUT")  # fmt: skip


@job.command()
def make(
    folder: Annotated[Path, typer.Argument(help="folder of the job")],
    out: Annotated[Path, typer.Option("-o", help="folder of the results; a stopped run goes on there")],
) -> None:
    """Make data, tokenizer, design, training, export, evaluation and package; continue where it was stopped."""
    from merino_edge.jobs.folder import read_job
    from merino_edge.jobs.make import BUNDLE, make

    read = read_job(folder)
    with counted_progress() as progress:
        result = make(read, out, say, progress)
    print_counts(result["counts"])
    put(f"a call with a probability below {result['threshold']:.2g} is asked for first")
    put(f"{out / BUNDLE} is the bundle, {out / f'{read.settings.name}.merino'} the package for boards")


@job.command("eval")
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="bundle of a job")],
    sentences: Annotated[Path, typer.Argument(
        metavar="FILE", help="JSONL of `sentence`, `items` by kind and the expected `call`"
    )],
) -> None:  # fmt: skip
    """Judge sentences with expected calls."""
    from merino_edge.jobs.make import counts, judge
    from merino_edge.text.documents import read_json_lines
    from merino_runtime.errors import MerinoError
    from merino_runtime.job import open_job

    rows = []
    for where, row in read_json_lines(sentences, str(sentences)):
        if not (isinstance(row.get("sentence"), str) and isinstance(row.get("items"), dict) and "call" in row):
            raise MerinoError(f"{where}, must have `sentence`, `items` and `call`, such as {json.dumps(EXAMPLE)}")
        rows.append(row)
    model = open_job(str(bundle), say=say)
    with model.model:
        print_counts(counts(judge(model, rows), model.threshold))


EXAMPLE: dict[str, Any] = {
    "sentence": "two colas", "items": {"dish": ["cola"]},
    "call": {"name": "order", "arguments": {"dish": "cola", "count": 2}},
}  # fmt: skip


def print_counts(counts: "Mapping[str, Counter[str] | dict[str, int]]") -> None:
    from merino_edge.cli.tables import Column, Table, show

    columns = [Column("sentences", left=True), *map(Column, COLUMNS), Column("of")]
    rows = [
        [name, *(str(row.get(column, 0)) for column in COLUMNS), str(sum(row.values()))]
        for name, row in sorted(counts.items(), key=lambda pair: (pair[0] != "all", pair[0]))
    ]
    show(Table(columns, rows, "answers by family of phrases"))
