"""HTTP: the ASGI application over `application` and the chat page, on uvicorn. Bounds on bodies.

uvicorn 0.16 is the last for Python 3.6, so nothing here needs a later one (docs/decisions/serving.md).
"""
import asyncio
import base64
import concurrent.futures
import contextlib
import hashlib
import pkgutil
import re
import signal
import socket
from typing import Any, Awaitable, Callable, Dict, Iterator, List, Sequence, Tuple

from merino_runtime.bundle.requirements import require
from merino_runtime.errors import MerinoError
from merino_runtime.serving import connections
from merino_runtime.serving.application import Application, PendingResponse, Request, Response, error_of, refused
from merino_runtime.serving.connections import Events, LeftError
from merino_runtime.serving.requests import RefusedError

LARGEST_BODY = 4 * 2 ** 20
MOST_ARRIVING = 32 * 2 ** 20  # of all bodies that are arriving
MOST_DROPPED = 64 * 2 ** 20  # of a body that is too large: a client that still writes would not read the refusal
BODY_S = 30.0  # for a body to arrive
QUIET_S = 3.0  # a stream that has nothing to send writes a comment, so that no proxy closes it
HANDLERS = 4  # threads that read bodies and tokenize: not the thread that serves connections
COMMENTS = {"text/event-stream": b": waiting\n\n"}

Receive = Callable[[], Awaitable[Dict[str, Any]]]
Send = Callable[[Dict[str, Any]], Awaitable[None]]


