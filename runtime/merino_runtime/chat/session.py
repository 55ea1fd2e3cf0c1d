"""The loop of a chat: reads messages and commands line by line, and shows answers on a terminal, a pipe, or as JSON.

A conversation has one interface wherever it runs: `ChatSession` here, or its twin on a board behind `--json`, which
the workstation's `chat --ssh` uses. For programs each line of stdin is a message or a command, and each line of stdout
an event in JSON.
"""
import contextlib
import json
import queue
import sys
import threading
from typing import Any, Callable, Dict, Iterator, Optional, Sequence, Tuple

from merino_runtime.chat.commands import Line, Record, line_of, obeyed
from merino_runtime.chat.screen import Thinking, Wrapped, is_terminal, takes_styles, width
from merino_runtime.errors import MerinoError
from merino_runtime.generation.text import LONGEST_TEXT_BYTES
from merino_runtime.io.streams import as_text, say, write_out

STOP = "\x03"  # a line of this alone stops the answers to all lines before it


def converse(conversation: Any, name: str, kept: Sequence[str] = ()) -> int:
    """conversation: as `ChatSession`. kept: files that /save may not replace. What cannot be done is reported and the
    conversation goes on; from a pipe the exit code is 1 then."""
    ways = Terminal() if is_terminal() else Pipe()
    record = Record(conversation.system, kept)
    ways.note(f"{name}: /help lists commands, ctrl-C stops an answer, ctrl-D leaves", greeting=True)
    while True:
        typed = ways.read()
        if typed is None:
            return ways.code
        line = Line("", typed)
        try:
            line = line_of(typed)
            if line.command == "exit":
                return ways.code
            if line.command:
                ways.note(obeyed(line, conversation, record))
            elif line.text.strip():
                _answered(line.text, conversation, record, ways)
        except MerinoError as error:
            ways.refuse(error)
        except KeyboardInterrupt:  # when an answer had just ended, or a second one while it was being stopped
            if not ways.goes_on:
                raise
            for event in conversation.interrupted():
                if "done" in event:
                    record.add(line.text, event, 0)


def _answered(text: str, conversation: Any, record: Record, ways: Any) -> None:
    """Shows an answer; ctrl-C stops it, and what there is of it stays in the conversation."""
    begin: Dict[str, Any] = {}
    done: Dict[str, Any] = {}

    def take(event: Dict[str, Any]) -> None:
        if "begin" in event:
            begin.update(event)
            if event["dropped_turns"]:
                ways.note(f"the context is full: the oldest {event['dropped_turns']} turns are left out from here on")
            ways.begin(event["thinks"])
        elif "done" in event:
            done.update(event)
            record.add(text, event, begin.get("dropped_turns", 0))
        else:
            ways.show(event["text"])

    try:
        for event in conversation.answer(text):
            take(event)
    except KeyboardInterrupt:
        if not ways.goes_on:
            raise
        for event in conversation.interrupted():
            take(event)
    finally:
        if begin:
            ways.end()
    if done.get("stop_reason") == "interrupt":
        ways.note("stopped")
    elif done.get("stop_reason") == "context":
        ways.note(f"the context of {done['context']} tokens is full, so the answer ends here: /reset starts again")
    elif done.get("stop_reason") == "length":
        ways.note(f"the answer ends after {done['tokens']} tokens, as set by -n")


class Terminal:
    """A person's. ctrl-C at the prompt leaves where it comes twice."""
    goes_on = True  # after ctrl-C
    code = 0

    def __init__(self) -> None:
        with contextlib.suppress(ImportError):  # a Python without it has no keys to edit a line with
            import readline  # noqa: F401
        self._interrupts = 0

    def read(self) -> Optional[str]:
        while True:
            try:
                typed = as_text(input("> "))
                self._interrupts = 0
                return typed
            except EOFError:
                write_out("\n")
                return None
            except KeyboardInterrupt:
                self._interrupts += 1
                if self._interrupts > 1:
                    raise
                write_out("\n")
                self.note("ctrl-C once more, or ctrl-D, leaves")

    def begin(self, thinks: bool) -> None:
        self._thinking = Thinking(thinks)
        self._lines = Wrapped(write_out, width(), takes_styles())

    def show(self, text: str) -> None:
        for piece, thinking in self._thinking.push(text):
            self._lines.push(piece, thinking)

    def end(self) -> None:
        for piece, thinking in self._thinking.finish():
            self._lines.push(piece, thinking)
        self._lines.finish()

    def note(self, text: str, greeting: bool = False) -> None:  # noqa: ARG002
        lines = Wrapped(write_out, width(), takes_styles())
        lines.push(text, dim=True)
        lines.finish()

    def refuse(self, error: MerinoError) -> None:
        self.note(str(error))


