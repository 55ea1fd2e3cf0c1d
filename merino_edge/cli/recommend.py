"""The command `recommend`: published models for a board; or the scores and costs of the models that are named."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merino_edge.cli import options
from merino_runtime.errors import MerinoError

if TYPE_CHECKING:
    from merino_edge.bundles.source_name import Described
    from merino_edge.cli.tables import Table
    from merino_edge.families.geometry import Geometry
    from merino_edge.prediction.cost_model import Predicted
    from merino_edge.profiles.profile import DeviceProfile

SCORE_SCHEMA = 1
UNKNOWN = "the paper's entropy is defined for FFNs of two matrices, and for attention as wide as its layer"
MEANING = (
    "measured: effective weights, with float32 weights; twice as many mean 2^-alpha of the loss",
    "merino: the paper's entropy times effectiveness, in weighted nats",
)


def recommend(
    sources: Annotated[list[str] | None, typer.Argument(
        metavar="SOURCE", help="score these instead: design.json, architecture, checkpoint, GGUF, bundle or name"
    )] = None,
    board_name: Annotated[str | None, typer.Option("--board", metavar="BOARD", help=options.BOARD)] = None,
    decode_ms: options.DecodeMs = None,
    memory_mb: options.MemoryMb = None,
    budget: Annotated[list[str] | None, options.budget_option()] = None,
    context: options.Context = None,
    as_json: options.Json = False,
) -> None:  # fmt: skip
    """List the published models and formats that meet a board's budgets; or score SOURCEs, and predict their costs."""
    from merino_edge.bundles.source_name import describe
    from merino_edge.calibration.board import with_backend
    from merino_edge.cli.over_ssh import board, is_address
    from merino_edge.cli.recommended import budgets_line, first_command, recommendation_json, recommendation_table
    from merino_edge.cli.tables import show
    from merino_edge.cli.terminal import put, say, working
    from merino_edge.design.budgets import with_board_defaults
    from merino_edge.design.recommend import recommend as find
    from merino_edge.prediction.shape import check_lengths, default_lengths

    limits = options.limits_of(decode_ms, memory_mb, budget)
    check_lengths(context, None)
    if sources and limits:
        raise MerinoError("budgets are for the list of published models, not for SOURCE: leave one of them out")
    if not sources and board_name is None:
        raise typer.BadParameter("it is missing: choose one of `merino-edge devices`", param_hint="--board")
    decoders = [describe(source) for source in sources or ()]
    profile = board(board_name, say) if board_name is not None else None
    if sources or profile is None:
        print_scores(sources or (), decoders, profile, context, as_json=as_json)
        return
    where, _ = with_backend(board_name or "")
    address = where if is_address(where) else None
    named = profile.id if address else where
    slots, prompt_tokens = default_lengths(profile, context, None)
    with working(f"judging models for {profile.name}"):
        recommendation = find(profile, with_board_defaults(limits, profile), context=slots, prompt=prompt_tokens)
    if as_json:
        print(json.dumps(recommendation_json(recommendation, profile, named), indent=2))
    else:
        put(budgets_line(recommendation, profile))
        show(recommendation_table(recommendation, profile))
        if command := first_command(recommendation, profile, named):
            put(f"to export the first: {command}")
            host, first = address or "USER@HOST", recommendation.candidates[0].model.id
            put(f"to bring it onto the board: merino-edge deploy {first} --ssh {host}")


def print_scores(
    sources: Sequence[str], decoders: "Sequence[Described]", profile: "DeviceProfile | None", context: int | None, *,
    as_json: bool,
) -> None:  # fmt: skip
    """Print the scores of decoders, and their predicted costs on a board. No weights are read."""
    from merino_edge.cli.tables import show
    from merino_edge.design.score import SCORES, existing_score, layers_weights

    costs = [costs_of(profile, decoder.geometry, context) if profile else {} for decoder in decoders]
    rows = []
    for source, decoder, cost in zip(sources, decoders, costs, strict=True):
        scores = {name: existing_score(decoder.geometry, scoring) for name, scoring in SCORES.items()}
        rows.append({
            "source": source, "name": decoder.name, "shape": decoder.geometry.shape(),
            "weights": layers_weights(decoder.geometry),
            "scores": {name: {"value": value, "reason": UNKNOWN if value is None else ""}
                       for name, value in scores.items()},
            "predicted": {precision: predicted.model_dump() for precision, predicted in cost.items()},
        })  # fmt: skip
    if as_json:
        target = {"device": profile.id, "backend": profile.backend} if profile else {}
        print(json.dumps({"schema": SCORE_SCHEMA, **target, "sources": rows}, indent=1))
        return
    show(score_table(rows, list(SCORES)))
    if profile:
        show(cost_table([decoder.name for decoder in decoders], costs, profile))


def costs_of(profile: "DeviceProfile", decoder: "Geometry", context: int | None) -> "dict[str, Predicted]":
    """Predict the costs by weight format. Without a context the board's own, or the model's if that is shorter."""
    from merino_edge.prediction.cost_model import cost_model
    from merino_edge.prediction.formats import cache_on, formats_of
    from merino_edge.prediction.shape import InferenceShape, check_lengths, default_lengths

    if context is not None and context > decoder.context:
        raise MerinoError(f"--context {context} is not allowed: {decoder.shape()} takes 2 to {decoder.context} tokens")
    longest, _ = default_lengths(profile, context, None)
    longest, tokens = default_lengths(profile, min(longest, decoder.context), None)
    check_lengths(longest, tokens)
    shapes = [
        InferenceShape(precision, longest, tokens, cache_on(profile, decoder, precision))
        for precision in formats_of(profile)
    ]
    return {shape.precision: cost_model(profile, shape).predict(decoder.operators) for shape in shapes}


def score_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> "Table":
    from merino_edge.cli.tables import Column, Table

    def cell(name: str, value: float | None) -> str:
        if value is None:
            return "-"
        return f"{value / 1e6:,.2f} M" if name == "measured" else f"{value:,.0f}"

    reasons = {
        f"- ({row['name']}): {scored['reason']}"
        for row in rows for scored in row["scores"].values() if scored["reason"]
    }
    return Table(
        columns=[Column("source", left=True, wraps=True), Column("shape", left=True, wraps=True),
                 Column("weights of layers"), *map(Column, names)],
        rows=[
            [row["name"], row["shape"], f"{row['weights'] / 1e6:,.2f} M",
             *(cell(name, row["scores"][name]["value"]) for name in names)]
            for row in rows
        ],
        title="Scores, higher is better; docs/search.md defines them",
        below=[*MEANING, *sorted(reasons)],
    )  # fmt: skip


def cost_table(names: Sequence[str], costs: "Sequence[Mapping[str, Predicted]]", profile: "DeviceProfile") -> "Table":
    from merino_edge.cli.design_tables import number
    from merino_edge.cli.tables import Column, Table, on_backend
    from merino_edge.design.budgets import BUDGETS_BY_NAME

    predicted = [cost for by_format in costs for cost in by_format.values()]
    budgets = [budget for budget in BUDGETS_BY_NAME.values() if all(budget.of(cost) is not None for cost in predicted)]
    return Table(
        columns=[Column("source", left=True, wraps=True), Column("format", left=True),
                 *(Column(budget.name.replace("_", "-"), wraps=True) for budget in budgets)],
        rows=[
            [name, precision, *(number(budget.of(cost)) for budget in budgets)]
            for name, by_format in zip(names, costs, strict=True) for precision, cost in by_format.items()
        ],
        title=f"Costs on {on_backend(profile, profile.name)}, predicted from {predicted[0].provenance} coefficients",
    )  # fmt: skip
