"""Passes events of a completion from the models' thread to the task that writes them."""
import collections
import contextlib
from typing import Any, Deque, List, Optional, Tuple

from merino_runtime.serving.requests import Event, Failed, Finished, TextChunk

STREAM_S, WHOLE_S = 0.05, 0.25  # between two writes of a stream; between two looks at a response that is not streamed


class LeftError(Exception):
    """The client closed its connection, or stopped reading."""


class Events:
    """The events of one response. The first event and the first token wake the task at once. Then it sleeps for
    `gather_s`, and the events of that time are written together: a step uses all cores, so each wake delays a step."""

    def __init__(self, loop: Any) -> None:
        self.gather_s = STREAM_S
        self._loop, self._left, self._late = loop, False, False
        self._called = False  # to wake the task
        self._gathers = False  # a timer will wake it
        self._has_token = False
        self._at_once = False  # an event waits that is written at once: the first token, or the end of a choice
        self._queue: Deque[Tuple[int, Event]] = collections.deque()
        self._waiter: Any = None

    def put(self, index: int, event: Event) -> None:
        """Add an event, from another thread."""
        self._queue.append((index, event))
        first = isinstance(event, TextChunk) and not self._has_token
        self._has_token = self._has_token or first
        self._at_once = self._at_once or first or isinstance(event, (Finished, Failed))
        if self._at_once or not self._gathers:
            self._call()

    def _call(self) -> None:
        if not self._called:
            self._called = True
            with contextlib.suppress(RuntimeError):  # the loop has ended, and no task waits
                self._loop.call_soon_threadsafe(self._wake)

    def leave(self, *_: Any) -> None:
        """Record that the client left."""
        self._left = True
        self._wake()

    def _wake(self) -> None:
        self._called = False  # before the task takes the events: later ones wake it again
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end_wait(self) -> None:
        self._late = True
        self._wake()

    def _end_gathering(self) -> None:
        self._gathers = False  # before the check: a later event calls
        if self._queue:
            self._wake()

    def take(self) -> List[Tuple[int, Event]]:
        """Return the events so far. Later ones stay in the queue: they may arrive as fast as they are taken, and other
        connections wait."""
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
        """Wait until there is something to write, or the time is over. Raise LeftError."""
        self._late = False
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, self._end_wait)
        while not (self._left or self._late or self._queue and (self._at_once or not self._gathers)):
            self._waiter = self._loop.create_future()
            await self._waiter
        if timer is not None:
            timer.cancel()
        if self._left:
            raise LeftError


def together(first: Event, second: Event) -> Optional[TextChunk]:
    """Join two tokens if only their text is written, because the JSON of a token is the largest cost of a write; else
    return None."""
    for event in (first, second):
        if not isinstance(event, TextChunk) or event.id is None or event.logprobs is not None or event.of_prompt:
            return None
    assert isinstance(first, TextChunk) and isinstance(second, TextChunk)
    return TextChunk(second.id, first.text + second.text, tokens=first.tokens + second.tokens)
