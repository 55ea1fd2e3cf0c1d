"""Samples the next token from logits, in numpy. Knows nothing of text, models or time.

The order is repetition penalty, presence and frequency penalties, logit bias, temperature, top-k, top-p, min-p, as in
transformers. Each cut works on what the one before kept. llama.cpp applies the temperature last, so its top-p and
min-p keep other tokens at temperatures other than 1. top-k keeps the k likeliest tokens, top-p the fewest whose
probabilities sum to p or more, min-p those with at least min_p times the probability of the likeliest. Equal logits
are cut in a fixed, otherwise arbitrary order, so that top-k keeps k tokens; transformers keeps all that equal the
k-th.
"""
from collections import Counter
from typing import Iterable, Optional, Tuple

import numpy as np

from merino_runtime.errors import MerinoError
from merino_runtime.sampling import Sampling

FIRST_LOOK = 256  # number of candidates sorted first if top_k is off
FEW = 4  # where at most this part of the vocabulary is allowed, nothing is computed for the rest


def penalize(logits: np.ndarray, seen_ids: np.ndarray, penalty: float) -> np.ndarray:
    """The repetition penalty of CTRL (arXiv 1909.05858), as in transformers: divides positive logits of seen tokens
    and multiplies negative ones, so that both become less likely.

    logits [vocab], seen_ids [n] without repeats -> a changed copy [vocab].
    """
    logits = logits.astype(np.float64)
    seen = logits[seen_ids]
    logits[seen_ids] = np.where(seen > 0, seen / penalty, seen * penalty)
    return logits


def candidates(logits: np.ndarray, sampling: Sampling) -> Tuple[np.ndarray, np.ndarray]:
    """logits [vocab] -> ids [n] and their probabilities [n], likeliest first, summing to 1."""
    if 0 < sampling.top_k < len(logits):
        ids = _likeliest(logits, sampling.top_k)
        kept = _weights(logits[ids], sampling.temperature)
        total = kept.sum()
    else:
        weights = _weights(logits, sampling.temperature)
        total = weights.sum()
        ids = _likeliest(logits, _enough(weights, total, sampling))
        kept = weights[ids]
    if sampling.top_p < 1:
        kept = kept[:np.searchsorted(np.cumsum(kept), sampling.top_p * total) + 1]
    kept = kept[kept >= sampling.min_p]  # weights are relative to the likeliest already
    return ids[:len(kept)], kept / kept.sum()


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """logits [vocab] -> log softmax [vocab] in float64."""
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


class Sampler:
    """State of one generation: its random stream, and the ids that it has seen for the penalty."""

    def __init__(self, sampling: Sampling, prompt_ids: Iterable[int] = ()) -> None:
        self._sampling = sampling
        self._random = np.random.RandomState(sampling.seed)
        self._seen = set(prompt_ids)
        self._chosen = Counter()  # type: Counter[int]
        self._bias_ids = np.array([each for each, _ in sampling.logit_bias], dtype=np.int64)
        self._bias = np.array([bias for _, bias in sampling.logit_bias], dtype=np.float64)

    def sample(self, logits: np.ndarray, allowed: Optional[np.ndarray] = None) -> int:
        """logits [vocab] -> an id, which counts as seen from then on. allowed: those ids alone, [n] of bool; ids from n
        on are not."""
        if not np.isfinite(logits).all():
            bad = int(np.argmin(np.isfinite(logits)))
            raise MerinoError(f"the model's logits are not finite (id {bad}: {logits[bad]}). The weights or "
                              "the format overflow: check with `selftest`, export in another --precision.")
        if self._sampling.repetition_penalty != 1 and self._seen:
            seen_ids = np.fromiter(self._seen, dtype=np.int64, count=len(self._seen))
            logits = penalize(logits, seen_ids, self._sampling.repetition_penalty)
        logits = self._shifted(logits)
        ids = None
        if allowed is not None:
            logits, ids = _only(logits, allowed)
        chosen = int(np.argmax(logits)) if self._sampling.temperature == 0 else self._draw(logits)
        chosen = chosen if ids is None else int(ids[chosen])
        self.note(chosen)
        return chosen

    def note(self, token_id: int) -> None:
        """Counts an id as generated that was not sampled here."""
        self._seen.add(token_id)
        self._chosen[token_id] += 1

    def _shifted(self, logits: np.ndarray) -> np.ndarray:
        """With the presence and frequency penalties, and the bias: a changed copy, or the same where there is none."""
        presence, frequency = self._sampling.presence_penalty, self._sampling.frequency_penalty
        if (presence or frequency) and self._chosen:
            ids = np.fromiter(self._chosen.keys(), dtype=np.int64, count=len(self._chosen))
            counts = np.fromiter(self._chosen.values(), dtype=np.float64, count=len(self._chosen))
            logits = logits.astype(np.float64)
            logits[ids] -= presence + frequency * counts
        if len(self._bias_ids):
            logits = logits.astype(np.float64)
            logits[self._bias_ids] += self._bias
        return logits

    def _draw(self, logits: np.ndarray) -> int:
        if _all_cuts_off(self._sampling, len(logits)):  # then the order does not matter, and nothing is sorted
            return _drawn(_weights(logits, self._sampling.temperature), self._random.random_sample())
        ids, probabilities = candidates(logits, self._sampling)
        return int(ids[_drawn(probabilities, self._random.random_sample())])


