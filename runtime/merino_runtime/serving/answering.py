"""One answer over one slot, event by event: with `echo` the prompt's own tokens, then the generation and its end.

The caller may stop after any event, and `leave` then returns what there is.
"""
import time
from typing import Callable, Generator, Iterator, List, Optional, Sequence

from merino_runtime.api import LanguageModel
from merino_runtime.backends.backend import Backend
from merino_runtime.generation.generate import Done, Generation, Likely, Prefilled, Token, generate, likely_of
from merino_runtime.generation.text import TextStream
from merino_runtime.sampling import GenerateOptions
from merino_runtime.serving.requests import Ended, Event, GenerationRequest, Piece, Progress, Used

REASONS = {"eos": "stop"}


class Answering(Iterator[Event]):
    """arrived_s: when the request came, by time.monotonic. piece: how many ids a piece of a prefill has."""

    def __init__(self, request: GenerationRequest, model: LanguageModel, backend: Backend, arrived_s: float,
                 piece: Callable[[int], int]) -> None:
        self._request, self._model, self._backend, self._piece = request, model, backend, piece
        self._arrived_s, self._started_s = arrived_s, time.monotonic()
        self._stream = TextStream(model.tokenizer, request.stops, request.begins)
        self._generation: Optional[Generation] = None
        self.ids: List[int] = []  # generated
        self.cached = 0  # ids of the prompt that the slot held
        self._events = self._run()

    def __next__(self) -> Event:
        return next(self._events)

    def close(self) -> None:
        self._events.close()

    @property
    def next_id(self) -> Optional[int]:
        """As of `Generation`."""
        return None if self._generation is None else self._generation.next_id

    def computed_ahead(self, ms: float) -> None:
        assert self._generation is not None
        self._generation.computed_ahead(ms)

    def leave(self, reason: str) -> List[Event]:
        """Ends it early: the text that was withheld, and the Ended."""
        self.close()
        text = self._stream.finish()
        done = None if self._generation is None else self._generation.measured()
        return [*([Piece(None, text)] if text else []), self._ended(reason, done)]

    def _run(self) -> Generator[Event, None, None]:
        request = self._request
        if request.echo:
            for token_id, likely in prompt_likelihoods(self._backend, request.ids, request.top):
                text = self._model.tokenizer.bytes_of(token_id).decode("utf-8", "replace")
                yield Piece(token_id, text, likely, of_prompt=True)
        if not request.max_new_tokens:
            yield self._ended("length", None)
            return
        self._generation = generation = generate(
            self._backend, request.ids, GenerateOptions(request.max_new_tokens, request.sampling, top=request.top),
            stop_ids=() if request.ignore_eos else self._model.bundle.stop_ids, stream=self._stream,
            piece=self._piece, constraint=request.grammar, forces=request.top is None)
        begun, pending = False, None  # a token whose log-probabilities follow it
        for event in generation:
            if pending is not None:
                yield Piece(pending.id, pending.text, event if isinstance(event, Likely) else None)
                pending = None
            if isinstance(event, Prefilled):
                self.cached, begun = self.cached if begun or request.echo else event.ids, True
                yield Progress(event.ids, event.total)
            elif isinstance(event, Token):
                self.ids.append(event.id)
                if request.top is None:
                    yield Piece(event.id, event.text)
                else:
                    pending = event
            elif isinstance(event, Done):
                yield self._ended(REASONS.get(event.stop_reason, event.stop_reason), event)

    def _ended(self, reason: str, done: Optional[Done]) -> Ended:
        prefill_ms = done.prefill_ms if done and done.prefill_ms is not None else 0.0
        decode_ms = 1000 * (done.tokens - 1) / done.tok_s if done and done.tok_s else 0.0
        return Ended(reason, Used(
            prompt_tokens=len(self._request.ids), cached_tokens=self.cached, tokens=len(self.ids),
            waited_ms=1000 * (self._started_s - self._arrived_s), prefill_ms=prefill_ms, decode_ms=decode_ms,
            total_ms=1000 * (time.monotonic() - self._arrived_s)))


def prompt_likelihoods(backend: Backend, ids: Sequence[int], top: Optional[int]) -> Iterator:
    """(id, its Likely) for each id of a prompt, by a decode step each; the first one follows nothing and has None."""
    backend.truncate(0)
    yield ids[0], None
    for before, token_id in zip(ids, ids[1:]):  # noqa: B905, not in 3.6
        yield token_id, likely_of(backend.step(before), token_id, top or 0)


def unanswered(request: GenerationRequest, reason: str, arrived_s: float) -> Ended:
    """The end of a request that got no slot."""
    waited_ms = 1000 * (time.monotonic() - arrived_s)
    return Ended(reason, Used(len(request.ids), 0, 0, waited_ms, 0.0, 0.0, waited_ms))
