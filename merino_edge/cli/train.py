"""The command `merino-edge train`. A wrong path or figure is reported before torch is loaded."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from merino_edge.cli.terminal import counted_progress, put, say
from merino_runtime.errors import MerinoError

if TYPE_CHECKING:
    from merino_edge.training.pretrained import Pretrained
    from merino_edge.training.teacher import Teacher

TUNING_RATE, LORA_RATE = 5e-5, 2e-4
LENGTH = 1024  # tokens of a row in fine-tuning, where the context is not shorter


class Begin(NamedTuple):
    """What a run begins from. `pretrained`: None where weights are drawn."""

    name: str
    architecture: Any  # a Geometry
    design: Any = None  # a Design
    pretrained: "Pretrained | None" = None


def train(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="design.json or an architecture as JSON; or a model to fine-tune: folder, GGUF or name",
        ),
    ],
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
    preset: Annotated[
        str | None, typer.Option(help="recipe by machine: paper, gpu-day or laptop-hour; other options take precedence")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="number of optimizer steps; default: 1000")] = None,
    batch: Annotated[int | None, typer.Option(help="batch size, in sequences of context length; default: 16")] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="gradient accumulation: micro-batches per step, to save memory; default: 1"
        ),
    ] = None,
    evaluations: Annotated[int | None, typer.Option(help="evaluations and checkpoints per run; default: 10")] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="early stopping: evaluations without a lower held-out loss; keeps the best weights"),
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="sequence length in tokens; default: the context, in fine-tuning at most 1024")
    ] = None,
    cut_long: Annotated[
        bool | None, typer.Option("--cut-long", help="truncate samples longer than --length; default: refuse them")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="peak learning rate, after warm-up; default: 0.01, in fine-tuning 5e-05, with --lora 0.0002"
        ),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(help="weight decay; default: 5 / (steps x learning rate), at most 0.5; in fine-tuning 0.1"),
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="muon or adamw; default: muon, in fine-tuning adamw")] = None,
    prompt_weight: Annotated[
        float | None, typer.Option(help="weight of prompt tokens in the loss; completion tokens have 1; default: 0")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="distil from this model's logits; it must have the same tokenizer"),
    ] = None,
    teacher_weight: Annotated[
        float | None, typer.Option(help="weight of the distillation loss, 0 to 1; default: 0.5")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="distillation temperature; default: 1")] = None,
    lora: Annotated[
        int | None,
        typer.Option(metavar="RANK", help="fine-tune adapters of this rank, merged at the end; default: all weights"),
    ] = None,
    bf16: Annotated[
        bool | None, typer.Option(help="train in bfloat16; default: where the GPU or CPU is faster in it")
    ] = None,
    compile_model: Annotated[
        bool | None,
        typer.Option("--compile", help="use torch.compile: a shorter step after a minute's compilation, needs g++"),
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="write logs for TensorBoard too")] = False,
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
    """Train a design, or fine-tune a model, on text or samples; prints the held-out loss."""
    from merino_edge.text.documents import check_files
    from merino_edge.training import presets
    from merino_edge.training.data.sources import data_sources
    from merino_edge.training.recipe import Recipe, usual_weight_decay
    from merino_edge.training.run_folder import check_out, is_finished, kept_recipe

    plan = plan_of(source)
    if plan and vocab is not None and vocab != plan.architecture.vocab:
        raise MerinoError(
            f"--vocab {vocab} is not the design's, {plan.architecture.vocab}: leave it out, or design with it"
        )
    data_sources(data)
    data_sources(held_out or (), "--held-out")
    check_files([tokenizer] if tokenizer else (), "--tokenizer")
    given = {
        "steps": steps, "batch": batch, "length": length, "cut_long": cut_long, "learning_rate": learning_rate,
        "seed": seed, "bf16": bf16, "compile": compile_model, "lora": lora, "patience": patience,
        "evaluations": evaluations, "prompt_weight": prompt_weight, "teacher_weight": teacher_weight,
        "temperature": temperature, "weight_decay": weight_decay, "optimizer": optimizer,
    }  # fmt: skip
    options = {key: value for key, value in given.items() if value is not None}
    kept = kept_recipe(out, resume)
    chosen = presets.preset(preset) if preset else None
    recipe = Recipe(**{**(chosen.recipe if chosen else {}), **kept, **options})
    if (teacher_weight or temperature) and not teacher:
        raise MerinoError("--teacher-weight and --temperature go with a --teacher: give one, or leave them out")
    if not is_finished(out):
        check_out(out, resume)

    from transformers.utils import logging

    from merino_edge.training.optimizer import bf16_is_faster
    from merino_edge.training.processes import is_first
    from merino_edge.training.train import train as run
    from merino_runtime.io.heap import keep_free_pages

    logging.set_verbosity_error()
    logging.disable_progress_bar()  # one for each saved state
    begin = plan or pretrained_of(source, vocab)
    if not kept:
        usual: dict[str, Any] = {} if bf16 is not None else {"bf16": bf16_is_faster()}
        tuning: dict[str, Any] = {}
        if begin.pretrained:
            usual["length"] = min(begin.architecture.context, LENGTH)
            tuning = {"optimizer": "adamw", "learning_rate": LORA_RATE if lora else TUNING_RATE}
        recipe = Recipe(**{**usual, **(chosen.recipe if chosen else {}), **tuning, **options})
        if not begin.pretrained and weight_decay is None:
            recipe = replace(recipe, weight_decay=usual_weight_decay(recipe.steps, recipe.learning_rate))
    if chosen and preset and is_first():
        say(presets.needs_words(preset, chosen, begin.architecture, recipe))
    parts = accumulate or (chosen.accumulate if chosen else 1)
    keep_free_pages()
    with counted_progress() as progress:
        record = run(
            begin.architecture, data, out, recipe=recipe, name=begin.name, design=begin.design,
            pretrained=begin.pretrained, teacher=teacher_of(teacher) if teacher else None, tokenizer_file=tokenizer,
            held_out=held_out or (), resume=resume, threads=threads, parts=parts, tensorboard=tensorboard,
            ignore_memory=ignore_memory, say=say, progress=progress,
        )  # fmt: skip
    if not is_first():
        return
    put(f"held-out loss {record['held_out_loss']:.3f} nats per token, perplexity {record['held_out_perplexity']:.2f}")
    say(f"the checkpoint is {out}")


def plan_of(source: str) -> Begin | None:
    """The model that a design or an architecture describes; None for a source that has weights, here or on the hub.
    Loads no torch. Raises MerinoError where it is neither."""
    from merino_edge.design.design_file import Design, model_name, read_plan
    from merino_edge.export.request import Plan, find_source

    path = Path(source)
    resolved = Plan(path, read_plan(path)) if path.suffix == ".json" else find_source(source)
    if not isinstance(resolved, Plan):
        return None
    design = resolved.content if isinstance(resolved.content, Design) else None
    arch = design.architecture if design else resolved.content
    return Begin(model_name(resolved.path, resolved.content), arch, design)


def pretrained_of(source: str, vocab: int | None) -> Begin:
    """Raises MerinoError for a model without a tokenizer, or whose weights are random."""
    from merino_edge.export.source import load_source
    from merino_edge.training.pretrained import Pretrained

    loaded = load_source(source, say=say)
    if loaded.tokenizer is None or loaded.weights != "trained":
        raise MerinoError(
            f"{source} has {'no tokenizer' if loaded.tokenizer is None else 'random weights'}, so it cannot be"
            " fine-tuned: give the checkpoint that it was exported from, or train its design"
        )
    if vocab is not None and vocab != loaded.arch.vocab:
        raise MerinoError(f"--vocab {vocab} is not the model's, {loaded.arch.vocab}: leave it out")
    pretrained = Pretrained(loaded.model, loaded.tokenizer, loaded.chat, loaded.stop_ids)
    return Begin(loaded.name, loaded.arch, loaded.design, pretrained)


def teacher_of(what: str) -> "Teacher":
    """Its files are hashed, its weights are not read yet. Raises MerinoError for a design, which has none."""
    from merino_edge.bundles.files import is_bundle
    from merino_edge.export.request import Plan, find_source, published
    from merino_edge.export.source import load_source
    from merino_edge.families.checkpoint import CONFIG, weight_files
    from merino_edge.families.hub import fetch
    from merino_edge.training.teacher import TaughtModel, Teacher
    from merino_runtime.bundle import sha256_of

    resolved = find_source(what)
    if isinstance(resolved, Plan):
        raise MerinoError(f"--teacher {what} is a design, which has no weights: give a trained model")
    model = published(resolved, None)
    path = fetch(model, say) if model else resolved
    assert isinstance(path, Path)
    names = [CONFIG, *weight_files(path)] if path.is_dir() and not is_bundle(path) else []
    files = [path / name for name in names] or [path / "bundle.json" if path.is_dir() else path]
    hashed = sha256(" ".join(sha256_of(str(file)) for file in files).encode()).hexdigest()

    def load() -> TaughtModel:
        source = load_source(what, say=say)
        if source.weights != "trained":
            raise MerinoError(f"--teacher {what} has random weights: give a trained model")
        return TaughtModel(source.arch, source.model, source.tokenizer)

    return Teacher(what, hashed, load)
