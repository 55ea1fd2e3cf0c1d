"""A talk for programs: each line of stdin is a message or a command, each line of stdout an event in JSON."""
import json
import queue
import threading
from typing import Any, Callable, Dict

from merino_runtime.chat_commands import Record, line_of, obeyed
from merino_runtime.chat_screens import stdin_lines
from merino_runtime.errors import MerinoError
from merino_runtime.streams import write_out

STOP = "\x03"  # a line of this alone stops the answer that is being given


def write_json(event: Dict[str, Any]) -> None:
    write_out(json.dumps(event) + "\n")


def talk_in_json(talk: Any) -> int:
    """Each line of stdin is a message or a command, each line of stdout an event. What cannot be done is {error}, the
    talk goes on, and the exit code is 1."""
    record, code = Record(talk.system), 0
    lines, stop = _lines_and_stop()
    while True:
        typed = lines.get()
        stop.clear()  # one for an answer that was over
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
                _answered_in_json(line.text, talk, record, stop.is_set)
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


def _lines_and_stop() -> Any:
    """stdin in a thread of its own, so that an answer can be stopped by a line: a queue of lines, None at the end, a
    MerinoError for what is no text; and an event that is set by a line of STOP."""
    lines: Any = queue.Queue()
    stop = threading.Event()

    def read() -> None:
        try:
            for line in stdin_lines():
                stop.set() if line == STOP else lines.put(line)
        except MerinoError as error:
            lines.put(error)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines, stop
