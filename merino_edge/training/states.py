"""Saved states of a training run: which are whole, and which one a resumed run goes on from. Loads no torch.

transformers' Trainer writes the files of a state one after another. The list of their hashes is written after the last
one, so a state that a full disk or a killed process cut short is told from a whole one, and so is a damaged one.
"""

import json
import shutil
from pathlib import Path

from merino_edge.storage.atomic import write_text
from merino_runtime.bundle import sha256_of
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json

WHOLE = "saved.json"  # in a saved state: its files and their hashes


def saved_states(folder: Path) -> list[Path]:
    """Folders `checkpoint-STEP` of transformers' Trainer, whole or not, the newest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and step_of(path) is not None]
    return sorted(found, key=lambda path: step_of(path) or 0, reverse=True)


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
    """What is wrong with a saved state; None where it is whole."""
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
    """(the newest saved state that is whole, what is wrong with newer ones). The newer ones are removed.

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
    raise MerinoError(
        f"no saved state in {folder} is whole ({'; '.join(faults)}): begin the run again with another -o"
    )


def remove_torn(folder: Path) -> None:
    """Remove the states that were not saved to their end."""
    for state in saved_states(folder):
        if not is_marked(state):
            shutil.rmtree(state)
