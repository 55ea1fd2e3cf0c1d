"""A geometry or a trained model, and data, to a checkpoint in Hugging Face's layout, by transformers' Trainer."""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, set_seed

from merino_edge.design.design_file import DESIGN, Design
from merino_edge.families.geometry import Geometry
from merino_edge.families.hugging_face import build_model, save_model
from merino_edge.storage.atomic import write_text
from merino_edge.text.tokenizer import end_id
from merino_edge.training import processes
from merino_edge.training.data.material import Sources
from merino_edge.training.logs import write_csv, write_picture
from merino_edge.training.loop import (
    CheckedTrainer,
    Progress,
    Watch,
    add_watch,
    draw_matrices,
    stop_on_ctrl_c,
    training_arguments,
)
from merino_edge.training.needs import check_disk, check_memory, keeps_scores, reported_disk, reported_memory
from merino_edge.training.prepare import Begins, Material, load, prepare, read, run_of
from merino_edge.training.pretrained import Pretrained, trained_count, with_lora
from merino_edge.training.recipe import Recipe
from merino_edge.training.run_folder import (
    RECORD,
    STATE,
    Run,
    check_out,
    check_same,
    is_finished,
    kept_run,
    locked,
    newest_whole_state,
    put_files,
)
from merino_edge.training.teacher import Teacher
from merino_runtime.errors import MerinoError

SCHEMA = 3  # of training.json
ADAPTER = "adapter"  # the folder of a LoRA run's, in peft's form
SPECIAL = ("bos_token", "eos_token", "pad_token")


def silent(*_: Any) -> None:
    pass


