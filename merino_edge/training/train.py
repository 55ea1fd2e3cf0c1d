"""design.json and text to a checkpoint in Hugging Face's layout, by transformers' Trainer."""

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast, set_seed

from merino_edge.design.design_file import DESIGN, Design
from merino_edge.families.checkpoint import ChatTemplate, read_chat_template
from merino_edge.families.designed import Architecture
from merino_edge.families.hugging_face import build_model, save_model
from merino_edge.storage.atomic import write_text
from merino_edge.text.tokenizer import check_fits, end_id, load_tokenizer, tokenizer_hash, train_tokenizer
from merino_edge.training.data.material import RunRows, Sources, bpe_text, run_rows
from merino_edge.training.data.shards import Reading
from merino_edge.training.data.sources import data_sources, file_of
from merino_edge.training.loop import (
    CheckedTrainer,
    Progress,
    Watch,
    add_watch,
    shrink_branches,
    stop_on_ctrl_c,
    training_arguments,
)
from merino_edge.training.needs import check_disk, check_memory, disk_told, memory_told
from merino_edge.training.recipe import Recipe
from merino_edge.training.run_folder import (
    CHAT,
    ELSEWHERE,
    RECORD,
    RUN,
    STATE,
    TOKENIZER,
    Run,
    check_out,
    check_same,
    clear_begun,
    is_finished,
    kept_run,
    locked,
    newest_whole_state,
    put_files,
)
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json

SCHEMA = 3  # of training.json


class Material(NamedTuple):
    """What a run is, and the tokens that it trains on and is judged by."""

    run: Run
    reading: Reading
    data: RunRows

    @property
    def tokenizer(self) -> Tokenizer:
        return self.reading.tokenizer


def silent(*_: Any) -> None:
    pass


