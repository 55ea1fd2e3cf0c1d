"""The command `merino-edge design`: check the options, call the designer, write and print the design."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from merino_edge.cli import options
from merino_runtime.errors import MerinoError

if TYPE_CHECKING:
    from merino_edge.training.sources import DataSource

SMALL_BYTES = 20_000_000  # a larger text fills any usual vocabulary, and a BPE of all of it takes a minute
TRAINING = {
    "tokens": "tokens of your training text",
    "train_hours": "training time on this machine's CPU, which `train` keeps to",
}


def design(
    board_name: options.Board,
    decode_ms: options.DecodeMs = None,
    memory_mb: options.MemoryMb = None,
    budget: Annotated[list[str] | None, options.budget_option(TRAINING)] = None,
    context: options.Context = None,
    prompt: options.Prompt = None,
    vocab: options.Vocab = None,
    precision: options.Precision = None,
    kv: options.OpenKv = None,
    data: Annotated[
        list[str] | None, typer.Option(
            metavar="PATH", rich_help_panel=options.CHOICES,
            help="training text, as for `train`: bounds the size by its tokens and the vocabulary; repeat for more",
        )
    ] = None,
    score: Annotated[str | None, typer.Option(
        metavar="NAME", rich_help_panel=options.PAPER,
        help="measured (law of published losses, the default); merino: the paper's space and entropy; or with the"
        " paper's FLOPs: merino-52m (60 GFLOPs), merino-61m (110) or merino-64m (160)",
    )] = None,
    as_json: options.Json = False,
    out: Annotated[Path | None, typer.Option("-o", help="output path of design.json")] = None,
) -> None:  # fmt: skip
    """Design the decoder of highest score within the given budgets, by default the board's own."""
    from merino_edge.calibration.this_machine import training_flops_per_s
    from merino_edge.cli.design_tables import print_design
    from merino_edge.cli.over_ssh import board
    from merino_edge.cli.terminal import save, say, working
    from merino_edge.design.axes.training_text import count
    from merino_edge.design.axes.vocabulary import VOCABS
    from merino_edge.design.budgets import with_board_defaults
    from merino_edge.design.designer import TrainingText, design_by_paper
    from merino_edge.design.designer import design as best_design
    from merino_edge.design.paper.score import PRESETS
    from merino_edge.design.paper.space import PAPER_SPACE
    from merino_edge.design.score import MEASURED, MERINO, score_named
    from merino_edge.prediction.shape import check_lengths, default_lengths
    from merino_edge.storage.atomic import check_file, check_keeps
    from merino_edge.text.tokenizer import too_large
    from merino_edge.training.sources import read_sources

    # 1. Check the options, before the board `host` is measured.
    limits = options.limits_of(decode_ms, memory_mb, budget, TRAINING)
    tokens, train_hours = limits.pop("tokens", None), limits.pop("train_hours", None)
    preset = PRESETS.get(score or "")
    if preset and limits:
        raise MerinoError(f"--score {score} has a budget of its own: leave the others out")
    scoring = MERINO if preset else score_named(score or MEASURED.name)
    if tokens is not None and data:
        raise MerinoError(f"--budget tokens={tokens:g} and --data are two numbers of tokens: give one of them")
    if scoring == MERINO and (tokens is not None or data):
        raise MerinoError("the paper's score ignores the training text: leave --budget tokens and --data out")
    choices = options.parse_choices(vocab, precision, kv)
    for option, values in zip(("--vocab", "--precision", "--kv"), choices.values(), strict=True):
        if scoring == MERINO and values and len(values) > 1:
            raise MerinoError(f"{option} is a list, and the paper's score cannot compare its values: give one")
    if train_hours is not None and not (tokens or data):
        raise MerinoError("--budget train-hours goes with a text: give --data FILE too, or --budget tokens=N")
    if train_hours is not None and not 0 < train_hours < math.inf:
        raise MerinoError(f"--budget train-hours={train_hours:g} is not allowed: give hours above 0, such as 1")
    most_vocab = None
    if data:  # the vocabulary is not chosen yet, so tokens are counted in a small one
        sources, largest = read_sources(data), max([*choices["vocabs"], *VOCABS])
        size, most_vocab = text_size(sources, largest)
        tokens = count(size, choices["vocabs"][0] if choices["vocabs"] else VOCABS[1])
        if (wanted := max(choices["vocabs"], default=0)) > most_vocab:
            raise too_large(wanted, most_vocab, size)
    check_lengths(context, prompt)
    flops = None if train_hours is None else 3600 * train_hours * training_flops_per_s()
    text = None if tokens is None else TrainingText(tokens, most_vocab, train_hours, flops)
    if out:
        check_keeps(out, [Path(board_name), *map(Path, data or [])])
        check_file(out)

    # 2. Load or measure the board, and take its defaults for what is not given.
    profile = board(board_name, say)
    slots, prompt_tokens = default_lengths(profile, context, prompt)
    limits = with_board_defaults(limits, profile) if preset is None else preset

    # 3. Search, write the design, print it.
    with working(f"searching for {profile.name}"):
        if scoring != MERINO:
            best = best_design(profile, limits, context=slots, prompt=prompt_tokens, text=text, **choices)
        else:
            one_vocab, one_precision, one_kv = (next(iter(values or ()), None) for values in choices.values())
            space = PAPER_SPACE if one_vocab is None else replace(PAPER_SPACE, vocab=one_vocab)
            best = design_by_paper(
                profile, limits, space=space, context=slots, prompt=prompt_tokens, precision=one_precision, kv=one_kv
            )
    stdout_is_free = save(out, best.to_json())
    if as_json and stdout_is_free:
        print(best.to_json(), end="")
    elif stdout_is_free:
        print_design(best, profile)


def text_size(sources: "Sequence[DataSource]", vocab: int) -> tuple[int, int]:
    """Return the bytes of the sources' text, and how many of `vocab` entries a BPE of it has. A large text is not read:
    its bytes are those of its files, and it fills all entries."""
    from merino_edge.text.tokenizer import largest_tokenizer
    from merino_edge.training.sources import CHATML_MARKS, chat_template, text_of

    size, chat = sum(source.file.bytes for source in sources), chat_template(sources)
    if size > SMALL_BYTES:
        return size, vocab
    texts = list(text_of(sources, chat))
    tokenizer, _ = largest_tokenizer(texts, vocab, special=CHATML_MARKS if chat else ())
    return sum(len(text.encode()) for text in texts), tokenizer.get_vocab_size()
