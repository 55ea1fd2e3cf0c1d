"""The command `merino-edge design`: its many options, read into one call of the designer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from merino_edge.cli.options import (
    CONFIDENCE,
    Backend,
    Confidence,
    Context,
    Device,
    Json,
    Kv,
    Prompt,
    Seed,
    parse_confidence,
    with_budgets,
)
from merino_runtime.errors import MerinoError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from merino_edge.design.design_file import Design, Measured
    from merino_edge.profiles.profile import DeviceProfile


@with_budgets
def design(
    device: Device,
    limits: dict[str, float],
    backend: Backend = None,
    preset: Annotated[Literal["merino-52m", "merino-61m", "merino-64m"] | None, typer.Option(
        metavar="NAME", help="the paper's FLOPs budget: merino-52m (60 GFLOPs), merino-61m (110) or merino-64m (160)"
    )] = None,
    context: Context = None,
    prompt: Prompt = None,
    vocab: Annotated[str, typer.Option(help="vocabulary size, or a list to search: 4096,16384")] = "50257",
    precision: Annotated[
        str | None,
        typer.Option(help="weight format, a list to search, or any: all fast ones; default: fp32, on a GPU fp16"),
    ] = None,
    kv: Kv = None,
    blocks: Annotated[int, typer.Option(min=1, max=6, help="number of blocks")] = 4,
    width_step: Annotated[
        Literal["32", "64"], typer.Option(help="granularity of widths; 32 implies head size 32")
    ] = "64",
    head_size: Annotated[
        Literal["32", "64"] | None, typer.Option(help="attention head size; default: 64, or 32 where a block is narrow")
    ] = None,
    kv_heads: Annotated[
        str | None,
        typer.Option(
            help="numbers of KV heads to search, such as 1,2,4; full: as many as query heads; default: all;"
            " with --preset: full"
        ),
    ] = None,
    solver: Annotated[
        Literal["exact", "evolution"], typer.Option(help="exact (MILP, proves the optimum) or evolution (heuristic)")
    ] = "exact",
    steps: Annotated[
        int, typer.Option(help="evolution: number of mutations T (the paper, as recalled: 100000)")
    ] = 2_000_000,
    population: Annotated[int, typer.Option(help="evolution: population size M (as recalled from the paper)")] = 512,
    parents: Annotated[int, typer.Option(help="evolution: number of parents K (as recalled from the paper)")] = 64,
    score: Annotated[
        str | None, typer.Option(
            help="measured (law of published losses); merino, merino-literal or merino-off (entropy); default:"
            " measured; with --preset: merino"
        )
    ] = None,
    confidence: Confidence = CONFIDENCE,
    seed: Seed = 0,
    measure: Annotated[
        bool, typer.Option("--measure", help="measure the design on this machine, correct the budgets by the error and"
                           " search again: at most 3 designs")
    ] = False,
    as_json: Json = False,
    out: Annotated[Path | None, typer.Option("-o", help="output path of design.json")] = None,
) -> None:
    """Design the decoder of highest score within the given budgets, by default the board's own."""
    from merino_edge.calibration.board import board
    from merino_edge.cli.design_tables import print_design
    from merino_edge.cli.terminal import save, say, working
    from merino_edge.design.budgets import with_board_defaults
    from merino_edge.design.design_file import Design
    from merino_edge.design.designer import design as best_design
    from merino_edge.design.evolution import Effort
    from merino_edge.design.law import MeasuredScoring
    from merino_edge.design.presets import PRESETS
    from merino_edge.design.score import DEFAULT, score_named
    from merino_edge.design.space import FULL, GROUPED, kv_heads_named, spaced
    from merino_edge.prediction.formats import fast_formats, formats_of, quantized_kv
    from merino_edge.prediction.shape import default_lengths
    from merino_edge.storage.atomic import check_file, check_keeps

    if preset is not None and limits:  # before `host` is measured
        raise MerinoError(f"--preset {preset} is a budget of its own: leave the others out")
    cache = quantized_kv(kv)
    share = parse_confidence(confidence)
    if out:
        check_keeps(out, [Path(device)])
        check_file(out)
    profile = board(device, say, backend)
    vocabs = integers("--vocab", vocab)
    named = formats_of(profile)[0] if precision is None else precision
    precisions = fast_formats(profile) if precision == "any" else words(named)
    usual = FULL if preset else GROUPED
    scoring = score_named(score or ("merino" if preset else DEFAULT.name))
    space = spaced(
        int(width_step), blocks, vocabs[0], None if head_size is None else int(head_size),
        kv_heads_named(words(kv_heads)) if kv_heads else usual, padded=isinstance(scoring, MeasuredScoring),
    )  # fmt: skip
    longest, tokens = default_lengths(profile, context, prompt)
    if preset is None:
        limits = with_board_defaults(limits, profile)
    else:
        limits = PRESETS[preset].limits

    def search(within: "Mapping[str, float]", like: Design | None = None) -> Design:
        """`like`: a design whose vocabulary and format are taken."""
        with working(f"searching for {profile.name}"):
            return best_design(
                profile, within, space=space, context=longest, prompt=tokens, kv=cache,
                vocabs=[like.architecture.vocab] if like else vocabs,
                precisions=[like.precision] if like else precisions, solver=solver,
                effort=Effort(steps, population, parents), seed=seed, scoring=scoring, confidence=share,
            )  # fmt: skip

    best = tried(profile, limits, search) if measure else search(limits)
    free = save(out, best.to_json())
    if as_json and free:
        print(best.to_json(), end="")
    elif free:
        print_design(best, profile, device)


def tried(
    profile: "DeviceProfile", limits: "Mapping[str, float]",
    search: "Callable[[Mapping[str, float], Design | None], Design]",
) -> "Design":
    """The design that keeps `limits` when it is measured on this machine. Raises MerinoError for a profile of another
    machine."""
    if profile.id != "host":
        raise MerinoError(f"--measure measures on this machine, not on a {profile.name}: give --device host with it")
    from merino_edge.benchmarking.measuring import bench_here
    from merino_edge.benchmarking.redesign import MOST_DESIGNS, measure_design, redesign  # loads torch
    from merino_edge.cli.terminal import bench_progress, say

    def measure(candidate: "Design") -> "Measured":
        say(f"measuring {candidate.architecture.shape()}; there are at most {MOST_DESIGNS} designs")
        return measure_design(candidate, bench_here(bench_progress))

    return redesign(limits, search, measure, say)


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def integers(option: str, text: str) -> list[int]:
    try:
        return [int(word) for word in words(text)]
    except ValueError as error:
        raise typer.BadParameter(f"{option} {text}: give an integer, or several with commas between") from error
