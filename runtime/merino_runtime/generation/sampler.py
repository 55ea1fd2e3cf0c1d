"""Samples the next token from logits, in numpy. Knows nothing of text, models or time.

The order is repetition penalty, presence and frequency penalties, DRY, logit bias, temperature, top-k, top-p, min-p, as
in transformers. Each cut works on the tokens that the one before kept. llama.cpp applies the temperature last, so its
top-p and min-p keep other tokens at temperatures other than 1. top-k keeps the k likeliest tokens, top-p the fewest
whose probabilities sum to p or more, min-p those with at least min_p times the probability of the likeliest. Equal
logits are cut in a fixed, otherwise arbitrary order, so that top-k keeps k tokens; transformers keeps all that equal
the k-th."""
from collections import Counter
from typing import Dict, Iterable, List, Optional, Tuple

import numpy as np

from merino_runtime.errors import MerinoError
from merino_runtime.sampling import Sampling

FIRST_LOOK = 256  # number of candidates sorted first if top_k is off
LONGEST_SEQUENCE = 50  # ids of a repetition that DRY counts; longer ones are penalized as this
MOST_PLACES = 256  # of the last id, at which DRY looks for a repetition
FEW = 4  # if at most one in FEW tokens is allowed, nothing is computed for the others


def penalize(logits: np.ndarray, seen_ids: np.ndarray, penalty: float) -> np.ndarray:
    """Apply the repetition penalty of CTRL (arXiv 1909.05858), as transformers does: divide positive logits of seen
    tokens and multiply negative ones, so that both become less likely.

    logits [vocab], seen_ids [n] without repeats -> a changed copy [vocab].
    """
    logits = logits.astype(np.float64)
    seen = logits[seen_ids]
    logits[seen_ids] = np.where(seen > 0, seen / penalty, seen * penalty)
    return logits


def candidates(logits: np.ndarray, sampling: Sampling) -> Tuple[np.ndarray, np.ndarray]:
    """Apply the cuts: logits [vocab] -> ids [n] and their probabilities [n], likeliest first, summing to 1."""
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
    """Return the log softmax [vocab] of logits [vocab], in float64."""
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


class Sampler:
    """The state of one generation: its random stream, and the seen ids for the penalties."""

    def __init__(self, sampling: Sampling, prompt_ids: Iterable[int] = (), breakers: Iterable[int] = ()) -> None:
        """breakers: ids at which DRY ends a sequence."""
        self._sampling = sampling
        self._repetitions = Repetitions(prompt_ids, breakers) if sampling.dry_multiplier else None
        self._random = np.random.RandomState(sampling.seed)
        self._seen = set(prompt_ids)
        self._chosen = Counter()  # type: Counter[int]
        self._bias_ids = np.array([token_id for token_id, _ in sampling.logit_bias], dtype=np.int64)
        self._bias = np.array([bias for _, bias in sampling.logit_bias], dtype=np.float64)

    def sample(self, logits: np.ndarray, allowed: Optional[np.ndarray] = None) -> int:
        """Sample an id from logits [vocab] and count it as seen. The backend has checked that they are finite. allowed
        [n] of bool: only these ids; ids from n on are not allowed."""
        if self._sampling.repetition_penalty != 1 and self._seen:
            seen_ids = np.fromiter(self._seen, dtype=np.int64, count=len(self._seen))
            logits = penalize(logits, seen_ids, self._sampling.repetition_penalty)
        logits = self._shifted(logits)
        ids = None
        if allowed is not None:
            logits, ids = _only(logits, allowed)
        sampling = self._sampling
        if sampling.temperature == 0:
            chosen = int(np.argmax(logits))
        elif 0 < sampling.top_k < len(logits) or sampling.top_p < 1 or sampling.min_p > 0:
            kept, probabilities = candidates(logits, sampling)
            chosen = int(kept[_drawn(probabilities, self._random.random_sample())])
        else:  # without cuts the order does not matter, and nothing is sorted
            chosen = _drawn(_weights(logits, sampling.temperature), self._random.random_sample())
        chosen = chosen if ids is None else int(ids[chosen])
        self.note(chosen)
        return chosen

    def note(self, token_id: int) -> None:
        """Count an id as generated that was not sampled here."""
        self._seen.add(token_id)
        if self._repetitions:
            self._repetitions.append(token_id)
        self._chosen[token_id] += 1

    def _shifted(self, logits: np.ndarray) -> np.ndarray:
        """Apply the presence and frequency penalties, DRY and the bias -> a changed copy; `logits` if there are none.
        """
        presence, frequency = self._sampling.presence_penalty, self._sampling.frequency_penalty
        if (presence or frequency) and self._chosen:
            ids = np.fromiter(self._chosen.keys(), dtype=np.int64, count=len(self._chosen))
            counts = np.fromiter(self._chosen.values(), dtype=np.float64, count=len(self._chosen))
            logits = logits.astype(np.float64)
            logits[ids] -= presence + frequency * counts
        lengths = self._repetitions.lengths(self._sampling.dry_allowed_length) if self._repetitions else {}
        if lengths:
            ids = np.fromiter(lengths.keys(), dtype=np.int64, count=len(lengths))
            longer = np.fromiter(lengths.values(), dtype=np.float64, count=len(lengths))
            logits = logits.astype(np.float64)
            logits[ids] -= self._sampling.dry_multiplier * self._sampling.dry_base ** (
                longer - self._sampling.dry_allowed_length)
        if len(self._bias_ids):
            logits = logits.astype(np.float64)
            logits[self._bias_ids] += self._bias
        return logits


