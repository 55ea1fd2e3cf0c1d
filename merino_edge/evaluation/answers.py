"""Answers of a model, written to a file as they come, so that an interrupted evaluation can be resumed.

An answer is kept under the hash of its request and of the model, and a resumed evaluation takes it from there. So its
figures are those of an evaluation that was not interrupted.
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


class _Hook:
    """lm-eval's models call it with each answer."""

    def __init__(self, answers: Answers, model: str, answered: Callable[[], None]) -> None:
        self._answers, self._model, self._answered = answers, model, answered

    def add_partial(self, kind: str, request: Sequence[Any], answer: Any) -> None:
        self._answers.keep(self._model, hashed(kind, request), answer)
        self._answered()


class Resumed(_lm_eval.LM):  # type: ignore[name-defined]
    """A model of lm-eval that computes only requests which have no answer yet.

    `begun` is called with the requests to compute, `answered` at each answer.
    """

    def __init__(
        self, lm: Any, answers: Answers, model: str, begun: Begun = lambda _: None,
        answered: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._lm, self._answers, self._model, self._begun = lm, answers, model, begun
        lm.set_cache_hook(_Hook(answers, model, answered))

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        return self._all("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: list[Any]) -> list[Any]:
        return self._all("loglikelihood_rolling", requests)

    def generate_until(self, requests: list[Any]) -> list[Any]:
        return self._all("generate_until", requests)

    def _all(self, kind: str, requests: list[Any]) -> list[Any]:
        keys = [hashed(kind, request.args) for request in requests]
        answers = [self._answers.get(self._model, key) for key in keys]
        missing = [place for place, answer in enumerate(answers) if answer is None]
        requested = [requests[place] for place in missing]
        self._begun(requested)
        given = getattr(self._lm, kind)(requested, disable_tqdm=True) if requested else []
        for place, answer in zip(missing, given, strict=True):
            answers[place] = answer
        return answers

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(self._lm.apply_chat_template(chat_history, add_generation_prompt))

    @property
    def tokenizer_name(self) -> str:
        return str(self._lm.tokenizer_name)


def hashed(kind: str, request: Sequence[Any]) -> str:
    return str(_lm_eval.hash_args(kind, request))
