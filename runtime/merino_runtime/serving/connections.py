"""Connections: uvicorn's protocol with bounds on times and numbers, and for clients that end only their own side."""
import time
from typing import Any, Optional

from merino_runtime.bundle.requirements import require
from merino_runtime.serving.access import network_of

REQUIREMENTS = ["uvicorn>=0.16"]
MOST_CONNECTIONS = 512  # more get status 503
MOST_OF_NETWORK = 128  # of one address; idle ones are closed for new ones
HEADER_S = 30.0  # for the headers of a request to arrive
IDLE_S = 75.0  # between two requests of a connection
WRITE_S = 60.0  # for a client to read a write
PROBE_S = 3.0  # between two looks at whether a client that ended its own side is still there
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
