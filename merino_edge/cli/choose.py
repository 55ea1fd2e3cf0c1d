"""Commands beside the main path, for choosing: `recommend` and `pareto`. The main path is in `app`.

Each command: parse, one call, one file written, as there.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from merino_edge.cli.options import (
    CONFIDENCE,
    HOST,
    AcceptNew,
    Backend,
    Confidence,
    Context,
    Device,
    Json,
    Kv,
    OpenKv,
    Precision,
    Prompt,
    Vocab,
    parse_choices,
    parse_confidence,
    with_budgets,
)
from merino_edge.design.budgets import BUDGETS_BY_NAME
from merino_runtime.errors import MerinoError

Against = StrEnum(  # type: ignore[misc]
    "Against", {name: budget.option.removeprefix("--") for name, budget in BUDGETS_BY_NAME.items() if budget.default}
)
FIRST_AXIS = next(iter(Against))
POINTS = 12  # limits of a front


@with_budgets
def recommend(
    *,
    device: Annotated[str | None, typer.Option(help="board id, `host` for this machine, or path of a profile")] = None,
    ssh: Annotated[
        str | None, typer.Option(metavar=HOST, help="detect the board over ssh, instead of --device")
    ] = None,
    accept_new: AcceptNew = False,
    backend: Backend = None,
    limits: dict[str, float],
    context: Context = None,
    prompt: Prompt = None,
    kv: Kv = None,
    confidence: Confidence = CONFIDENCE,
    as_json: Json = False,
) -> None:
    """List the published models and formats that meet a board's budgets, and a design for the same budgets."""
    from merino_edge.calibration.board import board
    from merino_edge.cli.over_ssh import chosen_device
    from merino_edge.cli.recommended import budgets_line, first_command, recommendation_json, recommendation_table
    from merino_edge.cli.tables import show
    from merino_edge.cli.terminal import put, say, working
    from merino_edge.design.budgets import with_board_defaults
    from merino_edge.design.recommend import recommend as find
    from merino_edge.prediction.formats import quantized_kv
    from merino_edge.prediction.shape import check_lengths, default_lengths

    check_lengths(context, prompt)
    cache = quantized_kv(kv)
    level = parse_confidence(confidence)
    chosen = chosen_device(device, ssh, accept_new)
    profile = board(chosen, say, backend)
    slots, prompt_tokens = default_lengths(profile, context, prompt)
    with working(f"judging models for {profile.name}"):
        recommendation = find(
            profile, with_board_defaults(limits, profile), context=slots, prompt=prompt_tokens, kv=cache,
            confidence=level,
        )  # fmt: skip
    if as_json:
        print(json.dumps(recommendation_json(recommendation, profile, chosen), indent=2))
    else:
        put(budgets_line(recommendation, profile))
        show(recommendation_table(recommendation, profile))
        if command := first_command(recommendation, profile, chosen):
            put(f"to export the first: {command}")
            name = recommendation.candidates[0].model.id
            put(f"to bring it onto the board: merino-edge deploy {name} --ssh {ssh or 'USER@HOST'}")


@with_budgets
def pareto(
    device: Device,
    limits: dict[str, float],
    backend: Backend = None,
    against: Annotated[Against, typer.Option(help="budget on the x axis of the Pareto front")] = FIRST_AXIS,
    context: Context = None,
    vocab: Vocab = None,
    precision: Precision = None,
    kv: OpenKv = None,
    as_json: Json = False,
    out: Annotated[Path | None, typer.Option("-o", help="output path of pareto.json")] = None,
    plot: Annotated[Path | None, typer.Option(help="output path of the Pareto front as SVG")] = None,
) -> None:
    """Pareto front of the score against one budget on a board: the best decoder of the space at each limit."""
    from merino_edge.calibration.board import board
    from merino_edge.cli.design_tables import front_table, intervals_of
    from merino_edge.cli.tables import show
    from merino_edge.cli.terminal import put, save, say, working
    from merino_edge.design.pareto import front
    from merino_edge.prediction.shape import check_lengths, default_lengths
    from merino_edge.report.front import check_plot, front_svg
    from merino_edge.storage.atomic import check_file, check_keeps, write_text

    if out and plot and out.resolve() == plot.resolve():
        raise MerinoError(f"-o {out} and --plot {plot} are one file: choose another for one of them")
    for option, path in (("-o", out), ("--plot", plot)):
        if path:
            check_keeps(path, [Path(device)], option)
            check_file(path)
    if plot:
        check_plot(plot)
    choices = parse_choices(vocab, precision, kv)
    check_lengths(context, None)
    profile = board(device, say, backend)
    slots, prompt_tokens = default_lengths(profile, context, None)
    with working(f"searching for {profile.name}"):
        pareto_front = front(profile, limits, against.name, POINTS, **choices, context=slots, prompt=prompt_tokens)
    if plot:
        write_text(plot, front_svg(pareto_front))
        say(f"wrote {plot}")
    free = save(out, pareto_front.to_json())
    if as_json and free:
        print(pareto_front.to_json(), end="")
    elif free:
        put(intervals_of(profile, pareto_front, [(pareto_front.precision, pareto_front.points[0].predicted)]))
        show(front_table(pareto_front, profile))
