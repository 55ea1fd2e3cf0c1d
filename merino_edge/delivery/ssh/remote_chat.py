"""A chat with a model on a board, with the interface of `merino_runtime.chat.conversation.ChatSession`.

The board runs `chat --json`. The connection has a thread with its own event loop, so that ctrl-C interrupts whoever
waits for an event here, and not the connection.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any

from merino_edge.delivery.ssh.command import TRY_THERE, Session, answer, give
from merino_runtime.chat.session import STOP
from merino_runtime.errors import MerinoError
from merino_runtime.io.streams import visible_text


@contextmanager
def opened(session: AbstractAsyncContextManager[Session]) -> Iterator["RemoteChat"]:
    """Open the session in a thread, and close it at the end. Raise MerinoError if it does not start, and in the body if
    it breaks."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def result_of(step: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(step, loop).result()

    chat = RemoteChat(result_of(session.__aenter__()), loop)
    try:
        yield chat
    finally:
        result_of(session.__aexit__(None, None, None))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


class RemoteChat:
    """The chat on the board. `greeting`: the first event, with the bundle's name."""

    def __init__(self, session: Session, loop: asyncio.AbstractEventLoop) -> None:
        self._session, self._loop = session, loop
        self._coming: Future[Any] | None = None  # an event that was waited for when ctrl-C came
        self._answering = False
        self.greeting = self._receive()
        self.system: str | None = self.greeting.get("system")

    def _send(self, line: str) -> None:
        self._loop.call_soon_threadsafe(give, self._session, (line + "\n").encode("utf-8", "replace"))

    def _receive(self) -> dict[str, Any]:
        """Return the board's next event. Raise MerinoError if there is none, or if it is an error."""
        self._coming = self._coming or asyncio.run_coroutine_threadsafe(answer(self._session), self._loop)
        try:
            event = self._coming.result()
        except KeyboardInterrupt:
            raise
        except BaseException:
            self._coming = None
            raise
        self._coming = None
        if not isinstance(event, dict):
            raise self._session.fault(f"the board answered with no event. {TRY_THERE}")
        if "error" in event:
            raise MerinoError(visible_text(str(event["error"])))
        return event

    def set_system(self, system: str | None) -> None:
        self._send(f"/system {system or ''}")
        self._receive()
        self.system = system

    def reset(self) -> None:
        self._send("/reset")
        self._receive()

    def answer(self, text: str, stopped: Callable[[], bool] = lambda: False) -> Iterator[dict[str, Any]]:
        self._send(f"/{text}" if text.startswith("/") else text)
        self._answering = True
        return self._events(stopped)

    def _events(self, stopped: Callable[[], bool]) -> Iterator[dict[str, Any]]:
        stop_sent = False
        while self._answering:
            if stopped() and not stop_sent:
                self._send(STOP)
                stop_sent = True
            yield self._next()

    def _next(self) -> dict[str, Any]:
        try:
            event = self._receive()
        except MerinoError:
            self._answering = False
            raise
        self._answering = "done" not in event
        return {key: visible_text(value) if key == "text" else value for key, value in event.items()}

    def interrupted(self) -> list[dict[str, Any]]:
        if not self._answering:
            return []
        self._send(STOP)
        events = []
        while self._answering:
            events.append(self._next())
        return events