class Site:
    """The ASGI application."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._handlers = concurrent.futures.ThreadPoolExecutor(HANDLERS)
        self._arriving = 0  # bytes of bodies that are arriving

    async def __call__(self, scope: Dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        with contextlib.suppress(LeftError):
            await self._handle(scope, receive, send)

    async def _handle(self, scope: Dict[str, Any], receive: Receive, send: Send) -> None:
        loop = asyncio.get_event_loop()
        request = _request(scope)
        send = _with_headers(send, self._application.cors(request))
        if "transfer-encoding" in request.headers and "content-length" in request.headers:
            both = RefusedError("the request has Transfer-Encoding and Content-Length. Send one of them.")
            await _respond(send, refused(both), closes=True)
            return
        closes = False
        try:
            call, owner = self._application.route(request)
            closes = True  # its body may still arrive
            request = request._replace(owner=owner, body=await self._body(receive))
        except RefusedError as error:
            await _respond(send, refused(error, error_of(request)), scope["method"] == "HEAD", closes)
            return
        events = Events(loop)
        response = await loop.run_in_executor(
            self._handlers, self._application.handle, call, request, events.put)
        if isinstance(response, Response):
            await _respond(send, response, scope["method"] == "HEAD")
            return
        departure = asyncio.ensure_future(_gone(receive))
        departure.add_done_callback(events.leave)
        try:
            if response.stream:
                await _stream(send, response, events)
                return
            events.gather_s = connections.WHOLE_S
            while not response.over:
                await events.wait(None)
                for index, event in events.take():
                    response.take(index, event)
            await _respond(send, response.response())
        finally:
            departure.cancel()
            if not response.over:
                response.cancel()

    async def _body(self, receive: Receive) -> bytes:
        end_s = asyncio.get_event_loop().time() + BODY_S
        parts, size, ends = [], 0, False  # type: List[bytes], int, bool
        try:
            while not ends:
                part, ends = await _part(receive, end_s)
                size += len(part)
                if size > LARGEST_BODY:
                    self._arriving -= sum(map(len, parts))
                    parts.clear()
                    if ends or size > MOST_DROPPED:
                        raise RefusedError(f"the body has more than {LARGEST_BODY:,} bytes. Send less.", 413)
                else:
                    self._arriving += len(part)
                    parts.append(part)
                if self._arriving > MOST_ARRIVING:
                    raise RefusedError("too many bodies arrive at once. Try again.", 503, retry_s=1)
            return b"".join(parts)
        finally:
            self._arriving -= sum(map(len, parts))


def _with_headers(send: Send, more: Sequence[Tuple[str, str]]) -> Send:
    async def sent(message: Dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = dict(message, headers=[*message["headers"], *_encoded(more)])
        await send(message)

    return sent if more else send


async def _stream(send: Send, response: PendingResponse, events: Events) -> None:
    headers = [("Content-Type", response.content_type), ("Cache-Control", "no-store"), ("X-Accel-Buffering", "no")]
    await _sent(send, {"type": "http.response.start", "status": 200, "headers": _encoded(headers)})
    while not response.over:
        await events.wait(QUIET_S)
        taken = events.take()
        data = b"".join(response.take(index, event) for index, event in taken)
        data = data if taken else COMMENTS.get(response.content_type, b"")
        if data:
            await _sent(send, {"type": "http.response.body", "body": data, "more_body": True})
    await _sent(send, {"type": "http.response.body", "body": b""})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _part(receive: Receive, end_s: float) -> Tuple[bytes, bool]:
    """Receive the next part of a body -> (its bytes, whether it is the last)."""
    try:
        message = await asyncio.wait_for(receive(), max(0.001, end_s - asyncio.get_event_loop().time()))
    except asyncio.TimeoutError:
        raise RefusedError(f"the body did not arrive within {BODY_S:g} s. Send it again.", 408) from None
    if message["type"] == "http.disconnect":
        raise LeftError
    return message.get("body", b""), not message.get("more_body")


def _request(scope: Dict[str, Any]) -> Request:
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    path, absolute = scope["path"], re.match(r"https?://([^/]*)", scope["path"], re.IGNORECASE)
    if absolute:  # as to a proxy; the address in it counts, not the header
        path, headers["host"] = path[absolute.end():] or "/", absolute.group(1)
    return Request(scope["method"], path, headers, b"", (scope.get("client") or ("",))[0])


async def _respond(send: Send, response: Response, head: bool = False, closes: bool = False) -> None:
    headers = [("Content-Type", response.content_type), ("Content-Length", str(len(response.body))), *response.headers]
    headers = headers[2:] if response.status == 204 else headers
    if closes:
        headers.append(("Connection", "close"))
    await _sent(send, {"type": "http.response.start", "status": response.status, "headers": _encoded(headers)})
    await _sent(send, {"type": "http.response.body", "body": b"" if head else response.body})


async def _sent(send: Send, message: Dict[str, Any]) -> None:
    try:
        await send(message)  # ends at the latest when the protocol drops a client that takes nothing
    except OSError:
        raise LeftError from None


def _encoded(headers: Sequence[Tuple[str, str]]) -> List[Tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def server_of(application: Application) -> Any:
    """Return a uvicorn.Server; `run(sockets=[...])` serves until a signal, or until its `should_exit` is set."""
    uvicorn = require("uvicorn", connections.REQUIREMENTS)
    config = uvicorn.Config(Site(application), http=connections.protocol(), ws="none", lifespan="off", log_config=None,
                            access_log=False, server_header=False, loop="asyncio",
                            timeout_keep_alive=int(connections.IDLE_S), limit_concurrency=connections.MOST_CONNECTIONS)

    class Server(uvicorn.Server):  # type: ignore[name-defined]
        """Signals are `stop_at_signals`'s: newer versions raise them again at the end, and the process dies of them."""

        def install_signal_handlers(self) -> None:
            pass

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        async def shutdown(self, *arguments: Any, **options: Any) -> None:
            """Answers under way end first: uvicorn waits for them."""
            application.scheduler.close()
            await super().shutdown(*arguments, **options)

    return Server(config)


def stop_at_signals(server: Any) -> None:
    """SIGINT and SIGTERM end the server, a second one without waiting for connections."""
    def stop(*_: Any) -> None:
        server.force_exit = server.should_exit
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


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


def page() -> Response:
    """Return the chat page: one response from the files in `page/` beside this module, which may be in a zip
    application. Its policy allows only its own script and style, by their hashes, and requests to this server. So
    nothing in an answer or in a bundle's name can run."""
    html, style, script = ((pkgutil.get_data(__name__, "page/page." + end) or b"").decode("utf-8")
                           for end in ("html", "css", "js"))
    allowed = {"default-src": "'none'", "script-src": _hash(script), "style-src": _hash(style), "img-src": "data:",
               "connect-src": "'self'", "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'"}
    text = html.replace("<style></style>", f"<style>{style}</style>").replace(
        "<script></script>", f"<script>{script}</script>")
    return Response(200, text.encode("utf-8"), "text/html; charset=utf-8", (
        ("Content-Security-Policy", "; ".join(f"{name} {value}" for name, value in allowed.items())),
        ("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer"), ("Cache-Control", "no-cache")))


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii") + "'"
