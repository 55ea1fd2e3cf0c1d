"""Answers of a model, written to a file as they come, so that an interrupted evaluation can be resumed.

An answer is kept under the hash of its request and of the model, and a resumed evaluation takes it from there. So its
figures are those of an evaluation that was not interrupted.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merino_edge.storage.atomic import append_lines
from merino_runtime.errors import MerinoError

EVERY_S = 2.0  # an interruption loses the answers of so many seconds at most


class Answers:
    """Of several models, by (model's hash, request's hash). `path`: the file; None: they are kept in memory."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._known: dict[tuple[str, str], Any] = {}
        self._lines: list[str] = []
        self._written = time.monotonic()
        for line in path.read_text(encoding="utf-8").splitlines() if path and path.exists() else ():
            try:
                model, request, answer = json.loads(line)
            except (ValueError, TypeError):  # the line that an interruption cut
                continue
            self._known[model, request] = answer

    def __len__(self) -> int:
        return len(self._known)

    def get(self, model: str, request: str) -> Any:
        answer = self._known.get((model, request))
        return tuple(answer) if isinstance(answer, list) else answer

    def keep(self, model: str, request: str, answer: Any) -> None:
        self._known[model, request] = answer
        self._lines.append(json.dumps([model, request, answer]) + "\n")
        if time.monotonic() > self._written + EVERY_S:
            self.write()

    def write(self) -> None:
        if self.path and self._lines:
            append_lines(self.path, "".join(self._lines))
            self._lines.clear()
        self._written = time.monotonic()


def begun(out: Path | None, resume: bool) -> Answers:
    """The answers for the output `out`. Raises MerinoError where an interrupted evaluation is not to be resumed."""
    if out is None:
        return Answers()
    path = out.with_name(f"{out.name}.partial")
    answers = Answers(path)
    if len(answers) and not resume:
        raise MerinoError(
            f"{path} holds {len(answers):,} answers of an evaluation that was interrupted: give --resume to go on with"
            " it, or remove that file"
        )
    return answers


def hashed(kind: str, request: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps([kind, *request]).encode()).hexdigest()
