"""A chat with a model on a board, with the interface of `merino_runtime.chat.conversation.ChatSession`.

The board runs `chat --json`. The connection lives in a thread with its own event loop, so that ctrl-C interrupts
whoever waits for an event here, and not the connection.
"""

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from merino_edge.delivery.ssh.command import TRY_THERE, Session, answer, give
from merino_runtime.chat.session import STOP
from merino_runtime.errors import MerinoError
from merino_runtime.io.visible import visible_text

Serve = Callable[[Session], Awaitable[None]]


class Remote:
    """An open session, and the loop that it belongs to."""

    def __init__(self, session: Session, loop: asyncio.AbstractEventLoop) -> None:
        self.session, self.loop = session, loop
        self._coming: Future[Any] | None = None  # an event that was waited for when ctrl-C came

    def send(self, line: str) -> None:
        self.loop.call_soon_threadsafe(give, self.session, (line + "\n").encode("utf-8", "replace"))

    def receive(self) -> dict[str, Any]:
        """Return the board's next event. Raise MerinoError if there is none, or if it is an error."""
        self._coming = self._coming or asyncio.run_coroutine_threadsafe(answer(self.session), self.loop)
        try:
            event = self._coming.result()
        except KeyboardInterrupt:
            raise
        except BaseException:
            self._coming = None
            raise
        self._coming = None
        if not isinstance(event, dict):
            raise self.session.fault(f"the board answered with no event. {TRY_THERE}")
        if "error" in event:
            raise MerinoError(visible_text(str(event["error"])))
        return event


@contextmanager
def opened(work: Callable[[Serve], Any]) -> Iterator[Remote]:
    """Run `work` in a thread. `work` awaits its argument with the session, until the body ends. Raise MerinoError if no
    session starts, and in the body if it breaks."""
    ready: queue.Queue[Remote | BaseException] = queue.Queue()
    over: list[asyncio.Event] = []

    async def serve(session: Session) -> None:
        over.append(asyncio.Event())
        ready.put(Remote(session, asyncio.get_running_loop()))
        await over[0].wait()

    def run() -> None:
        try:
            work(serve)
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    remote = ready.get()
    if not isinstance(remote, Remote):
        raise remote
    try:
        yield remote
    finally:
        remote.loop.call_soon_threadsafe(over[0].set)
        thread.join()


class RemoteChat:
    """The chat on the board. `greeting`: the first event, with the bundle's name."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self.greeting = remote.receive()
        self.system: str | None = self.greeting.get("system")
        self._answering = False

    def set_system(self, system: str | None) -> None:
        self._remote.send(f"/system {system or ''}")
        self._remote.receive()
        self.system = system

    def reset(self) -> None:
        self._remote.send("/reset")
        self._remote.receive()

    def answer(self, text: str, stopped: Callable[[], bool] = lambda: False) -> Iterator[dict[str, Any]]:
        self._remote.send(f"/{text}" if text.startswith("/") else text)
        self._answering = True
        return self._events(stopped)

    def _events(self, stopped: Callable[[], bool]) -> Iterator[dict[str, Any]]:
        stop_sent = False
        while self._answering:
            if stopped() and not stop_sent:
                self._remote.send(STOP)
                stop_sent = True
            yield self._next()

    def _next(self) -> dict[str, Any]:
        try:
            event = self._remote.receive()
        except MerinoError:
            self._answering = False
            raise
        self._answering = "done" not in event
        return {key: visible_text(value) if key == "text" else value for key, value in event.items()}

    def interrupted(self) -> list[dict[str, Any]]:
        if not self._answering:
            return []
        self._remote.send(STOP)
        events = []
        while self._answering:
            events.append(self._next())
        return events
