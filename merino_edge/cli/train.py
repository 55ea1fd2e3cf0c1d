"""The command `merino-edge train`. What is wrong with a path or a figure is said before torch is loaded."""

from pathlib import Path
from typing import Annotated

import typer

from merino_edge.cli.terminal import counted_progress, put, say
from merino_runtime.errors import MerinoError


def train(
    design_file: Annotated[Path, typer.Argument(metavar="DESIGN", help="design.json, or an architecture as JSON")],
    data: Annotated[
        list[str],
        typer.Option(
            metavar="PATH[:WEIGHT]",
            help="text, JSONL, Parquet, a folder of datasets, or a name on the hub; repeat for more",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", help="output folder of the checkpoint")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json; default: train a BPE tokenizer on the text")
    ] = None,
    vocab: Annotated[
        int | None, typer.Option(help="vocabulary size of the BPE tokenizer; must equal the design's")
    ] = None,
    held_out: Annotated[
        list[str] | None, typer.Option(help="held-out text or samples; default: the last 2 % of each --data")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="number of optimiser steps; default: 1000")] = None,
    batch: Annotated[
        int | None, typer.Option(help="batch size, in sequences of context length; default: 16")
    ] = None,
    length: Annotated[int | None, typer.Option(help="tokens of a row; default: the context")] = None,
    cut_long: Annotated[
        bool | None, typer.Option("--cut-long", help="cut samples longer than a row; default: refuse them")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="peak learning rate, after warm-up; default: 0.002")
    ] = None,
    bf16: Annotated[bool | None, typer.Option("--bf16", help="train in bfloat16 where the machine supports it")] = None,
    seed: Annotated[int | None, typer.Option(help="random seed; default: 0")] = None,
    threads: Annotated[
        int | None, typer.Option("-t", "--threads", min=1, help="number of threads; default: torch's choice")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="resume the run in -o; options default to those of the run")
    ] = False,
    ignore_memory: Annotated[
        bool, typer.Option("--ignore-memory", help="start even if the memory estimate exceeds the free memory")
    ] = False,
) -> None:
    """Train a design on text or samples; prints the loss on held-out ones."""
    from merino_edge.design.design_file import Design, model_name, read_plan
    from merino_edge.text.documents import check_files
    from merino_edge.training.data.sources import data_sources
    from merino_edge.training.recipe import Recipe
    from merino_edge.training.run_folder import check_out, is_finished, kept_recipe

    plan = read_plan(design_file)
    arch = plan.architecture if isinstance(plan, Design) else plan
    if vocab is not None and vocab != arch.vocab:
        raise MerinoError(f"--vocab {vocab} is not the design's, {arch.vocab}: leave it out, or design with it")
    data_sources(data)
    data_sources(held_out or (), "--held-out")
    check_files([tokenizer] if tokenizer else (), "--tokenizer")
    given = {
        "steps": steps, "batch": batch, "length": length, "cut_long": cut_long, "learning_rate": learning_rate,
        "seed": seed, "bf16": bf16,
    }  # fmt: skip
    asked = {key: value for key, value in given.items() if value is not None}
    recipe = Recipe(**{**kept_recipe(out, resume), **asked})
    if not is_finished(out):
        check_out(out, resume)

    from transformers.utils import logging

    from merino_edge.training.train import train as run

    logging.set_verbosity_error()
    logging.disable_progress_bar()  # one for each saved state
    with counted_progress() as progress:
        record = run(
            arch, data, out, recipe=recipe, name=model_name(design_file, plan),
            design=plan if isinstance(plan, Design) else None, tokenizer_file=tokenizer, held_out=held_out or (),
            resume=resume, threads=threads, ignore_memory=ignore_memory, say=say, progress=progress,
        )  # fmt: skip
    put(f"held-out loss {record['held_out_loss']:.3f} nats per token, perplexity {record['held_out_perplexity']:.2f}")
    say(f"the checkpoint is {out}")
