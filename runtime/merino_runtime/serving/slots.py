"""KV caches over one set of weights. A request gets the slot with which it shares the longest prefix.

If a prompt extends a cached prefix, or changes less than half of it, its request reuses that slot. Other requests get
the least recently used slot, with a copy of the prefix that they share with any slot, so that two chats with the same
system message coexist. For a while a slot whose response was streamed is taken last: after each answer a client may
request a title, tags and follow-ups, which are not streamed. Background requests have a slot of their own.
"""
import time
from typing import List, Optional, Sequence, Tuple

from merino_runtime.api import LanguageModel
from merino_runtime.backends.backend import Backend

WORTH_A_COPY = 16  # ids; computing fewer again is as fast
WATCHED_S = 900.0  # a chat is likely to continue within this time


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
    """The slots of one model, used by one thread. count: slots for interactive requests; one more is for background
    requests."""

    def __init__(self, model: LanguageModel, count: int) -> None:
        self.model, self.count = model, count
        *persons, background = model.backend.rows(count + 1)
        self.persons, self.background = [Slot(backend) for backend in persons], [Slot(background)]
        model.backend.close()

    def take(self, ids: Sequence[int], background: bool, watched: bool = False) -> Optional[Slot]:
        """Return a slot for a prompt and mark it busy; None if all are."""
        free = [slot for slot in (self.background if background else self.persons) if not slot.busy]
        if not free:
            return None
        slot = max(free, key=lambda candidate: shared(candidate.ids, ids))
        if not _continues(slot, ids):
            slot = next((candidate for candidate in free if not candidate.ids), None) or min(free, key=_turn)
            self._copy_prefix(slot, ids)
        slot.busy, slot.watched, slot.used_s = True, watched, time.monotonic()
        return slot

    def _copy_prefix(self, slot: Slot, ids: Sequence[int]) -> None:
        """Copy a prefix from the slot that shares the most with the prompt, busy or not."""
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
    """Order slots by when they are emptied, the smallest first."""
    return slot.watched and time.monotonic() - slot.used_s < WATCHED_S, slot.used_s


def _continues(slot: Slot, ids: Sequence[int]) -> bool:
    """Return whether at least half of the slot's ids are a prefix of the prompt."""
    return bool(slot.ids) and 2 * shared(slot.ids, ids) >= len(slot.ids)


def shared(ids: Sequence[int], others: Sequence[int]) -> int:
    """Return the length of the common prefix."""
    most = min(len(ids), len(others))
    return next((index for index in range(most) if ids[index] != others[index]), most)
