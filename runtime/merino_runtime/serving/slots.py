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
    """Of one model, used by one thread. count: for requests of people; one more is made for background requests."""

    def __init__(self, model: LanguageModel, count: int) -> None:
        self.model, self.count = model, count
        self.persons = [Slot(model.backend)]
        self.background: List[Slot] = []

    def take(self, ids: Sequence[int], background: bool, watched: bool = False) -> Optional[Slot]:
        """A slot for a prompt, busy from now on; None where all are."""
        own, most = (self.background, 1) if background else (self.persons, self.count)
        free = [slot for slot in own if not slot.busy]
        slot = max(free, key=lambda each: shared(each.ids, ids), default=None)
        if slot is None or not _goes_on(slot, ids):
            slot = next((each for each in free if not each.ids), None)
            if slot is None and len(own) < most:
                slot = self._another()
                own.append(slot)
            slot = slot or min(free, key=_turn, default=None)
            if slot is None:
                return None
            self._copy_prefix(slot, ids)
        slot.busy, slot.watched, slot.used_s = True, watched, time.monotonic()
        return slot

    def _another(self) -> Slot:
        slot = Slot(self.persons[0].backend.fork())
        slot.backend.truncate(0)
        return slot

    def _copy_prefix(self, slot: Slot, ids: Sequence[int]) -> None:
        """From the slot that shares the most with the prompt, whoever uses it."""
        others = [other for other in [*self.persons, *self.background] if other is not slot]
        source = max(others, key=lambda other: shared(other.ids, ids), default=None)
        if source is None or shared(source.ids, ids) < shared(slot.ids, ids) + WORTH_A_COPY:
            return
        count = shared(source.ids, ids)
        copy = source.backend.fork()  # may fail, and then the slot is as it was
        slot.backend.close()
        slot.backend = copy
        copy.truncate(count)

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
