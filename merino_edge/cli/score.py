"""`merino-edge score`: every score of any decoder, and its predicted costs on a board."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from merino_edge.cli.options import Backend, Context, Json, Prompt

if TYPE_CHECKING:
    from merino_edge.families.geometry import Geometry
    from merino_edge.prediction.cost_model import Predicted
    from merino_edge.profiles.profile import DeviceProfile

SCHEMA = 1
UNKNOWN = "the paper's entropy is defined for FFNs of two matrices, and for attention as wide as its layer"


def score(
    sources: Annotated[list[str], typer.Argument(
        metavar="SOURCE", help="a design.json, an architecture, a checkpoint, a GGUF, a bundle, a catalog name"
    )],
    score: Annotated[str | None, typer.Option(help="name of one score; default: all scores")] = None,
    device: Annotated[
        str | None, typer.Option(help="also predict the costs on this board: id, `host` or path of a profile")
    ] = None,
    backend: Backend = None,
    context: Context = None,
    prompt: Prompt = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Scores of decoders, and with --device their predicted costs. Reads no weights."""
    from merino_edge.calibration.board import board
    from merino_edge.cli.score_tables import cost_table, score_table
    from merino_edge.cli.tables import show
    from merino_edge.cli.terminal import say
    from merino_edge.design.existing import existing_score, layers_weights
    from merino_edge.design.score import SCORES, score_named
    from merino_edge.export.named import describe

    names: list[str] = list(SCORES) if score is None else [score_named(score).name]
    decoders = [describe(source) for source in sources]
    profile = board(device, say, backend) if device else None
    costs = [costs_of(profile, each.geometry, context, prompt) if profile else {} for each in decoders]
    rows = [
        {
            "source": source, "name": each.name, "shape": each.geometry.shape(),
            "weights": layers_weights(each.geometry),
            "scores": {name: with_reason(existing_score(each.geometry, SCORES[name])) for name in names},
            "predicted": {precision: predicted.model_dump() for precision, predicted in cost.items()},
        }
        for source, each, cost in zip(sources, decoders, costs, strict=True)
    ]  # fmt: skip
    if as_json:
        target = {"device": profile.id, "backend": profile.backend} if profile else {}
        print(json.dumps({"schema": SCHEMA, **target, "sources": rows}, indent=1))
        return
    show(score_table(rows, names))
    if profile:
        show(cost_table([each.name for each in decoders], costs, profile))


def with_reason(value: float | None) -> dict[str, float | str | None]:
    return {"value": value, "reason": "" if value is not None else UNKNOWN}


def costs_of(
    profile: "DeviceProfile", decoder: "Geometry", context: int | None, prompt: int | None
) -> "dict[str, Predicted]":
    """By weight format. Without a context the board's own, or the model's where that is shorter."""
    from merino_edge.prediction.cost_model import cost_model
    from merino_edge.prediction.formats import formats_of
    from merino_edge.prediction.shape import InferenceShape, check_lengths, default_lengths
    from merino_runtime.errors import MerinoError

    if context is not None and context > decoder.context:
        raise MerinoError(f"--context {context} is not allowed: {decoder.shape()} takes 2 to {decoder.context} tokens")
    longest, _ = default_lengths(profile, context, None)
    longest, tokens = default_lengths(profile, min(longest, decoder.context), prompt)
    formats = formats_of(profile)
    check_lengths(longest, tokens)
    return {
        precision: cost_model(profile, InferenceShape(precision, longest, tokens)).predict(decoder.operators)
        for precision in formats
    }
