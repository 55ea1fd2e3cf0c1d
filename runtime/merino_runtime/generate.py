"""Generation: a prefill, then one decode step per token, as a generator that ends with the figures.

A prompt pays only for what follows the beginning that it shares with the ids in the cache.

Figures. `prefill_ms` is the prefill and the choice of the first token. A decode step is timed with the
sampling and the detokenising of its token; tokenising the prompt, and what the caller does with a token, are
outside. Decode figures leave the first token out, which the prefill gave. Repetitions, warm-up and energy are
the bench's.
"""
import statistics
import time
from typing import Iterator, List, NamedTuple, Optional, Sequence, Union

from merino_runtime.backends.backend import Backend
from merino_runtime.board import peak_rss_mb
from merino_runtime.bundle import Bundle
from merino_runtime.errors import MerinoError
from merino_runtime.sampler import Sampler, Sampling
from merino_runtime.text import TextStream, Tokenizer


class Token(NamedTuple):
    """One generated id. Its text may be empty, or hold what earlier tokens kept back."""
    id: int
    text: str


class Done(NamedTuple):
    tokens: int  # as many as there were `Token`s: an EOS counts, and its own text is never given out
    prefill_tokens: int  # of the prompt, computed: those that the cache held already are not
    prefill_ms: float
    decode_ms_p50: Optional[float]  # None where the first token was the last
    tok_s: Optional[float]  # decode tokens per second of decode
    peak_rss_mb: float  # of the process, so far
    stop_reason: str  # eos, stop (a stop string), length (max_new_tokens) or context (the KV cache is full)


Event = Union[Token, Done]


def generate(backend: Backend, prompt_ids: Sequence[int], *, max_new_tokens: int = 128,
             sampling: Sampling = Sampling(), eos_id: Optional[int] = None,  # noqa: B008
             stream: Optional[TextStream] = None) -> Iterator[Event]:
    """Yields a Token per id, then one Done: what an empty cache would give, whatever it holds.

    eos_id None: nothing but the other reasons stops it. stream None: ids only, every text is empty. What is
    wrong with the request is raised by this call, before the first token is asked for. Closing the iterator
    early, or ctrl-C, leaves the backend fit for the next call.
    """
    if not len(prompt_ids):
        raise MerinoError("the prompt is empty: it has no ids. Give at least one token to go on from.")
    if len(prompt_ids) >= backend.context:
        raise MerinoError(f"the prompt has {len(prompt_ids)} ids and the context is {backend.context}: at "
                          f"most {backend.context - 1}, so that a token can follow. Shorten the prompt, or "
                          "export with a longer --context.")
    if max_new_tokens < 1:
        raise MerinoError(f"{max_new_tokens} new tokens were asked for, allowed: 1 or more.")
    sampler = Sampler(sampling, prompt_ids)
    return _run(backend, prompt_ids, max_new_tokens, sampler, eos_id, stream)


def generate_text(bundle: Bundle, backend: Backend, tokenizer: Tokenizer, prompt: str, *,
                  max_new_tokens: int = 128,
                  sampling: Sampling = Sampling(),  # noqa: B008
                  stops: Sequence[str] = (), ignore_eos: bool = False) -> Iterator[Event]:
    """`generate` from text to text. An empty prompt is refused even where the tokenizer would begin it with a token."""
    if not prompt:
        raise MerinoError("the prompt is empty. Give at least one word to go on from.")
    return generate(backend, tokenizer.encode(prompt), max_new_tokens=max_new_tokens, sampling=sampling,
                    eos_id=None if ignore_eos else bundle.eos_id, stream=TextStream(tokenizer, stops))


def _run(backend: Backend, prompt_ids: Sequence[int], max_new_tokens: int, sampler: Sampler,
         eos_id: Optional[int], stream: Optional[TextStream]) -> Iterator[Event]:
    step_ms: List[float] = []
    prefill_tokens = 0
    token_id, stop_reason = -1, ""
    while not stop_reason:
        start = time.perf_counter()
        if step_ms:
            logits = backend.step(token_id)  # [vocab]
        else:
            rest = keep_shared(backend, prompt_ids)
            prefill_tokens, logits = len(rest), backend.prefill(rest)
        token_id = sampler.choose(logits)
        is_eos = token_id == eos_id
        text = stream.push(token_id) if stream and not is_eos else ""
        step_ms.append(1000 * (time.perf_counter() - start))
        count = len(step_ms)
        if is_eos:
            stop_reason = "eos"
        elif stream and stream.stopped:
            stop_reason = "stop"
        elif count >= max_new_tokens:
            stop_reason = "length"
        elif len(prompt_ids) + count >= backend.context:
            stop_reason = "context"
        if stop_reason and stream:
            text += stream.finish()
        yield Token(token_id, text)
    yield done(step_ms, stop_reason, prefill_tokens)


def keep_shared(backend: Backend, ids: Sequence[int]) -> Sequence[int]:
    """Cuts the cache to the beginning that it shares with ids -> the rest of ids, to prefill: at least the
    last one, without which there are no logits."""
    most = min(backend.length, len(ids) - 1)
    shared = next((place for place in range(most) if backend.ids[place] != ids[place]), most)
    if not backend.extends_fast and 2 * shared < len(ids):
        shared = 0
    backend.truncate(shared)
    return ids[shared:]


def done(step_ms: Sequence[float], stop_reason: str, prefill_tokens: int) -> Done:
    """step_ms: of the prefill, then of each decode step."""
    decode_ms = step_ms[1:]
    return Done(tokens=len(step_ms), prefill_tokens=prefill_tokens, prefill_ms=step_ms[0],
                decode_ms_p50=statistics.median(decode_ms) if decode_ms else None,
                tok_s=1000 * len(decode_ms) / sum(decode_ms) if decode_ms else None,
                peak_rss_mb=peak_rss_mb(), stop_reason=stop_reason)
