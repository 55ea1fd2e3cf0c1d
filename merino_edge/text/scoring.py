"""Compute log-likelihoods of ids by a bundle in the board's runtime."""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from merino_runtime.api import LanguageModel
from merino_runtime.backends.backend import Backend
from merino_runtime.bundle import returns_all_logits

SLOW_S = 10


def logits_behind(backend: Backend, ids: Sequence[int], first: int) -> Iterator[np.ndarray]:
    """Yield logits [m, vocab] after each of `ids` from ids[first] on. Ids that the cache holds are not computed
    again."""
    most = min(first, backend.length)
    shared = next((place for place in range(most) if backend.ids[place] != ids[place]), most)
    if not backend.extends_fast and 2 * shared < len(ids):
        shared = 0
    backend.truncate(shared)
    return backend.logits_from(first - shared, ids[shared:])


def log_likelihood(rows: Iterator[np.ndarray], targets: Sequence[int]) -> tuple[float, bool]:
    """Return the sum of the log-probabilities of `targets` by consecutive logits [m, vocab], and whether each target is
    the likeliest."""
    total, greedy, place = 0.0, True, 0
    for logits in rows:
        expected = np.array(targets[place : place + len(logits)])
        largest = logits.max(axis=1)
        sums = np.exp(logits - largest[:, None]).sum(axis=1, dtype=np.float64)
        total += float((logits[np.arange(len(expected)), expected] - largest - np.log(sums)).sum())
        greedy = greedy and bool((logits.argmax(axis=1) == expected).all())
        place += len(expected)
    assert place == len(targets), (place, len(targets))
    return total, greedy


def slow_words(model: LanguageModel, steps: int) -> str:
    """Return a note on the time of `steps` decode steps of a graph that returns only the logits of the last position;
    empty for a graph with all logits."""
    if returns_all_logits(model.bundle) or not steps:
        return ""
    runtime, name = model.backend, model.bundle.name
    runtime.truncate(0)
    runtime.step(0)
    start = time.perf_counter()
    runtime.step(0)
    seconds = time.perf_counter() - start
    if steps * seconds < SLOW_S:
        return ""
    return (
        f"{name} returns the logits of the last position alone, so {steps:,} tokens take a decode step each, of"
        f" {1000 * seconds:.1f} ms: {steps * seconds / 60:.1f} minutes. A bundle that was exported with --all-logits"
        " scores a text in one prefill, with the same figures"
    )
