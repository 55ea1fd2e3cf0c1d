"""KV caches over one set of weights. A request gets the one with which it shares the longest prefix.

A request that goes on where a slot ends, or that changes less than half of it, takes the slot over. Another one gets
the slot that was used longest ago, with a copy of the prefix that it shares with any slot, so that two chats with
one system message live side by side. A slot whose answer was streamed goes last, for a while: a client may ask for a
title, tags and follow-ups behind each answer, none of which is a stream. Background requests have a slot of their own.
"""
import time
from typing import List, Optional, Sequence, Tuple

from merino_runtime.api import LanguageModel
from merino_runtime.backends.backend import Backend

WORTH_A_COPY = 16  # ids: fewer are computed again as fast
WATCHED_S = 900.0  # so long a streamed answer is likely to be gone on with


class Slot:
    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.busy = False
        self.watched = False
        self.used_s = 0.0

    @property
    def ids(self) -> List[int]:
        return self.backend.ids


class Slots:
    """Of one model, used by one thread. count: for requests of people; one more is for background requests."""

    def __init__(self, model: LanguageModel, count: int) -> None:
        self.model, self.count = model, count
        *persons, background = model.backend.rows(count + 1)
        self.persons, self.background = [Slot(each) for each in persons], [Slot(background)]
        model.backend.close()

    def take(self, ids: Sequence[int], background: bool, watched: bool = False) -> Optional[Slot]:
        """A slot for a prompt, busy from now on; None where all are."""
        free = [slot for slot in (self.background if background else self.persons) if not slot.busy]
        if not free:
            return None
        slot = max(free, key=lambda each: shared(each.ids, ids))
        if not _goes_on(slot, ids):
            slot = next((each for each in free if not each.ids), None) or min(free, key=_turn)
            self._copy_prefix(slot, ids)
        slot.busy, slot.watched, slot.used_s = True, watched, time.monotonic()
        return slot

    def _copy_prefix(self, slot: Slot, ids: Sequence[int]) -> None:
        """From the slot that shares the most with the prompt, whoever uses it."""
        others = [other for other in [*self.persons, *self.background] if other is not slot]
        source = max(others, key=lambda other: shared(other.ids, ids), default=None)
        if source is None or shared(source.ids, ids) < shared(slot.ids, ids) + WORTH_A_COPY:
            return
        slot.backend.copy_prefix(source.backend, shared(source.ids, ids))

    def give(self, slot: Slot) -> None:
        slot.busy, slot.used_s = False, time.monotonic()

    def close(self) -> None:
        for slot in [*self.persons, *self.background]:
            slot.backend.close()


def _turn(slot: Slot) -> Tuple[bool, float]:
    """The least of all slots is emptied first."""
    return slot.watched and time.monotonic() - slot.used_s < WATCHED_S, slot.used_s


def _goes_on(slot: Slot, ids: Sequence[int]) -> bool:
    """Whether at least half of what the slot holds is a prefix of the prompt."""
    return bool(slot.ids) and 2 * shared(slot.ids, ids) >= len(slot.ids)


def shared(ids: Sequence[int], others: Sequence[int]) -> int:
    """Number of ids with which both begin."""
    most = min(len(ids), len(others))
    return next((index for index in range(most) if ids[index] != others[index]), most)
