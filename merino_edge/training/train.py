"""Train a geometry from random weights, or fine-tune a checkpoint: `train` goes from data files to a checkpoint."""

import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerFast, PrinterCallback, set_seed

from merino_edge.design.design_file import DESIGN, Design
from merino_edge.families.checkpoint import read_chat_template
from merino_edge.families.geometry import Geometry
from merino_edge.families.hugging_face import Checkpoint, build_model, save_model, weights_hash
from merino_edge.families.registry import family_of
from merino_edge.storage.atomic import scratch_folder, write_text
from merino_edge.storage.extras import import_extra
from merino_edge.text.tokenizer import check_fits, end_id, load_tokenizer, tokenizer_hash, train_tokenizer
from merino_edge.training import checkpoint, loop, resources
from merino_edge.training.checkpoint import RUN, STATE, Run, is_finished
from merino_edge.training.dataset import RowDataset, load_data
from merino_edge.training.distill import Logits, Teacher, keep_logits
from merino_edge.training.loop import CheckedTrainer, Progress
from merino_edge.training.recipe import ADAPTER, Recipe
from merino_edge.training.shards import Say, Tokenization
from merino_edge.training.sources import CHATML_MARKS, DataSource, chat_template, read_sources, text_of
from merino_runtime.errors import MerinoError

SPECIAL = ("bos_token", "eos_token", "pad_token")


class Request(NamedTuple):
    """The options of a run.

    `name`: the model's name. `design`: written beside the weights. `pretrained`: a checkpoint to start from, of the
    geometry `arch`; None: random weights. `resume`: continue from the last whole saved state. `say` prints a line for
    people.
    """

    arch: Geometry
    recipe: Recipe
    out: Path
    name: str = "model"
    design: Design | None = None
    pretrained: Checkpoint | None = None
    teacher: Teacher | None = None
    tokenizer_file: Path | None = None
    resume: bool = False
    say: Say = lambda _: None
    progress: Progress = lambda *_: None

    @property
    def length(self) -> int:
        return self.recipe.length or self.arch.context

    @property
    def tokenizer(self) -> Path | str | None:
        """The given tokenizer, a file or the text of one; None: a tokenizer is trained."""
        return self.pretrained.tokenizer if self.pretrained else self.tokenizer_file

    @property
    def micro_batch(self) -> int:
        """The number of rows that a process computes at once."""
        return self.recipe.batch // (resources.process_count() * self.recipe.accumulate)


