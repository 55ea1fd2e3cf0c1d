"""One completion on one slot, event by event: with `echo` the prompt's own tokens, then the generation and its end.

The caller may stop after any event; `finish` then returns the withheld text and the measurements so far.
"""
import time
from typing import Any, Callable, Generator, Iterator, List, Optional

from merino_runtime.api import LanguageModel
from merino_runtime.backends.backend import Backend, unit
from merino_runtime.errors import MerinoError
from merino_runtime.generation.generate import Done, Generation, Prefilled, Token, token_logprobs
from merino_runtime.generation.text import TextStream
from merino_runtime.sampling import GenerateOptions
from merino_runtime.serving.requests import Event, Finished, GenerationRequest, Progress, TextChunk, Usage


class Completion(Iterator[Event]):
    """The events of one request. arrived_s: arrival of the request by time.monotonic. chunk_size: as of `generate`."""

    def __init__(self, request: GenerationRequest, model: LanguageModel, backend: Backend, arrived_s: float,
                 chunk_size: Callable[[int], int]) -> None:
        self._request, self._model, self._backend, self._chunk_size = request, model, backend, chunk_size
        self._arrived_s, self._started_s = arrived_s, time.monotonic()
        self._until_s = arrived_s + (float("inf") if request.limit_s is None else request.limit_s)
        self._stream = TextStream(model.tokenizer, request.stops, request.begins)
        self.generation: Optional[Generation] = None
        self.ids: List[int] = []  # generated
        self.cached = 0  # ids of the prompt that the slot's cache held
        self._events = self._run()

    def __next__(self) -> Event:
        try:
            return next(self._events)
        except MerinoError:
            if time.monotonic() < self._until_s:
                raise
            self._events = (event for event in self.finish("time"))  # the constraint's work was stopped
            return next(self._events)

    def close(self) -> None:
        self._events.close()

    def finish(self, reason: str) -> List[Event]:
        """End the completion early -> the withheld text and the Finished."""
        self.close()
        text = self._stream.finish()
        done = None if self.generation is None else self.generation.measured()
        return [*([TextChunk(None, text)] if text else []), self._finished(reason, done)]

    def _run(self) -> Generator[Event, None, None]:
        request = self._request
        self._backend.select(request.adapter)
        if request.echo:
            yield from self._prompt_chunks()
        if request.embeds:
            yield from self._embedding()
            return
        if not request.max_new_tokens:
            yield self._finished("length", None)
            return
        options = GenerateOptions(request.max_new_tokens, request.sampling, top=request.top, adapter=request.adapter)
        self.generation = Generation(
            self._backend, request.ids, options,
            stop_ids=() if request.ignore_eos else self._model.bundle.stop_ids, stream=self._stream,
            chunk_size=self._chunk_size, constraint=request.grammar, forces=request.top is None,
            until_s=self._until_s)
        cache_counted = request.echo
        for event in self.generation:
            if isinstance(event, Prefilled):
                if not cache_counted:
                    self.cached, cache_counted = event.ids, True
                yield Progress(event.ids, event.total)
            elif isinstance(event, Token):
                self.ids.append(event.id)
                logprobs: Any = None if request.top is None else next(self.generation)  # no token is forced then
                yield TextChunk(event.id, event.text, logprobs)
            elif isinstance(event, Done):
                yield self._finished("stop" if event.stop_reason == "eos" else event.stop_reason, event)

    def _prompt_chunks(self) -> Iterator[TextChunk]:
        """Yield the prompt's own tokens with their log-probabilities, one decode step per id. The first has none."""
        request, logprobs = self._request, None
        self._backend.truncate(0)
        for index, token_id in enumerate(request.ids):
            if index:
                logits = self._backend.step(request.ids[index - 1])
                logprobs = token_logprobs(logits, token_id, request.top or 0)
            text = self._model.tokenizer.bytes_of(token_id).decode("utf-8", "replace")
            yield TextChunk(token_id, text, logprobs, of_prompt=True)

    def _embedding(self) -> Iterator[Event]:
        """Yield the progress and the embedding. The cache is empty afterwards: the next embedding takes this slot."""
        ids, at = self._request.ids, 0
        total: Any = 0.0
        self._backend.truncate(0)
        while at < len(ids):
            yield Progress(at, len(ids))
            part = ids[at:at + self._chunk_size(at)]
            total, at = total + self._backend.embed(part), at + len(part)
        self._backend.truncate(0)
        yield self._finished("stop", None)._replace(embedding=unit(total).tolist())

    def _finished(self, reason: str, done: Optional[Done]) -> Finished:
        prefill_ms = done.prefill_ms if done and done.prefill_ms is not None else 0.0
        decode_ms = 1000 * (done.tokens - 1) / done.tok_s if done and done.tok_s else 0.0
        return Finished(reason, Usage(
            prompt_tokens=len(self._request.ids), cached_tokens=self.cached, tokens=len(self.ids),
            waited_ms=1000 * (self._started_s - self._arrived_s), prefill_ms=prefill_ms, decode_ms=decode_ms,
            total_ms=1000 * (time.monotonic() - self._arrived_s)))


def finished_without_slot(request: GenerationRequest, reason: str, arrived_s: float) -> Finished:
    """Return the end of a request that never had a slot."""
    waited_ms = 1000 * (time.monotonic() - arrived_s)
    return Finished(reason, Usage(len(request.ids), waited_ms=waited_ms, total_ms=waited_ms))
