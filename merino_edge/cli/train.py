"""The command `merino-edge train`. A wrong path or value is reported before torch is loaded."""

import tomllib
from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from merino_edge.cli.terminal import counted_progress, put, say
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_text

if TYPE_CHECKING:
    from merino_edge.families.hugging_face import Checkpoint
    from merino_edge.training.distill import Teacher

DataOption, RecipeOption, TuningOption, RunOption = (
    partial(typer.Option, rich_help_panel=panel)
    for panel in ("Data", "Recipe", "Fine-tuning and distillation", "Run")
)
MOST_PASSES = 40  # over the text of a design with a training time: more lower the loss of no decoder


class InitialModel(NamedTuple):
    """The model that a run starts from. `pretrained`: None for random weights."""

    name: str
    architecture: Any  # a Geometry
    design: Any = None  # a Design
    pretrained: "Checkpoint | None" = None


def read_config(context: typer.Context, given: str | None) -> str | None:
    """Make the options in a TOML file the defaults of this call, and return `given`, which may also be a preset's name.
    Raise MerinoError for an unknown option or name."""
    if given is None or given in (recipes := presets()):
        return given
    from merino_edge.text.documents import check_files

    path = Path(given)
    if not path.exists():
        known = "; ".join(f"{name}: {facts['about']}" for name, facts in recipes.items())
        raise MerinoError(f"--config {given} is neither a file nor one of these recipes: {known}")
    check_files([path], "--config")
    try:
        content = tomllib.loads(read_text(given, "TOML", "Write options such as steps = 500."))
    except tomllib.TOMLDecodeError as error:
        raise MerinoError(f"--config {path} is not TOML: {error}") from error
    options = {option.opts[-1].lstrip("-"): option for option in context.command.params if option.opts[0] != "source"}
    options = {"out" if name == "o" else name: option for name, option in options.items()}
    values: dict[str, Any] = {}
    for name, value in content.items():
        option = options.get(name.replace("_", "-"))
        if option is None or name in ("config", "help"):
            raise MerinoError(f"--config {path}: {name} is not known: choose from {', '.join(sorted(options))}")
        is_flag = getattr(option, "is_flag", False)
        if isinstance(value, bool) != is_flag:
            allowed = "true or false" if is_flag else f"a value, as of --{name}"
            raise MerinoError(f"--config {path}: {name} is {value!r}, must be {allowed}")
        if name == "set" and isinstance(value, dict):
            value = [f"{setting}={chosen}" for setting, chosen in value.items()]
        values[str(option.name)] = [value] if option.multiple and not isinstance(value, list) else value
    context.default_map = values
    return given