class Repetitions:
    """The text so far, for DRY ("don't repeat yourself", by p-e-w): which next ids would repeat a sequence of it.

    A sequence does not reach over a breaker, such as a line end. llama.cpp has the same penalties.
    """

    def __init__(self, ids: Iterable[int], breakers: Iterable[int]) -> None:
        self._ids: List[int] = []
        self._places: Dict[int, List[int]] = {}  # of each id that is no breaker
        self._breakers = frozenset(breakers)
        for token_id in ids:
            self.append(token_id)

    def append(self, token_id: int) -> None:
        if token_id not in self._breakers:
            self._places.setdefault(token_id, []).append(len(self._ids))
        self._ids.append(token_id)

    def lengths(self, least: int) -> Dict[int, int]:
        """Return the length of the longest repeated sequence that each next id would continue, if it is `least` or
        more."""
        ids, breakers = self._ids, self._breakers
        found: Dict[int, int] = {}
        last = len(ids) - 1
        for place in self._places.get(ids[last], ())[-MOST_PLACES:] if ids else ():
            following = ids[place + 1] if place < last else None
            if following is None or following in breakers:
                continue
            length = 1
            while (length < min(LONGEST_SEQUENCE, place + 1) and ids[place - length] == ids[last - length]
                   and ids[last - length] not in breakers):
                length += 1
            if length >= least:
                found[following] = max(length, found.get(following, 0))
        return found


def _only(logits: np.ndarray, allowed: np.ndarray) -> Tuple[np.ndarray, Optional[np.ndarray]]:
    """Return the logits of the allowed ids and these ids; if they are many, all logits with the others at -inf, None.
    """
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


def _drawn(weights: np.ndarray, uniform: float) -> int:
    """Draw an index by inverse transform sampling: weights [n] of any sum, uniform in [0, 1)."""
    sums = np.cumsum(weights)
    index = int(np.searchsorted(sums, uniform * sums[-1], side="right"))
    # The product may round up to the last sum; then the last index with a weight is drawn.
    return index if index < len(sums) else int(np.flatnonzero(weights)[-1])


def _weights(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return probabilities relative to the largest: logits [n] -> [n] in 0..1.

    The maximum is subtracted before the division, so that a tiny temperature gives zeros and never inf / inf.
    """
    with np.errstate(over="ignore", under="ignore"):
        return np.exp((logits.astype(np.float64) - np.max(logits)) / temperature)


def _likeliest(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the ids [count] of the highest scores [vocab], best first. Only `count` ids are sorted."""
    if count < len(scores):
        near = np.flatnonzero(scores >= _floor(scores, count))
        ids = np.sort(near[np.argpartition(scores[near], -count)[-count:]])
    else:
        ids = np.arange(len(scores))
    return ids[np.argsort(-scores[ids], kind="stable")]


def _floor(scores: np.ndarray, count: int) -> float:
    """Return a lower bound of the `count` highest scores [vocab] that few others reach. Partitioning only the scores
    above it is five times as fast as partitioning all.

    The scores are laid out in 8 * count columns. The `count`-th largest of the columns' maxima is such a bound, since
    `count` columns have a maximum at or above it.
    """
    columns = min(8 * count, len(scores))
    rows = len(scores) // columns
    maxima = scores[:rows * columns].reshape(rows, columns).max(axis=0)  # [columns]
    return np.partition(maxima, -count)[-count]


def _enough(weights: np.ndarray, total: float, sampling: Sampling) -> int:
    """Return an upper bound of the number of tokens that top-p and min-p keep: multiply by 8 until it suffices."""
    count = FIRST_LOOK
    while count < len(weights):
        top = np.partition(weights, -count)[-count:]  # [count]
        if top.sum() >= sampling.top_p * total or top.min() < sampling.min_p:
            return count
        count *= 8
    return len(weights)
