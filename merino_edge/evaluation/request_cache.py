"""Cache the results of a model's requests in a file while they come, so that an interrupted evaluation can be resumed.

A result is stored under the hash of its request and of the model. A resumed evaluation reads it from there, so its
figures are those of an evaluation that was not interrupted.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from merino_edge.storage.atomic import append_lines
from merino_runtime.io.outputs import is_stdout

EVERY_S = 2.0  # an interruption loses the results of so many seconds at most


class RequestCache:
    """Results of several models, by (model's hash, request's hash). `path`: the file; None: in memory only."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._results: dict[tuple[str, str], Any] = {}
        self._lines: list[str] = []
        self._written = time.monotonic()
        for line in path.read_text(encoding="utf-8").splitlines() if path and path.exists() else ():
            with suppress(ValueError, TypeError):  # the line that an interruption cut
                model, request, result = json.loads(line)
                self._results[model, request] = result

    def __len__(self) -> int:
        return len(self._results)

    def get(self, model: str, request: str) -> Any:
        result = self._results.get((model, request))
        return tuple(result) if isinstance(result, list) else result

    def add(self, model: str, request: str, result: Any) -> None:
        self._results[model, request] = result
        self._lines.append(json.dumps([model, request, result]) + "\n")
        if time.monotonic() > self._written + EVERY_S:
            self.write()

    def write(self) -> None:
        if self.path and self._lines:
            append_lines(self.path, "".join(self._lines))
            self._lines.clear()
        self._written = time.monotonic()


def open_cache(out: Path | None, say: Callable[[str], None] = lambda _: None) -> RequestCache:
    """Return the cache for the output `out`, with the results that an interrupted evaluation left beside it."""
    if out is None or is_stdout(str(out)):
        return RequestCache()
    cache = RequestCache(out.with_name(f"{out.name}.partial"))
    if len(cache):
        say(f"{len(cache):,} answers of an interrupted evaluation are used again: {cache.path}")
    return cache


def request_hash(kind: str, request: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps([kind, *request]).encode()).hexdigest()
