"""Connections: uvicorn's protocol with bounds on times and numbers, and for clients that end only their own side; and
the events of a completion on their way from the models' thread to the task that writes them."""
import asyncio
import collections
import contextlib
import time
from typing import Any, Deque, List, Optional, Tuple

from merino_runtime.bundle.requirements import require
from merino_runtime.serving.access import network_of
from merino_runtime.serving.requests import Event, Failed, Finished, TextChunk

REQUIREMENTS = ["uvicorn>=0.16"]
MOST_CONNECTIONS = 512  # more get status 503
MOST_OF_NETWORK = 128  # of one address; idle ones are closed for new ones
HEADER_S = 30.0  # for the headers of a request to arrive
IDLE_S = 75.0  # between two requests of a connection
WRITE_S = 60.0  # for a client to read a write
PROBE_S = 3.0  # between two looks at whether a client that ended its own side is still there
STREAM_S, WHOLE_S = 0.05, 0.25  # between two writes of a stream; between two looks at a response that is not streamed
FULL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"


def protocol() -> Any:
    """Return uvicorn's protocol, which also closes connections that send no request or half of one, or read nothing."""
    base = require("uvicorn.protocols.http.h11_impl", REQUIREMENTS).H11Protocol
    h11 = require("h11", REQUIREMENTS)

    class Protocol(base):  # type: ignore[misc, valid-type]
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.network = network_of((self.client or ("",))[0])
            self.used_s = time.monotonic()  # when it was made, or when its latest response was over
            self._answered: Any = None  # the latest request of the connection that was over at the latest look
            self._silent = self.loop.call_later(HEADER_S, self._close_if_silent)
            self._full: Any = None  # timer of a client that does not read
            self._probing: Any = None  # timer of a client that ended its own side
            self._make_room()

        @property
        def idle(self) -> bool:
            return self.cycle is None or bool(self.cycle.response_complete)

        def _make_room(self) -> None:
            """Close the connection that has been idle for longest if this address has too many, or all together do: of
            the address that has the most. Refuse this one if none of its address is idle."""
            own = [other for other in self.connections if other.network == self.network]
            candidates = own if len(own) > MOST_OF_NETWORK else []
            if not candidates and len(self.connections) >= MOST_CONNECTIONS - 1:  # uvicorn refuses from the most on
                networks = [other.network for other in self.connections]
                most = max(set(networks), key=networks.count)
                candidates = [other for other in self.connections if other.network == most]
            idle = [other for other in candidates if other.idle and other is not self]
            if idle:
                oldest = min(idle, key=lambda other: float(other.used_s))
                self.connections.discard(oldest)
                oldest.transport.abort()
            elif len(own) > MOST_OF_NETWORK:
                self.transport.write(FULL)
                self.transport.close()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._full = self.loop.call_later(WRITE_S, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._full.cancel()

        def eof_received(self) -> Optional[bool]:
            """Keep the connection of a client that ended its own side until its request is answered."""
            if self.idle or self.cycle.more_body:
                return None
            self._probe(PROBE_S / 30)  # the first write to a client that left is answered, the second one fails
            return True

        def _probe(self, again_s: float = PROBE_S) -> None:
            """Send an interim response while there is no response: a client that left altogether resets the
            connection."""
            if self.conn.our_state is h11.SEND_RESPONSE and self.scope["http_version"] != "1.0":
                interim = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
                self.transport.write(self.conn.send(interim))
            self._probing = self.loop.call_later(again_s, self._probe)

        def on_response_complete(self) -> None:
            self.used_s = time.monotonic()
            super().on_response_complete()
            if self._probing is not None and self.idle:  # no request is left
                self.transport.close()

        def connection_lost(self, exc: Any) -> None:
            for timer in (self._silent, self._full, self._probing):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)
            if self.timeout_keep_alive_task is not None:  # else a connection that was reset stays in memory for IDLE_S
                self.timeout_keep_alive_task.cancel()

        def _close_if_silent(self) -> None:
            """uvicorn closes an idle connection, but not one that sends a byte now and then."""
            if self.idle and self.cycle is self._answered:
                self.transport.abort()
                return
            self._answered = self.cycle if self.idle else self
            self._silent = self.loop.call_later(IDLE_S + 1, self._close_if_silent)

    return Protocol


class LeftError(Exception):
    """The client closed its connection, or stopped reading."""


class Events:
    """The events of one response. The first event and the first token wake the task at once. Then it sleeps for
    `gather_s`, and the events of that time are written together: a step uses all cores, so each wake delays a step."""

    def __init__(self, loop: Any) -> None:
        self.gather_s = STREAM_S
        self._loop, self._left = loop, False
        self._queue: Deque[Tuple[int, Event]] = collections.deque()
        self._has_token = False
        self._at_once = False  # an event waits that is written at once: the first token, or the end of a choice
        self._gathers = False  # only such an event wakes the task
        self._called = False  # to wake the task
        self._awake = asyncio.Event()

    def put(self, index: int, event: Event) -> None:
        """Add an event, from another thread."""
        self._queue.append((index, event))
        first = isinstance(event, TextChunk) and not self._has_token
        self._has_token = self._has_token or first
        self._at_once = self._at_once or first or isinstance(event, (Finished, Failed))
        if (self._at_once or not self._gathers) and not self._called:
            self._called = True
            with contextlib.suppress(RuntimeError):  # the loop has ended, and no task waits
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._called = False  # before the task takes the events: later ones wake it again
        self._awake.set()

    def leave(self, *_: Any) -> None:
        """Record that the client left."""
        self._left = True
        self._awake.set()

    def take(self) -> List[Tuple[int, Event]]:
        """Return the events so far. Later ones stay in the queue: they may arrive as fast as they are taken, and other
        connections wait."""
        self._at_once, self._gathers = False, True
        events: List[Tuple[int, Event]] = []
        for _ in range(len(self._queue)):
            index, event = self._queue.popleft()
            both = together(events[-1][1], event) if events and events[-1][0] == index else None
            if both is None:
                events.append((index, event))
            else:
                events[-1] = index, both
        return events

    async def wait(self, timeout_s: Optional[float]) -> None:
        """Wait until there is something to write, or the time is over. Raise LeftError."""
        if self._gathers and not self._at_once:
            await self._sleep(self.gather_s)
        self._gathers = False  # before the check: a later event wakes the task
        if not self._queue:
            await self._sleep(timeout_s)
        if self._left:
            raise LeftError

    async def _sleep(self, timeout_s: Optional[float]) -> None:
        self._awake.clear()
        if not self._left:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._awake.wait(), timeout_s)


def together(first: Event, second: Event) -> Optional[TextChunk]:
    """Join two tokens if only their text is written, because the JSON of a token is the largest cost of a write; else
    return None."""
    for event in (first, second):
        if not isinstance(event, TextChunk) or event.id is None or event.logprobs is not None or event.of_prompt:
            return None
    assert isinstance(first, TextChunk) and isinstance(second, TextChunk)
    return TextChunk(second.id, first.text + second.text, tokens=first.tokens + second.tokens)
