"""Distillation: a teacher's TOP likeliest tokens and their logits at every position of the training rows.

They are kept in a file of the cache, one record per row, so the teacher runs once: later runs on the same rows read
them, and after a kill the rows that are missing are computed.
"""

import hashlib
import json
import os
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from tokenizers import Tokenizer

from merino_edge.families.hugging_face import Checkpoint
from merino_edge.storage.atomic import cache_folder
from merino_edge.text.tokenizer import load_tokenizer
from merino_edge.training.checkpoint import Run
from merino_edge.training.dataset import RowDataset
from merino_edge.training.shards import TYPES, Say, check_owner
from merino_runtime.errors import MerinoError, machine_fault

FORMAT = 3
TOP = 16
BATCH_TOKENS = 4096  # of one forward pass of the teacher


class Teacher(NamedTuple):
    """`sha256`: of its files. `load` reads its weights, which are not needed if all logits are kept."""

    name: str
    sha256: str
    load: Callable[[], Checkpoint]


class Logits:
    """A teacher's logits for all rows of a dataset's groups, in order. `record`: the type of a row in the file."""

    def __init__(self, teacher_sha256: str, run: Run, rows: RowDataset, length: int):
        self.vocab, self.length, self.rows = int(run.architecture["vocab"]), length, len(rows.rows)
        facts = [
            FORMAT, TOP, teacher_sha256, run.tokenizer_sha256, [file.sha256 for file in run.data],
            rows.rows.cumulative_sizes, bool(run.held_out), length, run.recipe.cut_long,
        ]  # fmt: skip
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
        self.path = cache_folder() / "teachers" / f"{key}.bin"
        self.record = np.dtype([("ids", TYPES[self.vocab > 1 << 16], (length, TOP)), ("logits", "<f2", (length, TOP))])

    def stored_rows(self) -> int:
        """Return the number of whole rows in the file."""
        return self.path.stat().st_size // self.record.itemsize if self.path.is_file() else 0

    @cached_property
    def mapped(self) -> np.ndarray:
        return np.memmap(self.path, self.record, "r", shape=self.rows)

    def row(self, index: int) -> dict[str, torch.Tensor]:
        row = self.mapped[index]
        return {
            "teacher_ids": torch.from_numpy(row["ids"].astype(np.int64)),
            "teacher_logits": torch.from_numpy(row["logits"].astype(np.float32)),
        }


@torch.no_grad()
def keep_logits(teacher: Teacher, logits: Logits, tokenizer: Tokenizer, rows: RowDataset, say: Say) -> None:
    """Compute the missing logits. Raises MerinoError if the teacher does not fit the run, and if the disk is full."""
    folder = logits.path.parent
    check_owner(folder, logits.path)
    if logits.stored_rows() == logits.rows:
        say(f"the logits of {teacher.name} are kept in {logits.path}: it does not run again")
        return
    # 1. The teacher.
    if len(rows) < logits.rows:
        say(f"the run takes {len(rows):,} of {logits.rows:,} rows, but {teacher.name} reads all: give less --data")
    loaded, name = teacher.load(), teacher.name
    if loaded.tokenizer is None:
        raise MerinoError(f"the teacher {name} has no tokenizer, which must be the run's: give another --teacher")
    if load_tokenizer(loaded.tokenizer).get_vocab() != tokenizer.get_vocab():
        raise MerinoError(
            f"the teacher {name} has another tokenizer than the run, so its logits are of other tokens. Give its"
            " tokenizer.json as --tokenizer, and design with its --vocab; or let it write text and train on that:"
            " `merino-edge export` it, then `merino-edge generate BUNDLE PROMPT --temperature 1`, many times"
        )
    if loaded.geometry.context < logits.length:
        raise MerinoError(
            f"the teacher {name} reads {loaded.geometry.context} tokens, and a row has {logits.length}: give --set"
            f" length={loaded.geometry.context}"
        )
    say(f"{teacher.name} reads {logits.rows:,} rows, once; its {TOP} likeliest tokens are kept in {logits.path}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = loaded.model.to(device).eval()
    # 2. Its logits, appended batch by batch to the rows that are there.
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(f"{logits.path}.lock"), logits.path.open("ab") as file:
            os.truncate(file.fileno(), logits.stored_rows() * logits.record.itemsize)
            start, batch = logits.stored_rows(), max(1, BATCH_TOKENS // logits.length)
            for first in range(start, logits.rows, batch):
                if (first - start) * 10 // logits.rows != (first - start - batch) * 10 // logits.rows:
                    say(f"{teacher.name}: {100 * first // logits.rows} % read")
                inputs = [rows.inputs(number) for number in range(first, min(first + batch, logits.rows))]
                given = {key: torch.stack([row[key] for row in inputs]).to(device) for key in inputs[0]}
                del given["labels"]
                top = model(**given, use_cache=False).logits[..., : logits.vocab].float().topk(TOP)
                records = np.empty(len(inputs), logits.record)
                records["ids"], records["logits"] = top.indices.cpu().numpy(), top.values.cpu().numpy()
                file.write(records.tobytes())
    except OSError as error:
        raise MerinoError(
            f"the teacher's logits cannot be kept: {machine_fault(f'write {logits.path}', error)} They are kept in"
            f" {folder}, which may be emptied; set XDG_CACHE_HOME to a folder on another disk"
        ) from None


def distillation_loss(
    logits: torch.Tensor, labels: torch.Tensor, teacher_ids: torch.Tensor, teacher_logits: torch.Tensor,
    temperature: float,
) -> torch.Tensor:  # fmt: skip
    """Return the sum over the learned tokens of the cross-entropy to the teacher, whose TOP tokens share all of its
    probability. Both are taken at the temperature, and the sum is multiplied by its square, because the gradient falls
    with it (Hinton et al. 2015).

    logits [B, T, V], labels [B, T], the teacher's [B, T, TOP]; position t predicts label t + 1.
    """
    student = (logits[:, :-1].float() / temperature).log_softmax(-1).gather(-1, teacher_ids[:, :-1])
    target = (teacher_logits[:, :-1] / temperature).softmax(-1)
    losses = -(target * student).sum(-1) * temperature**2
    return (losses * (labels[:, 1:] >= 0)).sum()