class Pipe:
    """Each line of stdin is a turn; stdout gets the answers and nothing else."""
    goes_on = False

    def __init__(self) -> None:
        self._lines = stdin_lines()
        self.code = 0

    def read(self) -> Optional[str]:
        return next(self._lines, None)

    def begin(self, thinks: bool) -> None:
        pass

    def show(self, text: str) -> None:
        write_out(text)

    def end(self) -> None:
        write_out("\n")

    def note(self, text: str, greeting: bool = False) -> None:
        if not greeting:
            for line in text.split("\n"):
                say(line)

    def refuse(self, error: MerinoError) -> None:
        self.note(str(error))
        self.code = 1


def write_json(event: Dict[str, Any]) -> None:
    write_out(json.dumps(event) + "\n")


def converse_in_json(conversation: Any, kept: Sequence[str] = ()) -> int:
    """Each line of stdin is a message or a command, each line of stdout an event. What cannot be done is {error}, the
    conversation goes on, and the exit code is 1. kept: files that /save may not replace."""
    record, code = Record(conversation.system, kept), 0
    lines = _Lines()
    while True:
        typed, stopped = lines.next()
        if typed is None:
            return code
        try:
            if isinstance(typed, MerinoError):
                raise typed
            line = line_of(typed)
            if line.command == "exit":
                return code
            if line.command:
                write_json({"done": True, "command": line.command, "output": obeyed(line, conversation, record)})
            elif line.text.strip():
                _answered_in_json(line.text, conversation, record, stopped)
        except MerinoError as error:
            write_json({"error": str(error)})
            code = 1
            if error is typed:
                return code


def _answered_in_json(text: str, conversation: Any, record: Record, stopped: Callable[[], bool]) -> None:
    dropped = 0
    for event in conversation.answer(text, stopped):
        dropped = event.get("dropped_turns", dropped)
        if "done" in event:
            record.add(text, event, dropped)
        write_json(event)


class _Lines:
    """stdin in a thread of its own, so that an answer can be stopped by a line. Lines are counted, so that a STOP
    counts for those before it, whether or not their answers have begun."""

    def __init__(self) -> None:
        self._queue: Any = queue.Queue()
        self._read = self._taken = self._stopped = 0  # numbers of lines
        threading.Thread(target=self._run, daemon=True).start()

    def next(self) -> Tuple[Any, Callable[[], bool]]:
        """A line, None at the end, or a MerinoError for what is no text; and whether its answer is to stop."""
        typed = self._queue.get()
        self._taken += 1
        number = self._taken
        return typed, lambda: self._stopped >= number

    def _run(self) -> None:
        try:
            for line in stdin_lines():
                if line == STOP:
                    self._stopped = self._read
                else:
                    self._read += 1
                    self._queue.put(line)
        except MerinoError as error:
            self._queue.put(error)
        self._queue.put(None)


def stdin_lines() -> Iterator[str]:
    """Without their ends. Raises MerinoError for one that is not UTF-8 or too long."""
    number = 0
    while sys.stdin is not None:
        data = sys.stdin.buffer.readline(LONGEST_TEXT_BYTES + 1)
        if not data:
            return
        number += 1
        if len(data) > LONGEST_TEXT_BYTES:
            raise MerinoError(f"line {number} of stdin is longer than {LONGEST_TEXT_BYTES:,} bytes, the most that are "
                              "allowed. Shorten it.")
        try:
            yield data.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise MerinoError(f"line {number} of stdin is not UTF-8 text (byte {error.start}): convert it "
                              "first.") from error
