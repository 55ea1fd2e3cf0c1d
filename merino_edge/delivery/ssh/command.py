"""Runs requests on a board through its Python: `merino_runtime.delivery.agent` is sent with each request.

Every answer has a limit in bytes and in time. It starts behind a marker, so output of a login shell is dropped.
"""

import asyncio
import codecs
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh

from merino_edge.delivery.ssh.connect import Board, reported_faults
from merino_runtime.delivery import agent
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import value_of
from merino_runtime.io.streams import visible, visible_text

AGENT = Path(agent.__file__).read_bytes()
# Short, and the same in every shell; the request comes over stdin.
COMMAND = f"python3 -I -c 'import sys;exec(sys.stdin.buffer.read({len(AGENT)}))'"
NOT_FOUND = 127  # of a shell
SHORT_S = 60.0
TRY_THERE = "Try the same on the board itself"
SHORT_BYTES = 64 * 1024
BEFORE_BYTES = 64 * 1024  # of what a login shell prints
STDERR_BYTES = 1 << 20
LONGEST_WORDS = 1200  # characters of one line of stderr: a refusal with long paths keeps its remedy
PIECE = 1 << 16

Take = Callable[[str], None]


@dataclass(frozen=True)
class Session:
    """A request that the agent has begun to answer. `doing` completes "HOST: cannot ...". `last_line`: of stderr, once
    that has ended."""

    board: Board
    doing: str
    process: "asyncssh.SSHClientProcess[bytes]"
    last_line: "asyncio.Task[str]"

    def fault(self, refusal: str) -> MerinoError:
        return MerinoError(f"{self.board.address.text}: cannot {self.doing}: {refusal}")


@dataclass(frozen=True)
class Finished:
    """The result of a program on the board: exit code, stdout, and the last line of stderr, fit for a terminal."""

    code: int
    out: str
    last_words: str


def run_request(arguments: list[str], stdin_bytes: int = 0) -> dict[str, Any]:
    return {"do": "run", "arguments": arguments, "stdin_bytes": stdin_bytes}


def refusal_of(ran: Finished) -> str:
    """Return why a program of the board failed."""
    return ran.last_words.removeprefix("merino: ") or f"it ended with code {ran.code} and printed nothing"


@asynccontextmanager
async def started(
    board: Board, doing: str, request: dict[str, Any], report: Take | None = None, timeout_s: float | None = None
) -> AsyncIterator[Session]:
    """Send the request and wait for the start of its answer. The program on the board ends with the body.

    report: gets each line of stderr. timeout_s: for the whole body; None: each step of it has its own. Raises
    MerinoError where no answer begins.
    """
    with reported_faults(board.address, doing):
        async with asyncio.timeout(timeout_s):
            async with asyncio.timeout(SHORT_S):
                process = await board.connection.create_process(COMMAND, encoding=None)
            session = Session(board, doing, process, asyncio.ensure_future(_stderr(process, report)))
            try:
                give(session, AGENT + json.dumps(request).encode("ascii") + b"\n")
                async with asyncio.timeout(SHORT_S):
                    await _beginning(session)
                yield session
            finally:
                session.last_line.cancel()
                process.close()


async def finished(
    board: Board, doing: str, request: dict[str, Any], data: bytes = b"", *, timeout_s: float = SHORT_S,
    most_bytes: int = SHORT_BYTES, report: Take | None = None, take: Take | None = None,
) -> Finished:  # fmt: skip
    """Send the request and `data`, and read the whole answer.

    take: gets each piece of the answer, fit for a terminal; None: the pieces are collected. Raise MerinoError if
    the answer is longer than `most_bytes`, comes too late or not at all.
    """
    async with started(board, doing, request, report, timeout_s) as session:
        give(session, data)
        out = await _rest(session, most_bytes, take)
        code, last_words = await ended(session)
    return Finished(code, out, last_words)


def give(session: Session, data: bytes) -> None:
    """Write to the program's stdin. If the program has ended, its answer, which is read next, explains why."""
    with suppress(BrokenPipeError):
        session.process.stdin.write(data)


async def answer(session: Session, most_bytes: int = SHORT_BYTES) -> Any:
    """Read the next line as JSON. Raise MerinoError if there is none."""
    try:
        line = await session.process.stdout.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        line = error.partial
        if len(line) <= most_bytes:
            _, last_words = await ended(session)
            raise session.fault(last_words or f"the board ended without an answer. {TRY_THERE}") from error
    if len(line) > most_bytes:
        raise session.fault(f"the board answered with more than {most_bytes:,} bytes. {TRY_THERE}")
    return json_of(session.board, session.doing, line.decode("utf-8", "replace"))


def json_of(board: Board, doing: str, text: str) -> Any:
    """Parse a JSON text from the board. Raise MerinoError if it is invalid."""
    try:
        return value_of(text)
    except ValueError as error:
        raise MerinoError(
            f"{board.address.text}: cannot {doing}: the board answered {visible(text, 80)!r}, which is not JSON:"
            f" {visible(str(error))}. {TRY_THERE}"
        ) from error


async def ended(session: Session) -> tuple[int, str]:
    """Wait for the program's end -> its exit code, -1 if there is none, and the last line of stderr."""
    async with asyncio.timeout(SHORT_S):
        await session.process.wait_closed()
        last_words = await session.last_line
    code = session.process.returncode
    return -1 if code is None else code, last_words


async def _beginning(session: Session) -> None:
    dropped = 0
    while dropped <= BEFORE_BYTES:
        try:
            line = await session.process.stdout.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            if len(error.partial) > BEFORE_BYTES:
                break
            code, last_words = await ended(session)
            if code == NOT_FOUND:
                raise session.fault("it has no python3. On Debian and its kin: sudo apt install python3") from error
            silent = f"python3 there ended with code {code} and printed nothing. {TRY_THERE}"
            raise session.fault(last_words or silent) from error
        if line.strip() == agent.BEGIN.encode("ascii"):
            return
        dropped += len(line)
    raise session.fault(f"the board prints more than {BEFORE_BYTES:,} bytes before any answer: look at its login shell")


async def _rest(session: Session, most_bytes: int, take: Take | None) -> str:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces, size = [], 0
    while data := await session.process.stdout.read(PIECE):
        size += len(data)
        if size > most_bytes:
            raise session.fault(f"the board answered with more than {most_bytes:,} bytes. {TRY_THERE}")
        text = decoder.decode(data)
        if take:
            take(visible_text(text))
        else:
            pieces.append(text)
    return "".join(pieces)


async def _stderr(process: "asyncssh.SSHClientProcess[bytes]", report: Take | None) -> str:
    """Read stderr to its end and pass its lines to `report` -> the last one. Output beyond the limit is dropped."""
    last, kept, size = "", b"", 0
    while data := await process.stderr.read(PIECE):
        size += len(data)
        if size > STDERR_BYTES:
            continue
        *lines, kept = (kept + data).split(b"\n")
        for line in lines:
            last = _line(line, report) or last
    return _line(kept, report) or last


def _line(line: bytes, report: Take | None) -> str:
    text = visible(line.decode("utf-8", "replace"), LONGEST_WORDS)
    if text and report:
        report(text)
    return text
