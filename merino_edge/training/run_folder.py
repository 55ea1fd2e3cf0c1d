"""The folder of a training run: its description, its lock, its saved states, and whether it may be resumed. Loads no
torch.

`OUT/trainer/` has all that an unfinished run needs: `run.json`, the tokenizer, a lock and the saved states. `OUT`
itself is filled when the run ends; the record `training.json` comes last, and marks the run as finished.

transformers' Trainer writes the files of a state one after another. The list of their hashes is written after the last
one. It distinguishes a whole state from one that is damaged, or that a full disk or a killed process cut short.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, PlainSerializer, PlainValidator, ValidationError, ValidationInfo

from merino_edge.families.designed import FAMILY
from merino_edge.families.geometry import Geometry
from merino_edge.families.registry import read_geometry
from merino_edge.storage.atomic import write_text
from merino_edge.storage.faults import fault_list
from merino_edge.training.data.sources import DataFile
from merino_edge.training.recipe import Recipe
from merino_runtime.bundle import sha256_of
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json

WHOLE = "saved.json"  # in a saved state: its files and their hashes
STATE = "trainer"
RUN = "run.json"  # in STATE
LOCK = "lock"  # in STATE
CHAT = "chat.json"  # in STATE: the chat template that messages are written in
TOKENIZER = "tokenizer.json"  # in STATE during the run, then in OUT
RECORD = "training.json"
ELSEWHERE = "Begin another run with another -o"
FINISHED = {"config.json", "model.safetensors", TOKENIZER, RECORD}


def saved_states(folder: Path) -> list[Path]:
    """Folders `checkpoint-STEP` of transformers' Trainer, whole or not, the newest first."""
    states = [path for path in folder.glob("checkpoint-*") if path.is_dir() and step_of(path) is not None]
    return sorted(states, key=lambda path: step_of(path) or 0, reverse=True)


def step_of(state: Path) -> int | None:
    step = state.name.removeprefix("checkpoint-")
    return int(step) if step.isdecimal() else None


def is_marked(state: Path) -> bool:
    return (state / WHOLE).is_file()


def mark_whole(state: Path) -> None:
    """Write down the files of a saved state. A state without this list, or with other files, was torn."""
    files = {path.name: sha256_of(str(path)) for path in sorted(state.iterdir()) if path.name != WHOLE}
    write_text(state / WHOLE, json.dumps(files, indent=1) + "\n")


def fault_of(state: Path) -> str | None:
    """The fault of a saved state; None where it is whole."""
    try:
        files = read_json(str(state / WHOLE), "")
    except MerinoError:
        return "it was not saved to its end"
    if not isinstance(files, dict):
        return "its list of files is damaged"
    there = {path.name: path for path in state.iterdir()}
    for name, sha256 in files.items():
        path = there.get(name)
        if path is None or not path.is_file():
            return f"{name} is missing"
        if sha256_of(str(path)) != sha256:
            return f"{name} is damaged"
    return None


def newest_whole_state(folder: Path) -> tuple[Path, list[str]]:
    """(the newest saved state that is whole, the faults of newer ones). The newer ones are removed.

    Raises MerinoError where none is whole; then nothing is removed.
    """
    faults: list[str] = []
    torn: list[Path] = []
    for state in saved_states(folder):
        fault = fault_of(state)
        if fault is None:
            for path in torn:
                shutil.rmtree(path)
            return state, faults
        torn.append(state)
        faults.append(f"{state.name}: {fault}")
    raise MerinoError(f"no saved state in {folder} is whole ({'; '.join(faults)}): begin the run again with another -o")


def remove_older(folder: Path, best: str | None) -> None:
    """Remove all saved states but the newest two and `best`, the one of the lowest held-out loss."""
    for state in saved_states(folder)[2:]:
        if best is None or state.name != Path(best).name:
            shutil.rmtree(state)


def remove_torn(folder: Path) -> None:
    """Remove the states that were not saved to their end."""
    for state in saved_states(folder):
        if not is_marked(state):
            shutil.rmtree(state)


def geometry_by_family(raw: Any, info: ValidationInfo) -> Geometry:
    """By the family, which is validated before it."""
    try:
        return read_geometry(info.data.get("family", ""), raw) if isinstance(raw, dict) else raw
    except MerinoError as error:
        raise ValueError(str(error)) from error


def dumped(geometry: Geometry) -> dict[str, Any]:
    return geometry.model_dump(mode="json")