def train(
    arch: Geometry,
    data: Sequence[str | Path],
    out: Path,
    *,
    recipe: Recipe,
    name: str = "model",
    design: Design | None = None,
    pretrained: Pretrained | None = None,
    teacher: Teacher | None = None,
    tokenizer_file: Path | None = None,
    held_out: Sequence[str | Path] = (),
    resume: bool = False,
    threads: int | None = None,
    parts: int = 1,
    tensorboard: bool = False,
    ignore_memory: bool = False,
    say: Callable[[str], None] = silent,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train, write the checkpoint into `out`, and return the record of the run. A finished run stays as it is.

    `data`, `held_out`: as `data_source` takes them; without `held_out` the last of each of `data` are held out.
    `name`: the model's. `design`: written beside the weights. `pretrained`: a model of this geometry to start from,
    with its own tokenizer; None: weights are drawn. `teacher`: a model whose logits are learned beside the text, with
    the run's tokenizer. `resume`: start from the last whole saved state in `out`. `parts`: in which a step's rows are
    computed. `say` takes lines for people.

    Under torchrun all processes call it: each computes its share of a step's rows, the first one does all else.

    Raises MerinoError where `out` is in use or holds another run, for text or a tokenizer that cannot be used, where
    memory or disk do not suffice, and where the loss is not finite. Raises KeyboardInterrupt after ctrl-C.
    """
    if not processes.is_first():
        say = progress = silent
    trained = trained_count(pretrained, recipe.lora)
    begins = Begins(name, arch, recipe, pretrained, tokenizer_file, teacher)

    def judged() -> tuple[Run, Sources, bool]:
        check_start(arch, recipe, pretrained, tokenizer_file)
        rows = processes.part_of(recipe.batch, parts)
        if not is_finished(out):
            check_out(out, resume)
            say(check_memory(arch, recipe, ignore=ignore_memory, trained=trained, rows=rows))
            check_disk(arch, out, resume, recipe.patience, trained)
        sources = read(data, held_out)
        return run_of(begins, sources), sources, is_finished(out)

    with processes.joined():
        run, sources, finished = processes.by_the_first(judged)
        if finished:
            return processes.by_the_first(lambda: finished_record(out, run, say))
        alone = locked(out) if processes.is_first() else nullcontext()
        with alone, reported_disk(out / STATE), reported_memory(arch, recipe, trained):
            if threads is not None:
                torch.set_num_threads(threads)
            processes.by_the_first(lambda: prepare(out, run, sources, begins, resume, say))
            material = load(out, sources, pretrained, processes.part_of(recipe.batch, parts))
            trainer, seconds = fit(material, out, resume, parts, tensorboard, say, progress)
            return write_checkpoint(trainer, material, out, design, seconds)


def check_start(arch: Geometry, recipe: Recipe, pretrained: Pretrained | None, tokenizer_file: Path | None) -> None:
    """Raises MerinoError for options that do not go with a run from a design, or from a trained model."""
    if pretrained and tokenizer_file:
        raise MerinoError("--tokenizer goes with a design: a trained model keeps its own, leave --tokenizer out")
    if recipe.lora and not pretrained:
        raise MerinoError(
            "--lora goes with a trained model: leave it out, a design has no weights that adapters could stand beside"
        )
    if recipe.lora > (width := max(layer.width for layer in arch.layer_shapes)):
        raise MerinoError(f"--lora {recipe.lora} is more than the model's width, {width}: give less, such as 16")
    compiler = os.environ.get("CXX", "g++")
    if recipe.compile and not torch.cuda.is_available() and not shutil.which(compiler):
        raise MerinoError(
            f"--compile needs a C++ compiler, and there is no {compiler}: install one (on Debian by apt install g++),"
            " or leave --compile out"
        )
    if recipe.length is not None and recipe.length > arch.context:
        raise MerinoError(f"--length {recipe.length} is more than the model's context, {arch.context}: give less")


def finished_record(out: Path, run: Run, say: Callable[[str], None]) -> dict[str, Any]:
    kept = kept_run(out)
    assert kept is not None
    check_same(kept, run, out)
    say(f"this run is finished: nothing in {out} is changed")
    return json.loads((out / RECORD).read_bytes())


def model_of(material: Material) -> Any:
    """The model to train: drawn weights, a trained model's weights, or adapters on them."""
    run, pretrained = material.run, material.pretrained
    if pretrained is None:
        end = end_id(material.tokenizer)
        drawn = build_model(run.architecture, bos_token_id=end, eos_token_id=end, pad_token_id=end)
        draw_matrices(drawn)
        return drawn
    return with_lora(pretrained.model, run.recipe.lora) if run.recipe.lora else pretrained.model


def fit(
    material: Material, out: Path, resume: bool, parts: int, tensorboard: bool, say: Callable[[str], None],
    progress: Progress,
) -> tuple[CheckedTrainer, float]:  # fmt: skip
    """(the trainer after the last step, seconds of this process's steps). Raises KeyboardInterrupt after ctrl-C."""
    run, folder = material.run, out / STATE
    state = None
    if resume:
        state, faults = processes.by_the_first(lambda: newest_whole_state(folder))
        for fault in faults:
            say(f"{fault}: removed")
        say(f"going on from {state.name}")
    set_seed(run.recipe.seed)
    model = model_of(material)
    if keeps_scores(run.recipe, run.architecture):
        model.set_attn_implementation("eager")
    model.config.use_cache = False  # with a cache transformers does not keep the samples of a row apart
    trainer = CheckedTrainer(
        run.recipe,
        end_id(material.tokenizer) or 0,
        by_width=material.pretrained is None,
        model=model,
        args=training_arguments(run.recipe, folder, parts),
        train_dataset=material.data.rows,
        eval_dataset=material.data.held_out,
    )
    say(f"{run.recipe.steps:,} steps on {material.data.tokens:,} tokens; ctrl-C saves, --resume goes on")
    with stop_on_ctrl_c() as stop:
        watch = Watch(folder, stop, run.recipe.patience, say, progress)
        add_watch(trainer, watch, tensorboard and processes.is_first())
        started = time.perf_counter()
        trainer.train(resume_from_checkpoint=str(state) if state else None)
    if trainer.state.global_step < run.recipe.steps and not watch.ended_early:
        say(f"stopped and saved at step {trainer.state.global_step}: go on with the same command and --resume")
        raise KeyboardInterrupt
    return trainer, time.perf_counter() - started


def write_checkpoint(
    trainer: CheckedTrainer, material: Material, out: Path, design: Design | None, seconds: float
) -> dict[str, Any]:
    """The finished model in `out`, its record last."""
    run = material.run
    loss = held_out_loss(trainer)
    record = {
        "schema": SCHEMA,
        **run.model_dump(mode="json"),
        "train_tokens": material.data.tokens,
        "steps_taken": trainer.state.global_step,
        "seen_tokens": trainer.state.num_input_tokens_seen,
        "held_out_tokens": material.data.held_out_tokens,
        "held_out_loss": loss,
        "held_out_perplexity": math.exp(loss),
        "seconds_of_last_run": round(seconds, 1),
        "losses": [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry],
    }
    if not processes.is_first():
        return record
    with put_files(out) as beside:
        save_model(finished_model(trainer.model, material, beside), beside)
        save_tokenizer(material, beside)
        write_csv(beside, trainer.state.log_history)
        write_picture(beside, trainer.state.log_history, run.name)
        if design is not None:  # export reads its weight format and threads
            write_text(beside / DESIGN, design.to_json())
    write_text(out / RECORD, json.dumps(record, indent=1) + "\n")
    return record


def held_out_loss(trainer: CheckedTrainer) -> float:
    """That of the last step's evaluation, where it had one and its weights are the ones that are kept."""
    state = trainer.state
    last = [entry for entry in state.log_history if entry["step"] == state.global_step]
    known = [entry["eval_loss"] for entry in last if "eval_loss" in entry]
    return float(known[-1] if known and not trainer.recipe.patience else trainer.evaluate()["eval_loss"])


def finished_model(model: Any, material: Material, folder: Path) -> PreTrainedModel:
    """The model with adapters merged, which are kept in `folder` too."""
    if material.run.recipe.lora:
        model.save_pretrained(folder / ADAPTER)
        model = model.merge_and_unload()
    assert isinstance(model, PreTrainedModel)
    model.config.use_cache = True
    if material.pretrained and material.pretrained.stop_ids:
        assert model.generation_config is not None
        model.generation_config.eos_token_id = list(material.pretrained.stop_ids)
    return model


def save_tokenizer(material: Material, folder: Path) -> None:
    """As transformers and `export` read it, with the chat template."""
    end, chat = end_id(material.tokenizer), material.reading.chat
    special = {} if end is None else dict.fromkeys(SPECIAL, material.tokenizer.id_to_token(end))
    tokens = chat.tokens if chat else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=material.tokenizer, **{**special, **tokens})
    tokenizer.chat_template = chat.text if chat else None
    tokenizer.save_pretrained(folder)
