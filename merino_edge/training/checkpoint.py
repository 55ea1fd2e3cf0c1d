"""The folder of a training run: its description, its lock, its saved states, and whether it may be resumed.

`OUT/trainer/` has all that an unfinished run needs: `run.json` and the saved states. `OUT` itself is filled
when the run ends; the record `training.json` is written last and marks the run as finished.

Each saved state is whole: it is written in `OUT/trainer/saving/` and then moved (`loop.CheckedTrainer`).
Loads no torch.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from merino_edge.families.checkpoint import RECORD, ChatTemplate
from merino_edge.families.registry import read_geometry
from merino_edge.storage import atomic
from merino_edge.storage.faults import fault_list
from merino_edge.training.recipe import Recipe, option_of
from merino_edge.training.sources import DataFile
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json

SCHEMA = 4  # of training.json
STATE = "trainer"  # the folder in OUT
RUN = "run.json"  # in STATE
UNFINISHED = {"tokenizer", "chat"}  # fields of run.json only
SAVING = "saving"  # in STATE: a state that is being written
FINISHED = {"config.json", "model.safetensors", "tokenizer.json", RECORD}
DIGITS = 12  # of a hash in messages
ELSEWHERE = "Start another run with another -o"


class Run(BaseModel):
    """The description of a run: two runs that differ in any field but `name` give different models.

    `held_out`: empty if the last documents of `data` are held out. `weights_sha256`: of the model that it started from;
    empty for random weights. `teacher_sha256`: empty without a teacher. `tokenizer`, `chat`: in run.json, so that a run
    is resumed without its tokenizer.json.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    family: str
    architecture: dict[str, Any]
    recipe: Recipe
    data: list[DataFile]
    held_out: list[DataFile]
    tokenizer_sha256: str
    weights_sha256: str = ""
    teacher_sha256: str = ""
    tokenizer: str = ""  # the text of its tokenizer.json
    chat: ChatTemplate | None = None

    def options(self) -> dict[str, str]:
        """Return {option: its value in words}. Runs of the same words are the same run."""
        arch, weights = read_geometry(self.family, self.architecture), self.weights_sha256[:DIGITS] or "random"
        digest = sha256(json.dumps([self.family, self.architecture], sort_keys=True).encode()).hexdigest()[:DIGITS]
        files = {"--data": self.data, "--held-out": self.held_out}
        hashes = {"--teacher": self.teacher_sha256, "--tokenizer": self.tokenizer_sha256}
        return {
            "SOURCE": f"{arch.shape()}, vocabulary {arch.vocab}, context {arch.context} ({digest}), weights {weights}",
            **{option: ", ".join(map(str, listed)) or "not given" for option, listed in files.items()},
            **{option: known[:DIGITS] or "none" for option, known in hashes.items()},
            **{option_of(name): str(value) for name, value in self.recipe.model_dump().items()},
        }


def check_same(kept: Run, requested: Run, out: Path) -> None:
    """Raises MerinoError if the run in `out` is not the requested one. A tokenizer need not be given again."""
    there, optional = kept.options(), ("--tokenizer", "none")
    differing = [f"{option} is {value}; the run's is {there[option]}" for option, value in requested.options().items()
                 if value != there[option] and (option, value) != optional]  # fmt: skip
    if differing:
        raise MerinoError(
            f"{out} holds another run: {'; '.join(differing)}. A run continues as it started: give the run's own"
            " values, or start another run with another -o"
        )


def read_run(out: Path) -> Run:
    """Return the run in `out`, finished or not. Raises MerinoError for a missing or damaged file."""
    path = out / RECORD if is_finished(out) else out / STATE / RUN
    if not path.is_file():
        raise MerinoError(f"{path.parent} has no {RUN}, so it is not known how the run started. {ELSEWHERE}")
    try:
        return Run.model_validate(read_json(str(path), f"{ELSEWHERE}."))
    except ValidationError as error:
        raise MerinoError(f"{path} is not of this version of merino-edge: {fault_list(error)}. {ELSEWHERE}") from error


def is_finished(out: Path) -> bool:
    return all((out / name).is_file() for name in FINISHED)


def check_folder(out: Path, resume: bool) -> None:
    """Raises MerinoError if `out` holds no state to resume from, or more than a new run may replace: the files of a run
    that was stopped before it saved a state."""
    states = saved_states(out / STATE)
    if resume and not states:
        raise MerinoError(f"{out} holds no run to resume: leave out --resume to start one")
    if not resume and states:
        raise MerinoError(f"{out} holds an unfinished run: continue with --resume, or choose another -o")
    if not resume:
        atomic.check_folder(out, lambda _: [path.name for path in out.iterdir()] == [STATE])


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the run's lock in the cache, which the kernel releases however the process ends. Raises MerinoError if
    another process holds it."""
    folder = atomic.cache_folder() / "locks"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with FileLock(folder / sha256(str(out.resolve()).encode()).hexdigest(), timeout=0):
            yield
    except Timeout as error:
        raise MerinoError(f"another `train` is running in {out}: wait until it ends, or choose another -o") from error


def saved_states(folder: Path) -> list[Path]:
    """Return the folders `checkpoint-STEP` of transformers' Trainer, the newest first."""
    return sorted(folder.glob("checkpoint-[0-9]*"), key=step_of, reverse=True)


def step_of(state: Path) -> int:
    return int(state.name.removeprefix("checkpoint-"))