def train(
    source: Annotated[str, typer.Argument(
        metavar="SOURCE", help="design.json or an architecture as JSON; or a model to fine-tune: folder, GGUF or name"
    )],
    data: Annotated[list[str], DataOption(
        metavar="PATH[:WEIGHT]",
        help="text, JSONL, Parquet, a folder of datasets, or a name on the hub; repeat for more",
    )],
    out: Annotated[Path, RunOption("-o", help="output folder of the checkpoint")],
    held_out: Annotated[list[str] | None, DataOption(
        help="held-out text or samples; default: the last 2 % of the tokens of each --data"
    )] = None,
    tokenizer: Annotated[Path | None, DataOption(
        help="tokenizer.json; default: train a BPE tokenizer on the text"
    )] = None,
    steps: Annotated[int | None, RecipeOption(
        help="number of optimizer steps; default: 1000, or as many as the design's training time allows"
    )] = None,
    batch: Annotated[int | None, RecipeOption(help="batch size, in sequences; default: 16")] = None,
    learning_rate: Annotated[float | None, RecipeOption(
        help="peak learning rate, after warm-up; default: 0.01, in fine-tuning 5e-05, with --lora 0.0002"
    )] = None,
    settings: Annotated[list[str] | None, RecipeOption(
        "--set", metavar="NAME=VALUE",
        help="another setting, repeat for more: length (of a row in tokens; default: the context, at most 1024"
        " in fine-tuning), seed (default 0), optimizer, weight_decay, warmup_share, evaluations, patience (number of"
        " evaluations without a lower held-out loss), prompt_weight, teacher_weight, temperature, table_rate, cut_long"
        " (truncate long samples), bf16, compile, accumulate (micro-batches of a step), threads, ignore_memory",
    )] = None,
    lora: Annotated[int | None, TuningOption(
        metavar="RANK", help="fine-tune adapters of this rank, merged at the end; default: all weights"
    )] = None,
    teacher: Annotated[str | None, TuningOption(
        metavar="SOURCE", help="distill from this model's logits; it must have the same tokenizer"
    )] = None,
    preset: Annotated[str | None, RunOption(
        "--config", is_eager=True, callback=read_config, metavar="FILE|NAME",
        help="TOML file of these options, such as steps = 500, with a table `set`; or a recipe by machine: paper,"
        " gpu-day or laptop-hour. The command line comes first",
    )] = None,
    resume: Annotated[bool, RunOption(
        "--resume", help="resume the run in -o; options default to those of the run"
    )] = False,
) -> None:  # fmt: skip
    """Train a design, or fine-tune a model, on text or samples; prints the held-out loss."""
    from merino_edge.text.documents import check_files
    from merino_edge.training.checkpoint import check_folder, is_finished, read_run
    from merino_edge.training.recipe import Recipe, new_recipe
    from merino_edge.training.sources import read_sources

    # 1. Check paths and values.
    if lora == 0:
        raise MerinoError("--lora 0 must be 1 or more: leave it out to train all weights")
    designed = read_design_source(source)
    read_sources(data)
    read_sources(held_out or (), "--held-out")
    check_files([tokenizer] if tokenizer else (), "--tokenizer")
    chosen: dict[str, Any] = presets().get(preset or "", {"recipe": {}})
    typed = {"steps": steps, "batch": batch, "learning_rate": learning_rate, "lora": lora}
    options = {name: value for name, value in typed.items() if value is not None} | recipe_settings(settings or ())
    if tokenizer and not designed:
        raise MerinoError("--tokenizer goes with a design: a trained model keeps its own, leave --tokenizer out")
    if lora and designed:
        raise MerinoError("--lora goes with a trained model: leave it out, a design has no weights to put adapters on")
    if options.keys() & {"teacher_weight", "temperature"} and not teacher:
        raise MerinoError("--set teacher_weight and temperature go with a --teacher: give one, or leave them out")
    if not is_finished(out):
        check_folder(out, resume)
    kept = read_run(out) if resume or is_finished(out) else None
    recipe = Recipe(**{**chosen["recipe"], **(kept.recipe.model_dump() if kept else {}), **options})

    # 2. Load torch, and the model that the run starts from.
    if find_spec("accelerate") is None:
        raise ModuleNotFoundError(name="accelerate")
    from transformers.utils import logging

    from merino_edge.calibration.this_machine import bf16_is_faster, training_steps
    from merino_edge.training.resources import is_first, process_count
    from merino_edge.training.train import train as run
    from merino_runtime.io.memory import keep_free_pages

    logging.set_verbosity_error()
    logging.disable_progress_bar()  # one for each saved state
    start = designed or load_pretrained(source)
    # 3. Complete the recipe, and train.
    if not kept:
        recipe = new_recipe(
            options, chosen["recipe"], fine_tuned=start.pretrained is not None, context=start.architecture.context,
            bf16="bf16" not in options and bf16_is_faster(),
        )  # fmt: skip
        planned, arch = start.design and start.design.training, start.architecture
        if planned and planned.hours and steps is None and not chosen["recipe"]:
            hours, row_tokens = planned.hours, recipe.length or arch.context
            if process_count() > 1:  # each would time its own
                raise MerinoError("the design's training time is for one process: give --steps N with several")
            counted = training_steps(
                hours, arch, batch=recipe.batch, length=row_tokens, parts=recipe.accumulate, bf16=recipe.bf16
            )
            if planned.tokens:
                counted = min(counted, max(1, round(MOST_PASSES * planned.tokens / (recipe.batch * row_tokens))))
            recipe = new_recipe(
                {**options, "steps": counted}, {}, fine_tuned=False, context=arch.context, bf16=recipe.bf16
            )
            say(f"{counted:,} steps for the design's {hours:g} hours of training; --steps decides instead")
    if chosen["recipe"] and is_first():
        tokens = recipe.steps * recipe.batch * (recipe.length or start.architecture.context)
        say(f"preset {preset}: {chosen['about']}. It needs {chosen['needs']}: {tokens:,} tokens")
    keep_free_pages()
    with counted_progress() as progress:
        record = run(
            start.architecture, data, out, recipe=recipe, name=start.name, design=start.design,
            pretrained=start.pretrained, teacher=load_teacher(teacher) if teacher else None, tokenizer_file=tokenizer,
            held_out=held_out or (), resume=resume, say=say, progress=progress,
        )  # fmt: skip
    if is_first():
        loss, perplexity = record["held_out_loss"], record["held_out_perplexity"]
        put(f"held-out loss {loss:.3f} nats per token, perplexity {perplexity:.2f}")
        say(f"the checkpoint is {out}")


