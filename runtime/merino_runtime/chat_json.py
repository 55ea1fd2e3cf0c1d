"""A talk for programs: each line of stdin is a message or a command, each line of stdout an event in JSON."""
import json
import queue
import threading
from typing import Any, Callable, Dict, Sequence, Tuple

from merino_runtime.chat_commands import Record, line_of, obeyed
from merino_runtime.chat_screens import stdin_lines
from merino_runtime.errors import MerinoError
from merino_runtime.streams import write_out

STOP = "\x03"  # a line of this alone stops the answers to all lines before it


def write_json(event: Dict[str, Any]) -> None:
    write_out(json.dumps(event) + "\n")


def talk_in_json(talk: Any, kept: Sequence[str] = ()) -> int:
    """Each line of stdin is a message or a command, each line of stdout an event. What cannot be done is {error}, the
    talk goes on, and the exit code is 1. kept: files that /save may not replace."""
    record, code = Record(talk.system, kept), 0
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
                write_json({"done": True, "command": line.command, "said": obeyed(line, talk, record)})
            elif line.text.strip():
                _answered_in_json(line.text, talk, record, stopped)
        except MerinoError as error:
            write_json({"error": str(error)})
            code = 1
            if error is typed:
                return code


def _answered_in_json(text: str, talk: Any, record: Record, stopped: Callable[[], bool]) -> None:
    dropped = 0
    for event in talk.answer(text, stopped):
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
