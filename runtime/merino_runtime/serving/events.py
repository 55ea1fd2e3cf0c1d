"""Events of an answer on their way from the models' thread to the task that writes them."""
import collections
import contextlib
from typing import Any, Deque, List, Optional, Tuple

from merino_runtime.serving.requests import Ended, Event, Failed, Piece

STREAM_S, WHOLE_S = 0.05, 0.25  # between two writes of a stream, two looks at an answer that is written whole


class LeftError(Exception):
    """The client has closed its connection, or takes nothing of what is written."""


class Events:
    """Of one answer. The first event and the first token wake the task at once. Then it sleeps for `gather_s`, and the
    events of that time go into one write: where a step has all the cores, each wake of the task delays a step."""

    def __init__(self, loop: Any) -> None:
        self.gather_s = STREAM_S
        self._loop, self._left, self._late = loop, False, False
        self._called = False  # to wake the task
        self._gathers = False  # a timer will wake it
        self._begun = False  # there was a token
        self._at_once = False  # what is there is the first token or ends a choice, and goes out at once
        self._queue: Deque[Tuple[int, Event]] = collections.deque()
        self._waiter: Any = None

    def put(self, index: int, event: Event) -> None:
        """From another thread."""
        self._queue.append((index, event))
        first = isinstance(event, Piece) and not self._begun
        self._begun = self._begun or first
        self._at_once = self._at_once or first or isinstance(event, (Ended, Failed))
        if self._at_once or not self._gathers:
            self._call()

    def _call(self) -> None:
        if not self._called:
            self._called = True
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits any more
                self._loop.call_soon_threadsafe(self._wake)

    def leave(self, *_: Any) -> None:
        """The client has."""
        self._left = True
        self._wake()

    def _wake(self) -> None:
        self._called = False  # before the task takes what there is: what comes later wakes it again
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end_wait(self) -> None:
        self._late = True
        self._wake()

    def _end_gathering(self) -> None:
        self._gathers = False  # before it looks: what comes later calls
        if self._queue:
            self._wake()

    def take(self) -> List[Tuple[int, Event]]:
        """Those that there are now. More may come as fast as they are taken, and other connections wait."""
        self._at_once = False
        events: List[Tuple[int, Event]] = []
        for _ in range(len(self._queue)):
            index, event = self._queue.popleft()
            if events and events[-1][0] == index:
                both = together(events[-1][1], event)
                if both is not None:
                    events[-1] = index, both
                    continue
            events.append((index, event))
        if not self._gathers:
            self._gathers = True
            self._loop.call_later(self.gather_s, self._end_gathering)
        return events

    async def wait(self, timeout_s: Optional[float]) -> None:
        """Until there is something to write, or for so long. Raises LeftError."""
        self._late = False
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, self._end_wait)
        while not (self._left or self._late or self._queue and (self._at_once or not self._gathers)):
            self._waiter = self._loop.create_future()
            await self._waiter
        if timer is not None:
            timer.cancel()
        if self._left:
            raise LeftError


def together(one: Event, other: Event) -> Optional[Piece]:
    """Joins two tokens of which only the text is written: the JSON of each token is what costs most in a write."""
    for each in (one, other):
        if not isinstance(each, Piece) or each.id is None or each.likely is not None or each.of_prompt:
            return None
    assert isinstance(one, Piece) and isinstance(other, Piece)
    return Piece(other.id, one.text + other.text, tokens=one.tokens + other.tokens)
