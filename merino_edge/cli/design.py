"""The command `merino-edge design`: its options, read into one call of the designer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from merino_edge.cli.options import (
    CHOICES,
    CONFIDENCE,
    PAPER,
    Backend,
    Confidence,
    Context,
    Device,
    Json,
    OpenKv,
    Precision,
    Prompt,
    Vocab,
    opened,
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
    context: Context = None,
    prompt: Prompt = None,
    vocab: Vocab = None,
    precision: Precision = None,
    kv: OpenKv = None,
    tokens: Annotated[
        float | None, typer.Option(help="tokens of your training text, which bound the size", rich_help_panel=CHOICES)
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option(
            help="training text, whose tokens are counted by its bytes; repeat for more files", rich_help_panel=CHOICES
        )
    ] = None,
    preset: Annotated[Literal["merino-52m", "merino-61m", "merino-64m"] | None, typer.Option(
        metavar="NAME", rich_help_panel=PAPER,
        help="the paper's FLOPs budget: merino-52m (60 GFLOPs), merino-61m (110) or merino-64m (160)",
    )] = None,
    score: Annotated[
        str | None, typer.Option(
            help="measured (law of published losses), or merino: the paper's space and entropy; default: measured; with"
            " --preset: merino", rich_help_panel=PAPER,
        )
    ] = None,
    confidence: Confidence = CONFIDENCE,
    measure: Annotated[
        bool, typer.Option("--measure", help="measure the design on this machine, correct the budgets by the error and"
                           " search again: at most 3 designs")
    ] = False,
    as_json: Json = False,
    out: Annotated[Path | None, typer.Option("-o", help="output path of design.json")] = None,
) -> None:  # fmt: skip
    """Design the decoder of highest score within the given budgets, by default the board's own."""
    from merino_edge.calibration.board import board
    from merino_edge.cli.design_tables import print_design
    from merino_edge.cli.terminal import save, say, working
    from merino_edge.design.axes.tokens import count
    from merino_edge.design.axes.vocabulary import VOCABS
    from merino_edge.design.budgets import with_board_defaults
    from merino_edge.design.designer import design as best_design
    from merino_edge.design.paper.score import PRESETS
    from merino_edge.design.score import DEFAULT, MERINO, score_named
    from merino_edge.prediction.shape import default_lengths
    from merino_edge.storage.atomic import check_file, check_keeps

    if preset is not None and limits:  # before `host` is measured
        raise MerinoError(f"--preset {preset} is a budget of its own: leave the others out")
    scoring = score_named(score or ("merino" if preset else DEFAULT.name))
    if preset is not None and scoring != MERINO:
        raise MerinoError(f"--preset {preset} is the paper's: leave --score {scoring.name} out")
    if tokens is not None and data:
        raise MerinoError(f"--tokens {tokens:g} and --data are two numbers of tokens: give one of them")
    if scoring == MERINO and (tokens is not None or data):
        raise MerinoError("the paper's score ignores the training text: leave --tokens and --data out")
    chosen = opened(vocab, precision, kv)
    if data:
        tokens = count(data, chosen["vocabs"][0] if chosen["vocabs"] else VOCABS[1])
    share = parse_confidence(confidence)
    if out:
        check_keeps(out, [Path(device), *(data or [])])
        check_file(out)
    profile = board(device, say, backend)
    longest, length = default_lengths(profile, context, prompt)
    limits = with_board_defaults(limits, profile) if preset is None else PRESETS[preset]

    def search(within: "Mapping[str, float]", like: "Design | None" = None) -> "Design":
        """`like`: a design whose vocabulary and formats are taken."""
        formats = chosen if like is None else {
            "vocabs": [like.architecture.vocab], "precisions": [like.precision], "kvs": [like.kv]
        }  # fmt: skip
        with working(f"searching for {profile.name}"):
            if scoring == MERINO:
                return by_paper(profile, within, formats, longest, length, share)
            return best_design(
                profile, within, context=longest, prompt=length, tokens=tokens, confidence=share, **formats
            )  # fmt: skip

    best = tried(profile, limits, search) if measure else search(limits)
    free = save(out, best.to_json())
    if as_json and free:
        print(best.to_json(), end="")
    elif free:
        print_design(best, profile, device)


def by_paper(
    profile: "DeviceProfile", limits: "Mapping[str, float]", formats: dict, context: int, prompt: int, confidence: float
) -> "Design":
    """The paper's search. Raises MerinoError for a list of vocabularies or formats, which its score cannot compare."""
    from dataclasses import replace

    from merino_edge.design.designer import design_by_paper
    from merino_edge.design.paper.space import PAPER_SPACE

    for option, key in (("--vocab", "vocabs"), ("--precision", "precisions"), ("--kv", "kvs")):
        if formats[key] and len(formats[key]) > 1:
            raise MerinoError(f"{option} is a list, and the paper's score cannot compare its values: give one")
    vocab = formats["vocabs"][0] if formats["vocabs"] else PAPER_SPACE.vocab
    return design_by_paper(
        profile, limits, space=replace(PAPER_SPACE, vocab=vocab), context=context, prompt=prompt,
        precision=formats["precisions"][0] if formats["precisions"] else None,
        kv=formats["kvs"][0] if formats["kvs"] else None, confidence=confidence,
    )  # fmt: skip


def tried(
    profile: "DeviceProfile", limits: "Mapping[str, float]",
    search: "Callable[[Mapping[str, float], Design | None], Design]",
) -> "Design":
    """The design that keeps `limits` when it is measured on this machine. Raises MerinoError for a profile of another
    machine."""
    if profile.id != "host":
        raise MerinoError(f"--measure measures on this machine, not on a {profile.name}: give --device host with it")
    from merino_edge.benchmarking.measuring import MOST_DESIGNS, bench_here, measure_design, redesign  # loads torch
    from merino_edge.cli.terminal import bench_progress, say

    def measure(candidate: "Design") -> "Measured":
        say(f"measuring {candidate.architecture.shape()}; there are at most {MOST_DESIGNS} designs")
        return measure_design(candidate, bench_here(bench_progress))

    return redesign(limits, search, measure, say)