class Run(BaseModel):
    """The description of a run: two runs that differ in one field give different models. Only `name` is for people.

    `held_out`: files; none where the last documents of `data` are held out. `weights_sha256`: of the model that it
    began from; empty where its weights were drawn. `teacher_sha256`: empty where it had none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    family: str = FAMILY.name  # of records before schema 3
    architecture: Annotated[Geometry, PlainValidator(geometry_by_family), PlainSerializer(dumped)]
    recipe: Recipe
    data: list[DataFile]
    held_out: list[DataFile]
    tokenizer_sha256: str
    weights_sha256: str = ""
    teacher_sha256: str = ""


def kept_run(out: Path) -> Run | None:
    """The run that `out` holds, finished or not; None where there is none. Raises MerinoError for a damaged file."""
    path = out / RECORD if is_finished(out) else out / STATE / RUN
    if not path.is_file():
        return None
    content = read_json(str(path), f"{ELSEWHERE}.")
    try:
        return Run.model_validate({key: content[key] for key in Run.model_fields if key in content})
    except ValidationError as error:
        raise MerinoError(f"{path} is not of this version of merino-edge: {fault_list(error)}. {ELSEWHERE}") from error
    except TypeError as error:
        raise MerinoError(f"{path} does not load: {error}. {ELSEWHERE}") from error


def kept_recipe(out: Path, resume: bool) -> dict[str, Any]:
    """The recipe of the run that is resumed in `out`, or is finished there; empty for a new run."""
    run = kept_run(out) if resume or is_finished(out) else None
    return asdict(run.recipe) if run else {}


def trained_name(folder: Path) -> str | None:
    """The name of the model that was trained into a checkpoint's folder; None where the record has none."""
    try:
        name = read_json(str(folder / RECORD), "")["name"]
    except (MerinoError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) and name else None


def is_finished(out: Path) -> bool:
    return all((out / name).is_file() for name in FINISHED)


def check_out(out: Path, resume: bool) -> None:
    """Raises MerinoError where `out` holds no state to resume from, or more than an aborted run to start over."""
    if resume:
        if not saved_states(out / STATE):
            raise MerinoError(f"{out} holds no run to resume: leave out --resume to begin one")
    elif out.exists() and not out.is_dir():
        raise MerinoError(f"{out} is a file, a folder is to be written: choose another -o")
    elif out.is_dir() and not begun_only(out):
        go_on = "go on with --resume, or " if saved_states(out / STATE) else ""
        raise MerinoError(f"{out} is not empty: {go_on}choose another -o")


def begun_only(out: Path) -> bool:
    """Whether `out` holds only the files of a run that was stopped before its first saved state was whole."""
    if {path.name for path in out.iterdir()} - {STATE}:
        return False
    states = saved_states(out / STATE)
    return not states or ((out / STATE / RUN).is_file() and not any(map(is_marked, states)))


def clear_begun(out: Path) -> None:
    """Remove the files of such a run, except the lock, which is held."""
    for path in (out / STATE).iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def differences(kept: Run, requested: Run) -> list[str]:
    """The options in which `requested` is another run than `kept`, with both values."""
    differing = []
    if kept.architecture != requested.architecture:
        differing.append(f"SOURCE is {shown(requested.architecture)}; the run's is {shown(kept.architecture)}")
    elif kept.weights_sha256 != requested.weights_sha256:
        differing.append(f"SOURCE has {weights_shown(requested)}; the run's has {weights_shown(kept)}")
    files = (("--data", kept.data, requested.data), ("--held-out", kept.held_out, requested.held_out))
    for option, kept_files, requested_files in files:
        if len(kept_files) != len(requested_files) or not all(map(DataFile.same_data, kept_files, requested_files)):
            differing.append(f"{option} is {listed(requested_files)}; the run's is {listed(kept_files)}")
    if kept.teacher_sha256 != requested.teacher_sha256:
        first, second = (run.teacher_sha256[:8] or "none" for run in (kept, requested))
        differing.append(f"--teacher is {second}; the run's is {first}")
    if requested.tokenizer_sha256 not in ("", kept.tokenizer_sha256):  # empty: none was given
        differing.append("--tokenizer is not the run's")
    recipes = asdict(kept.recipe), asdict(requested.recipe)
    differing += [
        f"--{key.replace('_', '-')} is {recipes[1][key]}; the run's is {recipes[0][key]}"
        for key in recipes[0] if recipes[0][key] != recipes[1][key]
    ]  # fmt: skip
    return differing


def shown(arch: Geometry) -> str:
    return f"{arch.shape()}, vocabulary {arch.vocab}, context {arch.context}"


def weights_shown(run: Run) -> str:
    return f"weights {run.weights_sha256[:8]}" if run.weights_sha256 else "no weights"


def listed(files: list[DataFile]) -> str:
    return ", ".join(map(str, files)) or "not given"


def check_same(kept: Run, requested: Run, out: Path) -> None:
    """Raises MerinoError where the run in `out` is not the requested one."""
    differing = differences(kept, requested)
    if differing:
        raise MerinoError(
            f"{out} holds another run: {'; '.join(differing)}. A run goes on as it began: give the run's own values, or"
            " begin another run with another -o"
        )


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Holds the run's lock, which the kernel frees when the process ends, however it ends.

    Folders that were made for the lock alone are removed again. Raises MerinoError where another process holds it.
    """
    folder = out / STATE
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise MerinoError(f"another `train` is at work in {out}: wait for its end, or choose another -o") from error
    except OSError as error:
        raise MerinoError(f"cannot write {folder}: {error.strerror or error}. Choose another -o") from error
    try:
        yield
    finally:
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()  # while it is held: who waits for it sees that it is gone
            folder.rmdir()
            if not any(out.iterdir()):
                out.rmdir()
        lock.release()


@contextmanager
def put_files(out: Path) -> Iterator[Path]:
    """Yields an empty folder; its files are moved into `out` when the body succeeds."""
    beside = out / STATE / "finished"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        yield beside
        for path in sorted(beside.iterdir()):
            path.replace(out / path.name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
