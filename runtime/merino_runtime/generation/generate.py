"""Generation: a prefill, then one decode step per token, as an iterator whose last item holds the measurements.

The prefill computes only the ids after the prefix that prompt and cache share. `overflow` decides what happens if
prompt and new tokens do not fit the context. `stop`: generation ends when the context is full. `error`: the request is
refused. `shift`: a full cache is cut to the newest half of the context, those ids are prefilled again from position 0,
and generation continues.

Guesses: if the text repeats itself, one run of the graph verifies the next tokens, which `guesses` takes from the text.
The tokens are sampled as without guesses, from the same logits and random numbers. A guess that differs from the
sampled token is dropped from the cache.

`constraint`: a grammar that the text follows. Tokens that it forces are not sampled: they are prefilled together with
the next step. The generation ends with `eos` once no token is allowed to follow.

Timing: `prefill_ms` covers the prefill and the sampling of the first token. A decode step covers the run of the
graph, the sampling and the detokenizing of its token. The prefill of a shift counts into the step of its token.
Tokenizing the prompt, and the caller's work between tokens, are not timed. Repetitions, warm-up and energy belong to
`merino_bench`.
"""
import statistics
import time
from typing import TYPE_CHECKING, Callable, Generator, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from merino_runtime.backends.backend import Backend
from merino_runtime.errors import MerinoError
from merino_runtime.generation.guesses import Guesses
from merino_runtime.generation.sampler import Sampler, log_probabilities
from merino_runtime.generation.text import TextStream
from merino_runtime.io.board import peak_rss_mb
from merino_runtime.sampling import GenerateOptions

if TYPE_CHECKING:
    from merino_runtime.generation.constraints import Compiled


class Token(NamedTuple):
    """One generated id. `text` is empty while a character or a possible stop string is incomplete. The withheld text
    follows with a later token."""
    id: int
    text: str


class PromptCut(NamedTuple):
    """First item with overflow `shift` if the prompt alone does not fit: its first ids are left out."""
    left_out: int  # number of ids
    kept: int  # number of ids, the last ones of the prompt


class Prefilled(NamedTuple):
    """With `chunk_size`: progress of the prefill. The first event counts the ids that the cache held."""
    ids: int  # of the prompt, in the cache
    total: int


class TokenLogprobs(NamedTuple):
    """With `top`: follows a Token that was sampled. Log-probabilities of the model's own logits, before penalties,
    top_k, top_p and min_p."""
    logprob: float  # of the token
    top: Tuple[Tuple[int, float], ...]  # ids and their log-probabilities, likeliest first


class Done(NamedTuple):
    tokens: int  # number of `Token`s before; an EOS counts, and has no text
    prefill_tokens: int  # computed by the prefill: ids of the prompt without those in the cache
    prefill_ms: Optional[float]  # None if interrupted before the first token
    decode_ms_p50: Optional[float]  # None if the first token was the last
    tok_s: Optional[float]  # decode tokens per second of decode time; tokens up to the prefill's are not counted
    peak_rss_mb: float  # of the process since its start
    stop_reason: str  # eos, stop (a stop string), length (max_new_tokens), context (the KV cache is full) or interrupt
    shifts: int = 0  # how often a full cache dropped its older half
    forced: int = 0  # tokens that the constraint forced: they took no step
    guessed: int = 0  # tokens that were guessed rightly: they took no step


Event = Union[PromptCut, Prefilled, Token, TokenLogprobs, Done]
ChunkSize = Callable[[int], int]  # ids of the prompt so far -> number of ids in the next chunk of its prefill


def check_fits(prompt: int, options: GenerateOptions, context: int) -> None:
    """Raise MerinoError if the context does not allow a prompt of `prompt` ids and this number of new tokens."""
    max_new_tokens, overflow = options.max_new_tokens, options.overflow
    if not prompt:
        raise MerinoError("the prompt is empty: it has no ids. Give at least one token.")
    remedy = "export with a longer --context, or drop the oldest tokens with --set overflow=shift."
    if prompt >= context and overflow != "shift":
        raise MerinoError(f"the prompt has {prompt} ids and the context is {context}: at most {context - 1}, so that "
                          f"a token can follow. Shorten the prompt, {remedy}")
    if prompt + max_new_tokens > context and overflow == "error":
        raise MerinoError(f"the prompt has {prompt} ids and {max_new_tokens} new tokens were requested: together "
                          f"{prompt + max_new_tokens}, and the context is {context}. Request {context - prompt} or "
                          f"fewer, shorten the prompt, {remedy}")


