"""Answers of a model, kept in a file as they come, so that an interrupted evaluation goes on where it was.

An answer is kept under the hash of its request and of the model, and a resumed evaluation takes it from there: so its
figures are those of one that was not interrupted.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from merino_edge.evaluation.extra import needed
from merino_edge.storage.atomic import append_lines
from merino_runtime.errors import MerinoError

EVERY_S = 2.0  # an interruption loses the answers of so many seconds at most

_lm_eval = needed("lm_eval.api.model")
Told = Callable[[], None]
Begun = Callable[[list[Any]], None]


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
        found = self._known.get((model, request))
        return tuple(found) if isinstance(found, list) else found

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
    found = Answers(path)
    if len(found) and not resume:
        raise MerinoError(
            f"{path} holds {len(found):,} answers of an evaluation that was interrupted: give --resume to go on with"
            " it, or remove that file"
        )
    return found


class _Hook:
    """What lm-eval's models call with each answer."""

    def __init__(self, answers: Answers, model: str, told: Told) -> None:
        self._answers, self._model, self._told = answers, model, told

    def add_partial(self, kind: str, request: Sequence[Any], answer: Any) -> None:
        self._answers.keep(self._model, hashed(kind, request), answer)
        self._told()


class Resumed(_lm_eval.LM):  # type: ignore[name-defined]
    """A model of lm-eval that is asked only for what is not among the answers.

    `begun` is called with the requests that are to be asked, `told` at each answer.
    """

    def __init__(
        self, lm: Any, answers: Answers, model: str, begun: Begun = lambda _: None, told: Told = lambda: None
    ) -> None:
        super().__init__()
        self._lm, self._answers, self._model, self._begun = lm, answers, model, begun
        lm.set_cache_hook(_Hook(answers, model, told))

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        return self._all("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: list[Any]) -> list[Any]:
        return self._all("loglikelihood_rolling", requests)

    def generate_until(self, requests: list[Any]) -> list[Any]:
        return self._all("generate_until", requests)

    def _all(self, kind: str, requests: list[Any]) -> list[Any]:
        keys = [hashed(kind, request.args) for request in requests]
        found = [self._answers.get(self._model, key) for key in keys]
        missing = [place for place, answer in enumerate(found) if answer is None]
        asked = [requests[place] for place in missing]
        self._begun(asked)
        given = getattr(self._lm, kind)(asked, disable_tqdm=True) if asked else []
        for place, answer in zip(missing, given, strict=True):
            found[place] = answer
        return found

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(self._lm.apply_chat_template(chat_history, add_generation_prompt))

    @property
    def tokenizer_name(self) -> str:
        return str(self._lm.tokenizer_name)


def hashed(kind: str, request: Sequence[Any]) -> str:
    return str(_lm_eval.hash_args(kind, request))
