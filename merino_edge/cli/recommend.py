"""The command `recommend`: published models for a board; or the scores and costs of the models that are named."""

import json
from typing import Annotated

import typer

from merino_edge.cli import options
from merino_runtime.errors import MerinoError


def recommend(
    sources: Annotated[list[str] | None, typer.Argument(
        metavar="SOURCE", help="score these instead: design.json, architecture, checkpoint, GGUF, bundle or name"
    )] = None,
    board_name: Annotated[str | None, typer.Option("--board", metavar="BOARD", help=options.BOARD)] = None,
    backend: options.Backend = None,
    decode_ms: options.DecodeMs = None,
    memory_mb: options.MemoryMb = None,
    budget: Annotated[list[str] | None, options.budget_option()] = None,
    context: options.Context = None,
    prompt: options.Prompt = None,
    kv: options.Kv = None,
    as_json: options.Json = False,
) -> None:  # fmt: skip
    """List the published models and formats that meet a board's budgets; or score SOURCEs, and predict their costs."""
    from merino_edge.cli.over_ssh import board, is_address
    from merino_edge.cli.recommended import budgets_line, first_command, recommendation_json, recommendation_table
    from merino_edge.cli.score import print_scores
    from merino_edge.cli.tables import show
    from merino_edge.cli.terminal import put, say, working
    from merino_edge.design.budgets import with_board_defaults
    from merino_edge.design.recommend import recommend as find
    from merino_edge.export.named import describe
    from merino_edge.prediction.formats import quantized_kv
    from merino_edge.prediction.shape import check_lengths, default_lengths

    limits = options.limits_of(decode_ms, memory_mb, budget)
    check_lengths(context, prompt)
    cache = quantized_kv(kv)
    if sources and limits:
        raise MerinoError("budgets are for the list of published models, not for SOURCE: leave one of them out")
    if not sources and board_name is None:
        raise typer.BadParameter("it is missing: choose one of `merino-edge devices`", param_hint="--board")
    decoders = [describe(source) for source in sources or ()]
    profile = board(board_name, say, backend) if board_name else None
    if sources or profile is None:
        print_scores(sources or (), decoders, profile, context, prompt, cache, as_json=as_json)
        return
    address = board_name if is_address(board_name or "") else None
    named = profile.id if address else board_name or ""
    slots, prompt_tokens = default_lengths(profile, context, prompt)
    with working(f"judging models for {profile.name}"):
        recommendation = find(
            profile, with_board_defaults(limits, profile), context=slots, prompt=prompt_tokens, kv=cache
        )
    if as_json:
        print(json.dumps(recommendation_json(recommendation, profile, named), indent=2))
    else:
        put(budgets_line(recommendation, profile))
        show(recommendation_table(recommendation, profile))
        if command := first_command(recommendation, profile, named):
            put(f"to export the first: {command}")
            host, first = address or "USER@HOST", recommendation.candidates[0].model.id
            put(f"to bring it onto the board: merino-edge deploy {first} --ssh {host}")