def _only(logits: np.ndarray, allowed: np.ndarray) -> Tuple[np.ndarray, Optional[np.ndarray]]:
    """Logits of the allowed ids and these ids, or, where they are many, all logits with the others at -inf."""
    allowed = allowed[:len(logits)]
    count = int(np.count_nonzero(allowed))
    if not count:
        raise MerinoError("the constraint allows no token that the model has: its tokenizer cannot write what must "
                          "follow. Use the model's own tokenizer, or another schema.")
    if FEW * count < len(logits):
        ids = np.flatnonzero(allowed)
        return logits[ids], ids
    kept = np.full(len(logits), -np.inf, dtype=logits.dtype)
    np.copyto(kept[:len(allowed)], logits[:len(allowed)], where=allowed)
    return kept, None


def _all_cuts_off(sampling: Sampling, vocab: int) -> bool:
    return not 0 < sampling.top_k < vocab and sampling.top_p == 1 and sampling.min_p == 0


def _drawn(weights: np.ndarray, uniform: float) -> int:
    """Inverse transform sampling: weights [n] of any sum, uniform in [0, 1) -> an index."""
    sums = np.cumsum(weights)
    index = int(np.searchsorted(sums, uniform * sums[-1], side="right"))
    # By rounding the product may reach the last sum; the last index with a weight is meant then.
    return index if index < len(sums) else int(np.flatnonzero(weights)[-1])


def _weights(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities relative to the largest: logits [n] -> [n] in 0..1.

    The maximum is subtracted before the division, so that a tiny temperature gives zeros and never inf / inf.
    """
    with np.errstate(over="ignore", under="ignore"):
        return np.exp((logits.astype(np.float64) - np.max(logits)) / temperature)


def _likeliest(scores: np.ndarray, count: int) -> np.ndarray:
    """Ids [count] of the highest scores [vocab], best first. Partitions the vocabulary and sorts only `count` ids."""
    if count < len(scores):
        near = np.flatnonzero(scores >= _floor(scores, count))
        ids = np.sort(near[np.argpartition(scores[near], -count)[-count:]])
    else:
        ids = np.arange(len(scores))
    return ids[np.argsort(-scores[ids], kind="stable")]


def _floor(scores: np.ndarray, count: int) -> float:
    """A lower bound of the `count` highest scores [vocab] that few others reach. Partitioning only those above it is
    five times as fast as partitioning all.

    The scores are laid out in 8 * count columns. The `count`-th largest of the columns' maxima is such a bound, since
    `count` columns have a maximum at or above it.
    """
    columns = min(8 * count, len(scores))
    rows = len(scores) // columns
    maxima = scores[:rows * columns].reshape(rows, columns).max(axis=0)  # [columns]
    return np.partition(maxima, -count)[-count]


def _enough(weights: np.ndarray, total: float, sampling: Sampling) -> int:
    """An upper bound of how many tokens top-p and min-p keep: candidates are multiplied by 8 until they suffice."""
    count = FIRST_LOOK
    while count < len(weights):
        top = np.partition(weights, -count)[-count:]  # [count]
        if top.sum() >= sampling.top_p * total or top.min() < sampling.min_p:
            return count
        count *= 8
    return len(weights)
