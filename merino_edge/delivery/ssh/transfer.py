"""Files onto a board, into the cache folder of its user: by hash, and resumed where an earlier connection was cut.

A file is NAME.part there until all of it has arrived and its hash agrees. The board reports the hash of a part that an
earlier connection left; the copy continues behind it if the file here begins with the same bytes.
"""

import asyncio
import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from merino_edge.delivery.ssh.command import TRY_THERE, Session, answer, ended, give, started
from merino_edge.delivery.ssh.connect import Board
from merino_runtime.delivery.agent import CACHE
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_shape import count, listed, problems_in, sha256
from merino_runtime.io.lock import raising_machine_faults
from merino_runtime.io.streams import visible

INCOMING = f"{CACHE}/incoming"
SENT_AT_ONCE = 1 << 17
STALL_S = 60.0  # without a byte that the board takes
# The board reads what it has, and hashes what has arrived: a card gives 10 MB/s at least.
LEAST_BYTES_S = 10e6
SHAPE: dict[str, Any] = {
    "done": lambda value: None if isinstance(value, bool) else "true or false", "free": count, "part_bytes": count,
    "part_sha256": sha256,
}  # fmt: skip

Sent = Callable[[int, int], None]  # bytes that are there, of how many


@dataclass(frozen=True)
class Source:
    """A file to send: its name on the board, a plain one, and its content, a file here or bytes."""

    name: str
    content: Path | bytes
    size_bytes: int
    sha256: str


def source_of(name: str, content: bytes) -> Source:
    return Source(name, content, len(content), hashlib.sha256(content).hexdigest())


async def send(board: Board, folder: str, source: Source, sent: Sent = lambda *_: None) -> str:
    """Copy `source` into `folder` of the board's cache -> its path there, with the placeholder of the cache. Raise
    MerinoError if the connection breaks, the board lacks space, or the bytes arrive changed."""
    doing = f"copy {source.name}"
    request = {
        "do": "receive", "folder": folder, "name": source.name, "size": source.size_bytes, "sha256": source.sha256
    }
    async with started(board, doing, request) as session:
        async with asyncio.timeout(STALL_S + source.size_bytes / LEAST_BYTES_S):
            reply = await answer(session)
        if not _there(session, reply):
            offset = await asyncio.to_thread(_agreeing, source, reply["part_bytes"], reply["part_sha256"])
            left = source.size_bytes - offset
            if left > reply["free"]:
                raise session.fault(
                    f"{left / 2**20:,.1f} MB are needed and {reply['free'] / 2**20:,.1f} MB are free there: free space"
                    " on the board"
                )
            await _stream(session, source, offset, sent)
        sent(source.size_bytes, source.size_bytes)
    return f"{folder}/{source.name}"


def _there(session: Session, reply: Any) -> bool:
    """Return whether the board has the whole file. Raise MerinoError for an invalid answer."""
    if reply == {"busy": True}:
        raise session.fault("another copy of it is on its way there: wait for that one")
    if problems := problems_in(reply, SHAPE):
        raise session.fault(f"the board's answer is wrong: {listed(problems)}. {TRY_THERE}")
    return bool(reply["done"])


def _agreeing(source: Source, part_bytes: int, part_sha256: str) -> int:
    """Return how many bytes from the beginning the board has already: its part, or none of it."""
    digest, left = hashlib.sha256(), min(part_bytes, source.size_bytes + 1)  # a longer part cannot agree
    with _opened(source) as file:
        while left and (data := file.read(min(SENT_AT_ONCE, left))):
            digest.update(data)
            left -= len(data)
    return part_bytes if not left and digest.hexdigest() == part_sha256 else 0


async def _stream(session: Session, source: Source, offset: int, sent: Sent) -> None:
    give(session, b'{"offset": %d}\n' % offset)
    position = offset
    with _opened(source, offset) as file:
        while position < source.size_bytes:
            data = await asyncio.to_thread(file.read, min(SENT_AT_ONCE, source.size_bytes - position))
            if not data:
                raise session.fault("the file here became shorter meanwhile: run this again")
            give(session, data)
            with suppress(BrokenPipeError):
                async with asyncio.timeout(STALL_S):
                    await session.process.stdin.drain()
            if session.process.stdin.is_closing():
                break  # its answer explains
            position += len(data)
            sent(position, source.size_bytes)
    async with asyncio.timeout(STALL_S + source.size_bytes / LEAST_BYTES_S):
        reply = await answer(session)
        await ended(session)
    error = reply.get("error") if isinstance(reply, dict) else None
    if error != "":
        raise session.fault(visible(error) if isinstance(error, str) else "the board's answer is wrong")


@contextmanager
def _opened(source: Source, offset: int = 0) -> Iterator[BinaryIO]:
    """Open a file, or bytes as one. Raise MerinoError if the file here cannot be read."""
    content = source.content
    with raising_machine_faults(f"read {source.name}"):
        file: BinaryIO = io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb")  # noqa: SIM115
    with file:
        file.seek(offset)
        yield file


def check_name(name: str) -> str:
    """Return a file's name for the board: a plain one. Raise MerinoError for any other."""
    if name in ("", ".", "..") or set(name) & set("/\\\0") or not name.isprintable():
        raise MerinoError(f"{name!r} cannot be a file's name on a board: rename it")
    return name
