"""Connections: the listening socket, and uvicorn's protocol with timeouts for clients that send or read nothing."""
import socket
from typing import Any

from merino_runtime.bundle.requirements import require
from merino_runtime.errors import MerinoError

REQUIREMENTS = ["uvicorn>=0.16"]
HEADER_S = 30.0  # for the headers of a request to arrive
IDLE_S = 75.0  # between two requests of a connection
WRITE_S = 60.0  # for a client to read a write


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raise MerinoError if the address cannot be bound."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, number)  # asyncio sets TCP_NODELAY only if the protocol is named
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(512)
        except BaseException:
            listener.close()
            raise
        return listener
    except OSError as error:
        raise MerinoError(f"cannot serve on {host}, port {port}: {error.strerror or error}. Choose another --port or "
                          "--host, or stop what uses it.") from error


def protocol() -> Any:
    """Return uvicorn's protocol, which also closes connections that send no request or half of one, or read nothing."""
    base = require("uvicorn.protocols.http.h11_impl", REQUIREMENTS).H11Protocol

    class Protocol(base):  # type: ignore[misc, valid-type]
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._answered: Any = None  # the latest request of the connection that was over at the latest look
            self._silent = self.loop.call_later(HEADER_S, self._close_if_silent)
            self._full: Any = None  # timer of a client that does not read

        def pause_writing(self) -> None:
            super().pause_writing()
            self._full = self.loop.call_later(WRITE_S, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._full.cancel()

        def connection_lost(self, exc: Any) -> None:
            self._silent.cancel()
            if self._full is not None:
                self._full.cancel()
            super().connection_lost(exc)
            if self.timeout_keep_alive_task is not None:  # else a connection that was reset stays in memory for IDLE_S
                self.timeout_keep_alive_task.cancel()

        def _close_if_silent(self) -> None:
            """uvicorn closes an idle connection, but not one that sends a byte now and then."""
            over = self.cycle is None or self.cycle.response_complete
            if over and self.cycle is self._answered:
                self.transport.abort()
                return
            self._answered = self.cycle if over else self
            self._silent = self.loop.call_later(IDLE_S + 1, self._close_if_silent)

    return Protocol