def train(
    arch: Architecture,
    data: Sequence[str | Path],
    out: Path,
    *,
    recipe: Recipe,
    name: str = "model",
    design: Design | None = None,
    tokenizer_file: Path | None = None,
    held_out: Sequence[str | Path] = (),
    resume: bool = False,
    threads: int | None = None,
    ignore_memory: bool = False,
    say: Callable[[str], None] = silent,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train, write the checkpoint into `out`, and return the record of the run. A finished run stays as it is.

    `data`, `held_out`: as `data_source` takes them; without `held_out` the last of each of `data` are held out.
    `name`: what the model is called. `design`: written beside the weights. `resume`: go on from the last whole saved
    state in `out`. `say` takes lines for people.

    Raises MerinoError where `out` is in use or holds another run, for text or a tokenizer that does not do, where
    memory or disk do not suffice, and where the loss is not finite. Raises KeyboardInterrupt after ctrl-C.
    """
    if not is_finished(out):
        check_out(out, resume)
        say(check_memory(arch, recipe, ignore=ignore_memory))
        check_disk(arch, out, resume)
    sources = read(data, held_out)
    run = Run(
        name=name, architecture=arch, recipe=recipe, data=sources.data_files, held_out=sources.held_out_files,
        tokenizer_sha256=tokenizer_hash(load_tokenizer(tokenizer_file)) if tokenizer_file else "",
    )  # fmt: skip
    if is_finished(out):
        return finished_record(out, run, say)
    with locked(out), disk_told(out / STATE), memory_told(arch, recipe):
        check_out(out, resume)  # again: now no other process can change it
        if resume:
            material = resumed(out, run, sources, say)
        else:
            clear_begun(out)
            material = begun(out, run, sources, tokenizer_file, say)
        if threads is not None:
            torch.set_num_threads(threads)
        trainer, seconds = fit(material, out, resume, say, progress)
        return write_checkpoint(trainer, material, out, design, seconds)


def read(data: Sequence[str | Path], held_out: Sequence[str | Path]) -> Sources:
    sources, others = data_sources(data), data_sources(held_out, "--held-out")
    return Sources(sources, list(map(file_of, sources)), others, list(map(file_of, others)))


def finished_record(out: Path, run: Run, say: Callable[[str], None]) -> dict[str, Any]:
    kept = kept_run(out)
    assert kept is not None
    check_same(kept, run, out)
    say(f"this run is finished: nothing in {out} is changed")
    return json.loads((out / RECORD).read_bytes())


def begun(
    out: Path, run: Run, sources: Sources, tokenizer_file: Path | None, say: Callable[[str], None]
) -> Material:
    """A new run. Its tokenizer and what it is are written down before it begins."""
    vocab, chat = run.architecture.vocab, None
    if tokenizer_file is None:
        tokenizer = train_tokenizer(bpe_text(sources, vocab, say), vocab)
    else:
        tokenizer, chat = load_tokenizer(tokenizer_file), read_chat_template(tokenizer_file.parent)
    check_fits(tokenizer, vocab)
    run = run.model_copy(update={"tokenizer_sha256": tokenizer_hash(tokenizer)})
    material = pack(run, sources, Reading(tokenizer, chat), say)
    if chat:
        write_text(out / STATE / CHAT, json.dumps(chat._asdict(), indent=1) + "\n")
    write_text(out / STATE / TOKENIZER, tokenizer.to_str())
    write_text(out / STATE / RUN, run.model_dump_json(indent=1) + "\n")
    return material


def resumed(out: Path, run: Run, sources: Sources, say: Callable[[str], None]) -> Material:
    """The run in `out`, with its tokenizer. Raises MerinoError where `run` is another one."""
    kept = kept_run(out)
    if kept is None:
        raise MerinoError(f"{out / STATE} has no {RUN}, so it is not known how the run began. {ELSEWHERE}")
    check_same(kept, run, out)
    tokenizer = load_tokenizer(out / STATE / TOKENIZER)
    if tokenizer_hash(tokenizer) != kept.tokenizer_sha256:
        raise MerinoError(f"{out / STATE / TOKENIZER} is no longer the run's tokenizer. {ELSEWHERE}")
    path = out / STATE / CHAT
    chat = ChatTemplate(**read_json(str(path), ELSEWHERE)) if path.is_file() else None
    return pack(kept, sources, Reading(tokenizer, chat), say)


def pack(run: Run, sources: Sources, reading: Reading, say: Callable[[str], None]) -> Material:
    length = run.recipe.length or run.architecture.context
    return Material(run, reading, run_rows(sources, reading, run.recipe, length, say))


def fit(
    material: Material, out: Path, resume: bool, say: Callable[[str], None], progress: Progress
) -> tuple[CheckedTrainer, float]:
    """(the trainer after the last step, seconds of this process's steps). Raises KeyboardInterrupt after ctrl-C."""
    run, folder = material.run, out / STATE
    state = None
    if resume:
        state, faults = newest_whole_state(folder)
        for fault in faults:
            say(f"{fault}: removed")
        say(f"going on from {state.name}")
    set_seed(run.recipe.seed)
    end = end_id(material.tokenizer)
    model = build_model(run.architecture, bos_token_id=end, eos_token_id=end, pad_token_id=end)
    shrink_branches(model)
    trainer = CheckedTrainer(
        model=model,
        args=training_arguments(run.recipe, folder),
        train_dataset=material.data.rows,
        eval_dataset=material.data.held_out,
    )
    say(f"{run.recipe.steps:,} steps on {material.data.tokens:,} tokens; ctrl-C saves, --resume goes on")
    with stop_on_ctrl_c() as stop:
        add_watch(trainer, Watch(folder, stop, say, progress))
        started = time.perf_counter()
        trainer.train(resume_from_checkpoint=str(state) if state else None)
    if trainer.state.global_step < run.recipe.steps:
        say(f"stopped and saved at step {trainer.state.global_step}: go on with the same command and --resume")
        raise KeyboardInterrupt
    return trainer, time.perf_counter() - started


def write_checkpoint(
    trainer: CheckedTrainer, material: Material, out: Path, design: Design | None, seconds: float
) -> dict[str, Any]:
    """The finished model in `out`, its record last."""
    run = material.run
    loss = float(trainer.evaluate()["eval_loss"])
    record = {
        "schema": SCHEMA,
        **run.model_dump(mode="json"),
        "train_tokens": material.data.tokens,
        "seen_tokens": trainer.state.num_input_tokens_seen,
        "held_out_tokens": material.data.held_out_tokens,
        "held_out_loss": loss,
        "held_out_perplexity": math.exp(loss),
        "seconds_of_last_run": round(seconds, 1),
        "losses": [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry],
    }
    assert isinstance(trainer.model, PreTrainedModel)
    special: dict[str, str | None] = {}
    end = end_id(material.tokenizer)
    if end is not None:
        special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), material.tokenizer.id_to_token(end))
    special |= material.reading.chat.tokens if material.reading.chat else {}
    with put_files(out) as beside:
        save_model(trainer.model, beside)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=material.tokenizer, **special)
        if material.reading.chat:
            tokenizer.chat_template = material.reading.chat.text
        tokenizer.save_pretrained(beside)
        if design is not None:  # export asks it for the weight format and the threads
            write_text(beside / DESIGN, design.to_json())
    write_text(out / RECORD, json.dumps(record, indent=1) + "\n")
    return record
