"""The material of a run, made once and written down: its tokenizer, its tokens, a teacher's logits; read again by each
process, and when the run is resumed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from merino_edge.families.checkpoint import ChatTemplate, read_chat_template
from merino_edge.families.geometry import Geometry
from merino_edge.families.hugging_face import weights_hash
from merino_edge.families.registry import family_of
from merino_edge.storage.atomic import write_text
from merino_edge.text.tokenizer import check_fits, load_tokenizer, tokenizer_hash, train_tokenizer
from merino_edge.training import processes
from merino_edge.training.data.material import RunRows, Sources, bpe_text, run_rows
from merino_edge.training.data.shards import Reading, Say
from merino_edge.training.data.sources import data_sources, file_of
from merino_edge.training.pretrained import Pretrained
from merino_edge.training.recipe import Recipe
from merino_edge.training.run_folder import (
    CHAT,
    ELSEWHERE,
    RUN,
    STATE,
    TOKENIZER,
    Run,
    check_out,
    check_same,
    clear_begun,
    kept_run,
)
from merino_edge.training.teacher import TaughtRows, Teacher, keep_logits, logits_of
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json


class Begins(NamedTuple):
    """The start of a run."""

    name: str
    arch: Geometry
    recipe: Recipe
    pretrained: Pretrained | None
    tokenizer_file: Path | None
    teacher: Teacher | None


class Material(NamedTuple):
    """A run's description, and the tokens for training and evaluation."""

    run: Run
    reading: Reading
    data: RunRows
    pretrained: Pretrained | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        return self.reading.tokenizer


def run_of(begins: Begins, sources: Sources) -> Run:
    pretrained = begins.pretrained
    given = pretrained.tokenizer if pretrained else begins.tokenizer_file
    return Run(
        name=begins.name, family=family_of(begins.arch).name, architecture=begins.arch, recipe=begins.recipe,
        data=sources.data_files, held_out=sources.held_out_files,
        tokenizer_sha256=tokenizer_hash(load_tokenizer(given)) if given else "",
        weights_sha256=weights_hash(pretrained.model) if pretrained else "",
        teacher_sha256=begins.teacher.sha256 if begins.teacher else "",
    )  # fmt: skip


def read(data: Sequence[str | Path], held_out: Sequence[str | Path]) -> Sources:
    sources, others = data_sources(data), data_sources(held_out, "--held-out")
    return Sources(sources, list(map(file_of, sources)), others, list(map(file_of, others)))


def prepare(out: Path, run: Run, sources: Sources, begins: Begins, resume: bool, say: Say) -> None:
    """A new run's tokenizer and description, written into `out` when its tokens are made. When a run is resumed, they
    are checked."""
    check_out(out, resume)  # again: now no other process can change it
    if resume:
        kept, reading = kept_reading(out, begins.pretrained)
        check_same(kept, run, out)
        run_teacher(begins, kept, reading, tokens(kept, sources, reading, say), say)
        return
    clear_begun(out)
    reading = reading_of(begins, sources, say)
    check_fits(reading.tokenizer, run.architecture.vocab)
    run = run.model_copy(update={"tokenizer_sha256": tokenizer_hash(reading.tokenizer)})
    run_teacher(begins, run, reading, tokens(run, sources, reading, say), say)
    if reading.chat:
        chat = {**reading.chat._asdict(), "source": "the chat template"}
        write_text(out / STATE / CHAT, json.dumps(chat, indent=1) + "\n")
    write_text(out / STATE / TOKENIZER, reading.tokenizer.to_str())
    write_text(out / STATE / RUN, run.model_dump_json(indent=1) + "\n")


def run_teacher(begins: Begins, run: Run, reading: Reading, rows: RunRows, say: Say) -> None:
    if begins.teacher:
        keep_logits(begins.teacher, run, reading.tokenizer, rows.rows, say)


def reading_of(begins: Begins, sources: Sources, say: Say) -> Reading:
    if begins.pretrained:
        return own_reading(begins.pretrained, load_tokenizer(begins.pretrained.tokenizer), begins.pretrained.chat)
    if begins.tokenizer_file:
        return Reading(load_tokenizer(begins.tokenizer_file), read_chat_template(begins.tokenizer_file.parent))
    vocab = begins.arch.vocab
    return Reading(train_tokenizer(bpe_text(sources, vocab, say), vocab))


def own_reading(pretrained: Pretrained | None, tokenizer: Tokenizer, chat: ChatTemplate | None) -> Reading:
    return Reading(tokenizer, chat, pretrained.stop_ids[0] if pretrained and pretrained.stop_ids else None)


def kept_reading(out: Path, pretrained: Pretrained | None) -> tuple[Run, Reading]:
    """(the run in `out`, its tokenizer and chat template). Raises MerinoError where they are not whole."""
    kept = kept_run(out)
    if kept is None:
        raise MerinoError(f"{out / STATE} has no {RUN}, so it is not known how the run began. {ELSEWHERE}")
    tokenizer = load_tokenizer(out / STATE / TOKENIZER)
    if tokenizer_hash(tokenizer) != kept.tokenizer_sha256:
        raise MerinoError(f"{out / STATE / TOKENIZER} is no longer the run's tokenizer. {ELSEWHERE}")
    path = out / STATE / CHAT
    chat = ChatTemplate(**read_json(str(path), ELSEWHERE)) if path.is_file() else None
    return kept, own_reading(pretrained, tokenizer, chat)


def tokens(run: Run, sources: Sources, reading: Reading, say: Say, **keys: Any) -> RunRows:
    length = run.recipe.length or run.architecture.context
    return run_rows(sources, reading, run.recipe, length, say, **keys)


def load(out: Path, sources: Sources, pretrained: Pretrained | None, rows: int) -> Material:
    """The material that `prepare` has written and made. `rows`: those that a process computes at once."""
    run, reading = kept_reading(out, pretrained)
    multiple = rows * processes.count() if processes.count() > 1 else 1
    data = tokens(run, sources, reading, lambda _: None, multiple=multiple, verify=False)
    if run.teacher_sha256:
        data = data._replace(rows=TaughtRows(data.rows, logits_of(run.teacher_sha256, run, data.rows)))
    return Material(run, reading, data, pretrained)
