"""Distillation: the likeliest TOP tokens of a teacher and their logits at each place of the training rows, in a folder
of the cache. The teacher runs once; logits that are there, also those of a run that was killed, are not computed again.

A file holds CHUNK_BYTES of rows: their ids [rows, length, TOP], in 2 bytes where they fit, then the logits in float16.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer

from merino_edge.families.geometry import Geometry
from merino_edge.storage.atomic import cache_folder, existing_parent, parents_made
from merino_edge.text.tokenizer import load_tokenizer
from merino_edge.training.data.rows import Joined, Mixture, tensors
from merino_edge.training.data.shards import dtype_of
from merino_edge.training.run_folder import Run
from merino_runtime.errors import MerinoError
from merino_runtime.io.outputs import open_output

FORMAT = 1
TOP = 16
CHUNK_BYTES = 16 << 20
BATCH_TOKENS = 4096  # that the teacher reads at once
Say = Callable[[str], None]


class TaughtModel(NamedTuple):
    """`tokenizer`: tokenizer.json, or the text of one."""

    geometry: Geometry
    model: Any
    tokenizer: Path | str | None


class Teacher(NamedTuple):
    """`sha256`: of its files. `load`: reads its weights, which a run whose logits are kept does not need."""

    name: str
    sha256: str
    load: Callable[[], TaughtModel]


class Logits:
    """The logits of all rows of the groups, in order; memory-mapped."""

    def __init__(self, folder: Path, rows: int, length: int, dtype: str):
        self.folder, self.rows, self.length, self.dtype = folder, rows, length, np.dtype(dtype)
        self.row_bytes = length * TOP * (self.dtype.itemsize + 2)
        self.chunk = max(1, CHUNK_BYTES // self.row_bytes)
        self.mapped = lru_cache(maxsize=64)(self.map)

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.bin"

    def rows_of(self, number: int) -> range:
        return range(number * self.chunk, min(self.rows, (number + 1) * self.chunk))

    @cached_property
    def chunks(self) -> int:
        return -(-self.rows // self.chunk)

    def missing(self) -> list[int]:
        """Chunks that are not there, or not whole."""
        sizes = [path.stat().st_size if path.is_file() else -1 for path in map(self.path, range(self.chunks))]
        return [number for number, size in enumerate(sizes) if size != len(self.rows_of(number)) * self.row_bytes]

    def map(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        shape = len(self.rows_of(number)), self.length, TOP
        ids = np.memmap(self.path(number), self.dtype, "r", 0, shape)
        return ids, np.memmap(self.path(number), np.float16, "r", ids.nbytes, shape)

    def row(self, index: int) -> dict[str, torch.Tensor]:
        number, place = divmod(index, self.chunk)
        ids, logits = self.mapped(number)
        return {
            "teacher_ids": torch.from_numpy(ids[place].astype(np.int64)),
            "teacher_logits": torch.from_numpy(logits[place].astype(np.float32)),
        }


class TaughtRows(Mixture):
    """The rows of a mixture, each with the teacher's logits."""

    def __init__(self, rows: Mixture, logits: Logits):
        self.__dict__.update(rows.__dict__)
        self.logits = logits
        self.begins = [0, *accumulate(map(len, rows.groups))]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        group, row = self.drawn(index)
        return tensors(self.groups[group].row(row), self.apart) | self.logits.row(self.begins[group] + row)


def logits_of(teacher_sha256: str, run: Run, rows: Mixture) -> Logits:
    """The logits' place in the cache, by the rows and the teacher's hash, whether they are there or not."""
    length = run.recipe.length or run.architecture.context
    facts = [
        FORMAT, TOP, teacher_sha256, run.tokenizer_sha256, [file.sha256 for file in run.data],
        len(rows.groups), list(map(len, rows.groups)), bool(run.held_out), length, run.recipe.cut_long,
    ]  # fmt: skip
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    dtype = dtype_of(run.architecture.vocab)
    return Logits(cache_folder() / "teachers" / key, sum(map(len, rows.groups)), length, dtype)


