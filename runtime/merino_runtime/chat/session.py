"""The loop of a chat: reads messages and commands line by line, and writes answers to a terminal, a pipe, or as JSON.

A conversation is a `ChatSession` here, or an object with the same interface for a board behind `--json`, which the
workstation's `chat --ssh` uses. With `--json` each line of stdin is a message or a command, and each line of stdout an
event.
"""
import contextlib
import json
import os
import queue
import sys
import threading
from typing import Any, Callable, Dict, Iterator, Optional, Sequence, Tuple

from merino_runtime.chat.commands import Line, Record, parse_line, run_command
from merino_runtime.chat.template import Thinking
from merino_runtime.errors import MerinoError
from merino_runtime.generation.text import LONGEST_TEXT_BYTES
from merino_runtime.io.streams import as_text, harmless, say, write_out

DIM, NORMAL = "\x1b[2m", "\x1b[22m"
STOP = "\x03"  # a line of this alone stops the answers to all lines before it


def converse(conversation: Any, name: str, kept: Sequence[str] = ()) -> int:
    """Run a chat -> the exit code. conversation: as `ChatSession`. kept: files that /save may not replace. After an
    error the conversation continues; from a pipe the exit code is then 1."""
    screen: Any = Terminal() if is_terminal() else Pipe()
    record = Record(conversation.system, kept)
    screen.note(f"{name}: /help lists commands, ctrl-C stops an answer, ctrl-D leaves", greeting=True)
    while True:
        typed = screen.read()
        if typed is None:
            return screen.code
        line = Line("", typed)
        try:
            line = parse_line(typed)
            if line.command == "exit":
                return screen.code
            if line.command:
                screen.note(run_command(line, conversation, record))
            elif line.text.strip():
                _answered(line.text, conversation, record, screen)
        except MerinoError as error:
            screen.refuse(error)
        except KeyboardInterrupt:  # when an answer had just ended, or a second one while it was being stopped
            if not screen.handles_interrupt:
                raise
            for event in conversation.interrupted():
                if "done" in event:
                    record.add(line.text, event, 0)


def _answered(text: str, conversation: Any, record: Record, screen: Any) -> None:
    """Show an answer. ctrl-C stops it, and its text so far stays in the conversation."""
    begin: Dict[str, Any] = {}
    done: Dict[str, Any] = {}

    def take(event: Dict[str, Any]) -> None:
        if "begin" in event:
            begin.update(event)
            if event["dropped_turns"]:
                screen.note(f"the context is full: the oldest {event['dropped_turns']} turns are left out from here on")
            screen.begin(event["thinks"])
        elif "done" in event:
            done.update(event)
            record.add(text, event, begin.get("dropped_turns", 0))
        else:
            screen.show(event["text"])

    try:
        for event in conversation.answer(text):
            take(event)
    except KeyboardInterrupt:
        if not screen.handles_interrupt:
            raise
        for event in conversation.interrupted():
            take(event)
    finally:
        if begin:
            screen.end()
    if done.get("stop_reason") == "interrupt":
        screen.note("stopped")
    elif done.get("stop_reason") == "context":
        screen.note(f"the context of {done['context']} tokens is full, so the answer ends here: /reset starts again")
    elif done.get("stop_reason") == "length":
        screen.note(f"the answer ends after {done['tokens']} tokens, as set by -n")


def is_terminal() -> bool:
    """Return whether stdin and stdout are a terminal."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


class Terminal:
    """A person's terminal. ctrl-C, pressed twice at the prompt, ends the chat."""
    handles_interrupt = True  # after ctrl-C
    code = 0

    def __init__(self) -> None:
        with contextlib.suppress(ImportError):  # without it, lines cannot be edited
            import readline  # noqa: F401
        self._interrupts, self._dim = 0, False
        self._styles = "NO_COLOR" not in os.environ and os.environ.get("TERM") not in (None, "dumb")

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

    def show(self, text: str) -> None:
        self._write(self._thinking.push(text))

    def end(self) -> None:
        self._write([*self._thinking.finish(), ("\n", False)])

    def note(self, text: str, greeting: bool = False) -> None:  # noqa: ARG002
        self._write([(text, True), ("\n", False)])

    def _write(self, parts: Sequence[Tuple[str, bool]]) -> None:
        """Write texts, each with whether it is dimmed. What would control the terminal is escaped."""
        out = ""
        for text, dim in parts:
            if dim != self._dim and self._styles:
                out += DIM if dim else NORMAL
            self._dim = dim
            out += harmless(text)
        write_out(out)

    def refuse(self, error: MerinoError) -> None:
        self.note(str(error))


class Pipe:
    """Each line of stdin is a turn; stdout gets only the answers."""
    handles_interrupt = False

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
    """Run a chat for a program -> the exit code. Each line of stdin is a message or a command, each line of stdout an
    event. After an {error} the conversation continues, and the exit code is 1. kept: files that /save may not replace.
    """
    record, code = Record(conversation.system, kept), 0
    lines = _Lines()
    while True:
        typed, stopped = lines.next()
        if typed is None:
            return code
        try:
            if isinstance(typed, MerinoError):
                raise typed
            line = parse_line(typed)
            if line.command == "exit":
                return code
            if line.command:
                write_json({"done": True, "command": line.command, "output": run_command(line, conversation, record)})
            elif line.text.strip():
                dropped = 0
                for event in conversation.answer(line.text, stopped):
                    dropped = event.get("dropped_turns", dropped)
                    if "done" in event:
                        record.add(line.text, event, dropped)
                    write_json(event)
        except MerinoError as error:
            write_json({"error": str(error)})
            code = 1
            if error is typed:
                return code


class _Lines:
    """Reads stdin in a thread, so that a line can stop an answer. Lines are counted, so that a STOP applies to all
    lines before it, whether or not their answers have started."""

    def __init__(self) -> None:
        self._queue: Any = queue.Queue()
        self._read = self._taken = self._stopped = 0  # numbers of lines
        threading.Thread(target=self._run, daemon=True).start()

    def next(self) -> Tuple[Any, Callable[[], bool]]:
        """Return a line, None at the end, or a MerinoError for invalid text; and a function that returns whether its
        answer must stop."""
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
    """Yield lines without their ends. Raise MerinoError for a line that is too long or not UTF-8."""
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
