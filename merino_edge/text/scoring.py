"""Compute log-likelihoods of ids by a bundle in the board's runtime."""

from collections.abc import Iterator, Sequence

import numpy as np

from merino_runtime.backends.backend import Backend


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
