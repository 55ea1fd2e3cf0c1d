"""Events of an answer on their way from the models' thread to the task that writes them."""
import collections
import contextlib
from typing import Any, Deque, List, Optional, Tuple

from merino_runtime.serving.asks import Event


class LeftError(Exception):
    """The client has closed its connection, or takes nothing of what is written."""


class Events:
    """Of one answer. A token wakes the task once: on a board, each turn of asyncio's loop costs as much as the token's
    JSON."""

    def __init__(self, loop: Any) -> None:
        self._loop, self._left, self._called, self._late = loop, False, False, False
        self._found: Deque[Tuple[int, Event]] = collections.deque()
        self._waiter: Any = None

    def put(self, place: int, event: Event) -> None:
        """From another thread."""
        self._found.append((place, event))
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

    def take(self) -> List[Tuple[int, Event]]:
        """Those that there are now. More may come as fast as they are taken, and other connections wait."""
        return [self._found.popleft() for _ in range(len(self._found))]

    async def wait(self, timeout_s: Optional[float]) -> None:
        """Until there is one, or for so long. Raises LeftError."""
        self._late = False
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, self._end_wait)
        while not (self._found or self._left or self._late):  # what woke it may have been taken already
            self._waiter = self._loop.create_future()
            await self._waiter
        if timer is not None:
            timer.cancel()
        if self._left:
            raise LeftError