def presets() -> dict[str, Any]:
    """Return `about`, `needs` and `recipe` by the name of a preset."""
    return tomllib.loads((files("merino_edge.training") / "presets.toml").read_text(encoding="utf-8"))


def recipe_settings(given: Sequence[str]) -> dict[str, Any]:
    """Read `--set NAME=VALUE`. Raise MerinoError for an unknown name."""
    from merino_edge.training.recipe import OPTIONS, Recipe

    pairs, known = [text.partition("=") for text in given], Recipe.model_fields.keys() - OPTIONS
    for name, equals, value in pairs:
        if name not in known or not value:
            raise MerinoError(
                f"--set {name}{equals}{value} is not known: give NAME=VALUE, with one of {', '.join(sorted(known))}"
            )
    return {name: value for name, _, value in pairs}


def read_design_source(source: str) -> InitialModel | None:
    """Return the model that a design or an architecture describes; None for a source that has weights. Loads no torch.
    Raises MerinoError if it is neither."""
    from merino_edge.bundles.source_name import DesignFile, find_source
    from merino_edge.design.design_file import read_plan

    path = Path(source)
    found = DesignFile(path, read_plan(path)) if path.suffix == ".json" else find_source(source)
    return InitialModel(found.name, found.geometry, found.design) if isinstance(found, DesignFile) else None


def load_pretrained(source: str) -> InitialModel:
    """Load a model to fine-tune. Raises MerinoError if it has no tokenizer, or random weights."""
    from merino_edge.export.source import load_source
    from merino_edge.families.hugging_face import Checkpoint

    loaded = load_source(source, say=say)
    if loaded.tokenizer is None or loaded.weights != "trained":
        raise MerinoError(
            f"{source} has {'no tokenizer' if loaded.tokenizer is None else 'random weights'}, so it cannot be"
            " fine-tuned: give the checkpoint that it was exported from, or train its design"
        )
    checkpoint = Checkpoint(loaded.arch, loaded.model, loaded.stop_ids, loaded.tokenizer, loaded.chat)
    return InitialModel(loaded.name, loaded.arch, loaded.design, checkpoint)


def load_teacher(what: str) -> "Teacher":
    """Hash a teacher's files; its weights are not read yet. Raises MerinoError for a design, which has none."""
    from merino_edge.bundles.source_name import DesignFile, find_source, published
    from merino_edge.export.source import load_source
    from merino_edge.families.hub import fetch
    from merino_edge.families.hugging_face import Checkpoint
    from merino_edge.storage.digest import content_digest
    from merino_edge.training.distill import Teacher

    resolved = find_source(what)
    if isinstance(resolved, DesignFile):
        raise MerinoError(f"--teacher {what} is a design, which has no weights: give a trained model")
    model = published(resolved, None)
    path = fetch(model, say) if model else resolved
    assert isinstance(path, Path)

    def load() -> Checkpoint:
        source = load_source(what, say=say)
        if source.weights != "trained":
            raise MerinoError(f"--teacher {what} has random weights: give a trained model")
        return Checkpoint(source.arch, source.model, source.stop_ids, source.tokenizer, source.chat)

    return Teacher(what, content_digest(path), load)
