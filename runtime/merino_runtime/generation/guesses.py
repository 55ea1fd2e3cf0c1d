"""Guesses the next tokens from the text so far: what followed the same tokens before follows again.

This is prompt lookup, a speculation without a second model. It pays off where a text copies: code, JSON, summaries. One
run of the graph verifies the guesses (`Backend.verify`), and a wrong guess costs the time of its row. `Guesses` counts
what guesses cost and saved, in decode steps, and stops guessing when they have not paid off.
"""
from typing import Dict, List, Sequence, Tuple

MOST = 8  # guessed ids per run
ORDERS = (4, 3, 2)  # lengths of the n-grams that are looked up, longest first
# Part of a decode step that one more row costs. Boards range from 0.15 (Zero 2 W, int8) to 0.36 (Pi 4, int4).
ROW_COST = 0.36
FIRST_CREDIT = 2 * ROW_COST  # steps that guesses may cost before any was right
CREDIT_PER_TOKEN = 0.02  # steps that they may cost for each token, so that texts without copies are hardly slower
MOST_CREDIT = 3.0


class Guesses:
    """The ids of one text, and what followed each n-gram in it."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: List[int] = []
        self._next: Dict[Tuple[int, ...], int] = {}  # n-gram -> index of the id that followed it last
        self._credit, self._width, self._left = FIRST_CREDIT, 2, 0  # steps; guesses per run; guesses not sampled yet
        for token_id in ids:
            self._append(token_id)

    def append(self, token_id: int) -> None:
        """Add an id that was generated."""
        self._append(token_id)
        self._credit = min(MOST_CREDIT, self._credit + CREDIT_PER_TOKEN)

    def _append(self, token_id: int) -> None:
        ids = self._ids
        for order in ORDERS:
            if len(ids) >= order:
                self._next[tuple(ids[-order:])] = len(ids)
        ids.append(token_id)

    def next(self, most: int) -> List[int]:
        """Return up to `most` guessed ids; none if the text so far has no match, or if guesses did not pay off."""
        count = min(most, self._width, int(self._credit / ROW_COST))
        if count < 1:
            return []
        ids = self._ids
        for order in ORDERS:
            start = self._next.get(tuple(ids[-order:]), 0)
            if start:
                # A repetition that reaches the end of the text continues with its own guesses.
                period = len(ids) - start
                return [ids[start + index % period] for index in range(count)]
        return []

    def begin(self, count: int) -> None:
        """Note that a run verifies `count` guessed ids."""
        self._credit -= ROW_COST * count
        self._left, self._width = count, 1

    def right(self) -> None:
        """Note that a guessed id was right: it saves a step. The next guess is as long as the right part of this one,
        and longer if all of it was right."""
        self._credit = min(MOST_CREDIT, self._credit + 1)
        self._left -= 1
        self._width = min(MOST, self._width + (1 if self._left else 2))