def keep_logits(teacher: Teacher, run: Run, tokenizer: Tokenizer, rows: Mixture, say: Say) -> None:
    """Compute the missing logits. Raises MerinoError for a teacher that does not fit the run, and where the disk is
    full."""
    logits = logits_of(teacher.sha256, run, rows)
    missing = logits.missing()
    if not missing:
        say(f"the logits of {teacher.name} are kept in {logits.folder}: it does not run again")
        return
    if len(rows) < logits.rows:
        say(
            f"note: the run takes {len(rows):,} of {logits.rows:,} rows, and {teacher.name} reads all: give less --data"
        )
    check_room(logits, len(missing))
    loaded = teacher.load()
    check_teacher(teacher.name, loaded, tokenizer, logits.length)
    say(f"{teacher.name} reads {logits.rows:,} rows, once; its {TOP} likeliest tokens are kept in {logits.folder}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = loaded.model.to(device).eval()
    for done, number in enumerate(missing):
        if done * 10 // len(missing) != (done - 1) * 10 // len(missing):
            say(f"{teacher.name}: {100 * done // len(missing)} % read")
        ids, values = chunk_of(model, rows, logits, number, run.architecture.vocab, device)
        path = logits.path(number)
        try:
            with parents_made(path), open_output(str(path)) as file:
                file.write(ids.tobytes())
                file.write(values.tobytes())
        except MerinoError as error:
            raise MerinoError(
                f"the teacher's logits cannot be kept: {error} They are kept in {logits.folder.parent}, which may be"
                " emptied; let XDG_CACHE_HOME name another disk"
            ) from None


def check_room(logits: Logits, chunks: int) -> None:
    needed = chunks * logits.chunk * logits.row_bytes if chunks > 1 else logits.rows * logits.row_bytes
    place = existing_parent(logits.folder)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise MerinoError(
            f"the teacher's logits take {needed / 2**20:,.0f} MB in {place}, and {free / 2**20:,.0f} MB are free: free"
            " some, or let XDG_CACHE_HOME name another disk"
        )


def check_teacher(name: str, loaded: TaughtModel, tokenizer: Tokenizer, length: int) -> None:
    if loaded.tokenizer is None:
        raise MerinoError(f"the teacher {name} has no tokenizer, so it is not known whether it is the run's: give"
                          " another --teacher")
    if load_tokenizer(loaded.tokenizer).get_vocab() != tokenizer.get_vocab():
        raise MerinoError(
            f"the teacher {name} has another tokenizer than the run, so its logits are of other tokens. Give its"
            " tokenizer.json as --tokenizer, and design with its --vocab; or let it write text and train on that:"
            " `merino-edge export` it, then `merino-edge generate BUNDLE PROMPT --temperature 1 --seed N` for many N"
        )
    if loaded.geometry.context < length:
        raise MerinoError(
            f"the teacher {name} reads {loaded.geometry.context} tokens, and a row has {length}: give --length"
            f" {loaded.geometry.context}"
        )


@torch.no_grad()
def chunk_of(
    model: Any, rows: Mixture, logits: Logits, number: int, vocab: int, device: str
) -> tuple[np.ndarray, np.ndarray]:
    every = Joined(rows.groups)
    inputs = [tensors(every.row(index), rows.apart) for index in logits.rows_of(number)]
    at_once = max(1, BATCH_TOKENS // logits.length)
    ids, values = [], []
    for begin in range(0, len(inputs), at_once):
        batch = inputs[begin : begin + at_once]
        given = {key: torch.stack([each[key] for each in batch]).to(device) for key in batch[0] if key != "labels"}
        top = model(**given, use_cache=False).logits[..., :vocab].float().topk(TOP)
        ids.append(top.indices.cpu().numpy().astype(logits.dtype))
        values.append(top.values.cpu().numpy().astype(np.float16))
    return np.concatenate(ids), np.concatenate(values)


def taught_loss(
    logits: torch.Tensor, labels: torch.Tensor, teacher_ids: torch.Tensor, teacher_logits: torch.Tensor, heat: float
) -> torch.Tensor:
    """Sum over the learned tokens of the cross-entropy to the teacher, both at temperature `heat`, times heat^2, since
    the gradient falls with 1 / heat^2 (Hinton et al. 2015). The teacher's TOP tokens share all of its probability.

    logits [B, T, V], labels [B, T], the teacher's [B, T, TOP]; row t predicts label t + 1.
    """
    student = (logits[:, :-1].float() / heat).log_softmax(-1).gather(-1, teacher_ids[:, :-1])
    target = (teacher_logits[:, :-1] / heat).softmax(-1)
    losses = -(target * student).sum(-1) * heat**2
    return (losses * (labels[:, 1:] >= 0)).sum()