def shift(backend: Backend, ids: Sequence[int]) -> np.ndarray:
    """Drop the older half of a full cache and prefill ids -> logits [vocab].

    The kept ids are prefilled again. Moving their keys to new positions would give other logits than a fresh cache:
    a key depends on its position and, above the first layer, on all ids before it.
    """
    kept = newest_half([*backend.ids, *ids], backend.context)
    backend.truncate(0)
    return backend.prefill(kept)


def newest_half(ids: Sequence[int], context: int) -> Sequence[int]:
    return ids[-((context + 1) // 2):]


def reuse_prefix(backend: Backend, ids: Sequence[int]) -> Sequence[int]:
    """Truncate the cache to the prefix that it shares with ids, and return the other ids, which a prefill must compute.
    The last id is always among them, because the cache holds no logits."""
    kept = common_prefix(backend.ids, ids[:-1])
    if not backend.extends_fast and 2 * kept < len(ids):
        kept = 0
    backend.truncate(kept)
    return ids[kept:]


def common_prefix(ids: Sequence[int], others: Sequence[int]) -> int:
    """Return the length of the common prefix."""
    most = min(len(ids), len(others))
    return next((index for index in range(most) if ids[index] != others[index]), most)


def token_logprobs(logits: np.ndarray, token_id: int, top: int) -> TokenLogprobs:
    """Return the log-probabilities of an id and of the `top` likeliest ids. logits [vocab]."""
    logprobs = log_probabilities(logits)
    best = np.argsort(-logprobs, kind="stable")[:top]
    return TokenLogprobs(float(logprobs[token_id]), tuple((int(index), float(logprobs[index])) for index in best))


class Generation(Iterator[Event]):
    """Yields a Token per id, then one Done. The ids do not depend on what the cache held before.

    options: stops, ignore_eos, json_schema and tools have no effect here: the caller turns them into `stream`,
    `stop_ids` and `constraint`. chunk_size: cut the prefill into chunks, with a Prefilled before each, so that the
    caller can do other work in between, or stop. forces: tokens that the constraint forces take no step. stop_ids: any
    of them ends the generation if the constraint allows it. stream None: yield ids only, every text is empty. until_s:
    by time.monotonic; the constraint raises MerinoError after it.

    Raise MerinoError for a wrong request. After the iterator is closed early, or after ctrl-C, the backend can be used
    again, and `measured` returns the Done so far. `next` raises MerinoError if something else, such as another
    generation on this backend, changed the cache between two tokens.
    """

    def __init__(self, backend: Backend, prompt_ids: Sequence[int], options: GenerateOptions = GenerateOptions(), *,  # noqa: B008, E501
                 stop_ids: Sequence[int] = (), stream: Optional[TextStream] = None,
                 chunk_size: Optional[ChunkSize] = None, constraint: Optional["Compiled"] = None, forces: bool = True,
                 until_s: float = float("inf")) -> None:
        check_fits(len(prompt_ids), options, backend.context)
        backend.adapter_of(options.adapter)
        unknown = [token_id for token_id, _ in options.sampling.logit_bias if token_id >= backend.vocab]
        if unknown:
            raise MerinoError(f"logit_bias names the token id {unknown[0]}, the model has 0 to {backend.vocab - 1}. "
                              "Use ids of this model's tokenizer.")
        context = backend.context
        kept = prompt_ids if len(prompt_ids) < context else newest_half(prompt_ids, context)
        self._backend, self._stream, self._stop_ids = backend, stream, frozenset(stop_ids)
        self._prompt_ids, self._options = kept, options
        breakers = stream.tokenizer.breakers() if stream and options.sampling.dry_multiplier else ()
        self._sampler = Sampler(options.sampling, kept, breakers)
        self._chunk_size, self._forces = chunk_size, forces
        self._rest: Optional[Sequence[int]] = None  # ids of a prompt in chunks that are not in the cache yet
        self._uncached: List[int] = []  # sampled or forced ids that are not in the cache yet
        self._guesses = Guesses(kept) if backend.verifies and options.lookup else None
        # guessed ids that the cache holds and that are not sampled yet, with the logits [vocab] after each
        self._unsampled: List[Tuple[int, np.ndarray]] = []
        self._known_logits: Optional[np.ndarray] = None  # of the next token, if the last one was guessed rightly
        self._guessed_tokens = 0  # tokens that were sampled from such logits
        self._is_ahead = False  # whether the next step was computed ahead
        self._pending_ms = 0.0  # of the next token so far: the prefill's chunks, forced tokens, a step computed ahead
        self._state = constraint.start(until_s) if constraint else None
        self._forced_next: Optional[List[int]] = None  # ids that the constraint forces next; None: not computed yet
        self._step_ms: List[float] = []  # of each token: the prefill, then each decode step; 0 where it was forced
        self._runs = 0  # runs of the graph that returned logits of a next token
        self._tokens = self._prefill_tokens = self._shifts = 0
        self._changes = 0  # the backend's count of changes of the cache, after the last run of the graph
        self._events = self._run(len(prompt_ids) - len(kept))

    def __next__(self) -> Event:
        return next(self._events)

    def close(self) -> None:
        """End the generation. The backend can be used again."""
        self._events.close()

    @property
    def next_id(self) -> Optional[int]:
        """Return the id of the next decode step; None if the next event needs another computation. A caller can thus
        compute the steps of several generations together (`Backend.step_ahead`)."""
        if not self._runs or len(self._uncached) != 1 or self._backend.length >= self._backend.context:
            return None
        return None if self._forced() else self._uncached[0]

    def computed_ahead(self, ms: float) -> None:
        """Add the time of a decode step that was computed ahead."""
        self._pending_ms += ms
        self._is_ahead = True

    def measured(self, stop_reason: str = "interrupt") -> Done:
        """Return the measurements so far, for a generation that did not reach its own `Done`."""
        step_ms = self._step_ms[:self._tokens]
        runs = [index for index, ms in enumerate(step_ms) if ms]  # the first is the prefill
        after_prefill = step_ms[runs[0] + 1:] if runs else []
        decode_ms = [ms for ms in after_prefill if ms]
        return Done(tokens=len(step_ms), prefill_tokens=self._prefill_tokens,
                    prefill_ms=step_ms[runs[0]] if runs else None,
                    decode_ms_p50=statistics.median(decode_ms) if decode_ms else None,
                    tok_s=1000 * len(after_prefill) / sum(decode_ms) if decode_ms else None,
                    peak_rss_mb=peak_rss_mb(), stop_reason=stop_reason, shifts=self._shifts,
                    forced=len(step_ms) - len(runs) - self._guessed_tokens, guessed=self._guessed_tokens)

    def _run(self, left_out: int) -> Generator[Event, None, None]:
        self._backend.select(self._options.adapter)
        if left_out:
            yield PromptCut(left_out, len(self._prompt_ids))
        if self._chunk_size:
            yield from self._prefill_chunks(self._chunk_size)
        stop_reason, stream, state, top = "", self._stream, self._state, self._options.top
        while not stop_reason:
            start = time.perf_counter()
            logprobs = None
            tokens = self._forced()
            forced, guessed = bool(tokens), self._known_logits is not None
            if not forced:
                logits = self._logits()
                tokens = [self._sampler.sample(logits, state.allowed() if state else None)]
                logprobs = None if top is None else token_logprobs(logits, tokens[0], top)
            for token_id in tokens:
                self._append(token_id)
                if forced:
                    self._sampler.note(token_id)
                if state:
                    state.advance(token_id)
                    self._forced_next = None
                is_eos = token_id in self._stop_ids
                text = stream.push(token_id) if stream and not is_eos else ""
                self._pending_ms += 1000 * (time.perf_counter() - start)
                self._step_ms.append(0.0 if forced or guessed else self._pending_ms)
                self._pending_ms = self._pending_ms if forced or guessed else 0.0
                stop_reason = self._stop_reason(is_eos)
                if stop_reason:
                    self._drop_guesses()
                    self._uncached = []
                    text += stream.finish() if stream else ""
                self._tokens += 1
                self._guessed_tokens += guessed and not forced
                yield Token(token_id, text)
                if logprobs:
                    yield logprobs
                if stop_reason:
                    break
                start = time.perf_counter()
        yield self.measured(stop_reason)

    def _forced(self) -> List[int]:
        """Return the ids that the constraint forces next. They are computed once per token, since `next_id` needs them
        too."""
        if self._forced_next is None:
            self._forced_next = self._state.forced() if self._state and self._forces else []
        return self._forced_next

    def _stop_reason(self, is_eos: bool) -> str:
        """Return why the generation ends; empty if it continues."""
        count, options = len(self._step_ms), self._options
        if is_eos or self._state and self._state.ended:
            return "eos"
        if self._stream and self._stream.stopped:
            return "stop"
        if count >= options.max_new_tokens:
            return "length"
        is_full = len(self._prompt_ids) + count >= self._backend.context
        return "context" if is_full and options.overflow != "shift" else ""

    def _prefill_chunks(self, chunk_size: ChunkSize) -> Iterator[Event]:
        """Compute the prompt except for its last chunk."""
        prompt_ids, rest = self._prompt_ids, self._reuse_prefix()
        while True:
            self._rest = rest
            self._changes = self._backend.changes
            yield Prefilled(len(prompt_ids) - len(rest), len(prompt_ids))
            self._check_unchanged()
            count = max(1, chunk_size(len(prompt_ids) - len(rest)))
            if count >= len(rest) or not self._backend.extends_fast:
                return
            start = time.perf_counter()
            self._backend.prefill(rest[:count])
            self._pending_ms += 1000 * (time.perf_counter() - start)
            rest = rest[count:]

    def _reuse_prefix(self) -> Sequence[int]:
        rest = reuse_prefix(self._backend, self._prompt_ids)
        self._prefill_tokens = len(rest)
        return rest

    def _check_unchanged(self) -> None:
        if self._backend.changes != self._changes:
            raise MerinoError("the cache of this model was changed by something else while this generation was "
                              "unfinished, such as another generation. Finish or close one before the next begins, or "
                              "run each on a fork() of the model.")

    def _append(self, token_id: int) -> None:
        """Add a sampled or forced id to the text. The cache holds it if it was guessed."""
        if self._guesses:
            self._guesses.append(token_id)
        if self._unsampled and self._unsampled[0][0] == token_id:
            _, self._known_logits = self._unsampled.pop(0)
            if self._guesses:
                self._guesses.right()
            return
        self._drop_guesses()
        self._known_logits = None
        self._uncached.append(token_id)

    def _drop_guesses(self) -> None:
        """Remove from the cache what was guessed and not sampled."""
        if self._unsampled:
            self._check_unchanged()
            self._backend.truncate(self._backend.length - len(self._unsampled))
            self._changes, self._unsampled = self._backend.changes, []

    def _logits(self) -> np.ndarray:
        """Return the logits [vocab] of the next token, from the prompt's prefill, a decode step, a prefill of forced
        tokens, a verified guess, or a shift."""
        backend, ids = self._backend, self._uncached
        if not self._runs:
            ids = [*(self._reuse_prefix() if self._rest is None else self._rest), *ids]
        else:
            self._check_unchanged()
        if self._known_logits is not None:
            logits, self._known_logits = self._known_logits, None
            return logits
        guess = self._guess()
        self._is_ahead = False
        if backend.length + len(ids) > backend.context:
            self._shifts += 1
            logits = shift(backend, ids)
        elif guess:
            rows = backend.verify([*ids, *guess])  # [1 + guesses, vocab]
            logits, self._unsampled = rows[0], list(zip(guess, rows[1:]))  # noqa: B905, not in 3.6
        else:
            logits = backend.step(ids[0]) if self._runs and len(ids) == 1 else backend.prefill(ids)
        self._runs += 1
        self._uncached = []
        self._changes = backend.changes
        return logits

    def _guess(self) -> List[int]:
        """Return guesses of the tokens behind the uncached one; none if they would not pay off."""
        if not self._guesses or self._is_ahead or not self._runs or len(self._uncached) != 1:
            return []
        room = min(self._backend.context - self._backend.length, self._options.max_new_tokens - len(self._step_ms)) - 1
        guess = self._guesses.next(room)
        allowed = self._state.allowed() if guess and self._state else None
        if allowed is not None and not (guess[0] < len(allowed) and allowed[guess[0]]):
            return []
        if guess:
            self._guesses.begin(len(guess))
        return guess