def train(
    arch: Geometry, data: Sequence[str | Path], out: Path, *, recipe: Recipe, held_out: Sequence[str | Path] = (),
    **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Train, write the checkpoint into `out`, and return the record of the run. A finished run stays as it is.

    data, held_out: paths or names of sources, see `read_sources`. Without `held_out` the last 2 % of each source's
    tokens are held out. options: the other fields of a Request.

    Under torchrun all processes call it: each computes its share of a step's rows, and the first does everything else.

    Raises MerinoError if `out` is in use or holds another run, for text or a tokenizer that cannot be used, if memory
    or disk do not suffice, and if the loss is not finite. Raises KeyboardInterrupt after ctrl-C or SIGTERM.
    """
    if not resources.is_first():
        options = {name: value for name, value in options.items() if name not in ("say", "progress")}
    request = Request(arch, recipe, out, **options)
    with resources.joined():
        # 1. Check the request, and describe the run: its options, and the hashes of its inputs.
        sources, held_out_sources, run = resources.on_first_process(
            lambda: check_and_describe(request, read_sources(data), read_sources(held_out, "--held-out"))
        )
        if is_finished(out):
            resources.on_first_process(lambda: checkpoint.check_same(checkpoint.read_run(out), run, out))
            request.say(f"this run is finished: nothing in {out} is changed")
            return dict(json.loads((out / checkpoint.RECORD).read_bytes()))
        lock = checkpoint.locked(out) if resources.is_first() else nullcontext()
        with lock, resources.reported_faults(out / STATE, recipe.batch):
            if recipe.threads is not None:
                torch.set_num_threads(recipe.threads)
            # 2. Fill the caches, by the first process: the shards and the teacher's logits. Write run.json.
            run, tokenization = resources.on_first_process(lambda: prepare(request, run, sources, held_out_sources))
            # 3. Load the rows from the caches, in every process.
            multiple = request.micro_batch * resources.process_count() if resources.process_count() > 1 else 1
            rows, held_out_rows = load_data(
                sources, held_out_sources, tokenization, recipe, length=request.length, multiple=multiple
            )
            if request.teacher:
                rows.logits = Logits(request.teacher.sha256, run, rows, request.length)
            # 4. Run the training loop, and write the checkpoint.
            started = time.perf_counter()
            trainer = fit(request, tokenization, rows, held_out_rows)
            record = record_of(trainer, run, rows, held_out_rows, time.perf_counter() - started)
            if resources.is_first():
                write_checkpoint(trainer.model, request, tokenization, record)
            return record


def check_and_describe(
    request: Request, sources: list[DataSource], held_out: list[DataSource]
) -> tuple[list[DataSource], list[DataSource], Run]:
    """Return the sources, hashed, and the description of the run, with a tokenizer only if one is given. Raises
    MerinoError for options that do not go together, or that this machine does not have."""
    arch, recipe, pretrained, teacher = request.arch, request.recipe, request.pretrained, request.teacher
    divided, compiler = resources.process_count() * recipe.accumulate, os.environ.get("CXX", "g++")
    width = max(layer.width for layer in arch.layer_shapes)
    if recipe.lora > width:
        raise MerinoError(f"--lora {recipe.lora} is more than the model's width, {width}: give less, such as 16")
    if recipe.compile and not torch.cuda.is_available() and not shutil.which(compiler):
        raise MerinoError(
            f"--set compile=true needs a C++ compiler, and there is no {compiler}: install one (on Debian by"
            " apt install g++), or leave it out"
        )
    if request.length > arch.context:
        raise MerinoError(f"--set length={recipe.length} is more than the model's context, {arch.context}: give less")
    if recipe.batch % divided:
        of = f"{resources.process_count()} processes and " if resources.process_count() > 1 else ""
        raise MerinoError(
            f"--batch {recipe.batch} is not a multiple of {divided}, by {of}--set accumulate={recipe.accumulate}: give"
            f" --batch {-(-recipe.batch // divided) * divided}"
        )
    if not is_finished(request.out):
        trained = pretrained.model.num_parameters() if pretrained else None
        if pretrained and recipe.lora:
            matrices = (weight for weight in pretrained.model.parameters() if weight.ndim > 1)
            trained = recipe.lora * sum(sum(matrix.shape) for matrix in matrices)
        request.say(resources.check_memory(arch, recipe, trained=trained, rows=request.micro_batch))
    run = Run(
        name=request.name, family=family_of(arch).name, architecture=arch.model_dump(mode="json"), recipe=recipe,
        data=[source.file for source in sources], held_out=[source.file for source in held_out],
        tokenizer_sha256=tokenizer_hash(load_tokenizer(request.tokenizer)) if request.tokenizer else "",
        weights_sha256=weights_hash(pretrained.model) if pretrained else "",
        teacher_sha256=teacher.sha256 if teacher else "",
    )  # fmt: skip
    return sources, held_out, run


def prepare(
    request: Request, run: Run, sources: Sequence[DataSource], held_out: Sequence[DataSource]
) -> tuple[Run, Tokenization]:
    """Make the tokenizer, the cached shards and the teacher's cached logits of a run, and write its description. To
    resume a run, read its tokenizer and compare its description instead."""
    out, pretrained, teacher, say = request.out, request.pretrained, request.teacher, request.say
    checkpoint.check_folder(out, request.resume)  # under the lock
    if request.resume:
        kept = checkpoint.read_run(out)
        checkpoint.check_same(kept, run, out)
        run, tokenizer, chat = kept, load_tokenizer(kept.tokenizer), kept.chat
        shutil.rmtree(out / STATE / checkpoint.SAVING, ignore_errors=True)  # of a process that was killed
    else:
        shutil.rmtree(out / STATE, ignore_errors=True)  # of a run that was stopped before it saved a state
        given, vocab = request.tokenizer, request.arch.vocab
        if given:
            tokenizer, folder = load_tokenizer(given), request.tokenizer_file and request.tokenizer_file.parent
            chat = pretrained.chat if pretrained else read_chat_template(folder) if folder else None
        else:
            chat = chat_template(sources)
            say(f"training a BPE of {vocab:,} entries{', with the tokens of ChatML' if chat else ''}")
            tokenizer = train_tokenizer(text_of(sources, chat), vocab, special=CHATML_MARKS if chat else ())
        check_fits(tokenizer, vocab)
        made = {"tokenizer": tokenizer.to_str(), "tokenizer_sha256": tokenizer_hash(tokenizer), "chat": chat}
        run = run.model_copy(update=made)
    tokenization = Tokenization(tokenizer, chat, next(iter(pretrained.stop_ids), None) if pretrained else None)
    rows, _ = load_data(sources, held_out, tokenization, request.recipe, length=request.length, say=say)
    if teacher:
        keep_logits(teacher, Logits(teacher.sha256, run, rows, request.length), tokenizer, rows, say)
    if not request.resume:
        write_text(out / STATE / RUN, run.model_dump_json(indent=1) + "\n")
    return run, tokenization


def fit(request: Request, tokenization: Tokenization, rows: RowDataset, held_out: RowDataset) -> CheckedTrainer:
    """Return the trainer after the last step. Raises KeyboardInterrupt after a signal."""
    recipe, folder, say, end = request.recipe, request.out / STATE, request.say, end_id(tokenization.tokenizer)
    given: Any = request.pretrained and request.pretrained.model
    state = checkpoint.saved_states(folder)[0] if request.resume else None
    if state:
        say(f"resuming from {state.name}")
    set_seed(recipe.seed)
    model: Any = given or build_model(request.arch, bos_token_id=end, eos_token_id=end, pad_token_id=end)
    if given is None:
        model.initialize_matrices()
    if rank := recipe.lora:
        peft = import_extra("peft")  # a scale of 2 at every rank, so that one learning rate suits all ranks
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, config)
    if resources.uses_eager_attention(recipe, request.arch):
        model.set_attn_implementation("eager")
    model.config.use_cache = False  # with a cache, transformers lets the samples of a row attend to each other
    trainer = CheckedTrainer(
        recipe, end or 0, by_width=given is None, model=model,
        args=loop.training_arguments(recipe, folder, request.micro_batch),
        train_dataset=rows, eval_dataset=held_out,
    )  # fmt: skip
    passes = recipe.steps * recipe.batch / len(rows.rows)
    say(f"{recipe.steps:,} steps on {rows.tokens:,} tokens, {passes:.2g} passes over the data; ctrl-C saves,"
        " --resume continues")  # fmt: skip
    with loop.stop_on_signal() as stop:
        sample = partial(loop.written_sample, tokenization=tokenization, held_out=held_out)
        watch = loop.RunCallback(stop, recipe, say, request.progress, sample)
        trainer.remove_callback(PrinterCallback)  # it prints to stdout
        trainer.add_callback(watch)
        trainer.train(resume_from_checkpoint=str(state) if state else None)
    if trainer.state.global_step < recipe.steps and not watch.ended_early:
        say(f"stopped and saved at step {trainer.state.global_step}: continue with the same command and --resume")
        raise KeyboardInterrupt
    return trainer


def record_of(
    trainer: CheckedTrainer, run: Run, rows: RowDataset, held_out: RowDataset, seconds: float
) -> dict[str, Any]:
    state = trainer.state
    last = [entry for entry in state.log_history if entry["step"] == state.global_step and "eval_loss" in entry]
    # With patience the model has the weights of its best step, so it is evaluated again.
    loss = float((last[-1] if last and not trainer.recipe.patience else trainer.evaluate())["eval_loss"])
    return {
        "schema": checkpoint.SCHEMA, **run.model_dump(mode="json", exclude=checkpoint.UNFINISHED),
        "train_tokens": rows.tokens, "steps_taken": state.global_step, "seen_tokens": state.num_input_tokens_seen,
        "held_out_tokens": held_out.tokens * int((held_out.order >= 0).sum()) // len(held_out.rows),
        "held_out_loss": loss, "held_out_perplexity": math.exp(loss), "seconds_of_last_run": round(seconds, 1),
        "losses": [entry for entry in state.log_history if "loss" in entry or "eval_loss" in entry],
    }  # fmt: skip


def write_checkpoint(model: Any, request: Request, tokenization: Tokenization, record: dict[str, Any]) -> None:
    """Write the finished model into the output folder, its record last."""
    pretrained, tokenizer, chat = request.pretrained, tokenization.tokenizer, tokenization.chat
    with scratch_folder(request.out / STATE / "finished") as folder:
        if request.recipe.lora:
            model.save_pretrained(folder / ADAPTER)
            model = model.merge_and_unload()
        model.config.use_cache = True
        end, stops = end_id(tokenizer), tokenization.stops(pretrained.stop_ids if pretrained else ())
        if stops:
            model.generation_config.eos_token_id = stops if len(stops) > 1 or pretrained else stops[0]
        save_model(model, folder)
        special = {} if end is None else dict.fromkeys(SPECIAL, tokenizer.id_to_token(end))
        saved = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**special, **(chat.tokens if chat else {})})
        saved.chat_template = chat.text if chat else None
        saved.save_pretrained(folder)
        if request.design is not None:  # export reads its weight format and thread counts
            write_text(folder / DESIGN, request.design.to_json())
        for path in folder.iterdir():
            path.replace(request.out / path.name)
    write_text(request.out / checkpoint.RECORD, json.dumps(record, indent=1) + "\n")
