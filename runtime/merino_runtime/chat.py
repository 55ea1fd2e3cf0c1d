"""The command `chat`: reads messages and commands line by line, and shows answers on a terminal, a pipe, or as JSON.

A talk has one interface wherever it runs: `merino_runtime.talk.Talk` here, or its twin on a board behind `--json`,
which the workstation's `chat --ssh` speaks to.
"""
import contextlib
import json
import queue
import sys
import threading
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional

from merino_runtime.commands import as_text
from merino_runtime.errors import MerinoError
from merino_runtime.outputs import check_output, write_output
from merino_runtime.screen import Thinking, Wrapped, is_terminal, takes_styles, width
from merino_runtime.streams import say, say_note, write_out
from merino_runtime.text import LONGEST_TEXT_BYTES

STOP = "\x03"  # with --json: a line of this alone stops the answer that is being given
COMMANDS = (
    ("/reset", "forget the turns"), ("/system TEXT", "the system message from now on; without TEXT: show it"),
    ("/save FILE", "write the talk as JSON"), ("/stats", "what the last answer took"), ("/help", "this list"),
    ("/exit", "leave, as ctrl-D does"),
)


class Line(NamedTuple):
    """What was typed: a message, or a command with what follows it."""
    command: str  # empty: a message
    text: str


def line_of(text: str) -> Line:
    """A message that begins with `/` is written with `//`. Raises MerinoError for a command that there is not."""
    if not text.startswith("/"):
        return Line("", text)
    if text.startswith("//"):
        return Line("", text[1:])
    name, _, rest = text.partition(" ")
    known = [form.split()[0] for form, _ in COMMANDS]
    if name not in known:
        raise MerinoError(f"there is no command {name}: {', '.join(known)}. A message that begins with / is written "
                          "with //.")
    if rest.strip() and name not in ("/system", "/save"):
        raise MerinoError(f"{name} takes nothing after it.")
    if name == "/save" and not rest.strip():
        raise MerinoError("/save needs a file: /save talk.json")
    return Line(name[1:], rest.strip())


class Record:
    """What was said, for /save, and what it took, for /stats."""

    def __init__(self, system: Optional[str]) -> None:
        self.messages: List[Dict[str, str]] = []
        self.system = system
        self.done: Optional[Dict[str, Any]] = None

    def add(self, user: str, done: Dict[str, Any], dropped_turns: int) -> None:
        self.done = done
        del self.messages[:2 * dropped_turns]
        if done["tokens"]:
            self.messages += [{"role": "user", "content": user}, {"role": "assistant", "content": done["answer"]}]

    def save(self, path: str) -> str:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        check_output(path)
        write_output(path, json.dumps({"messages": system + self.messages}, indent=1, ensure_ascii=False) + "\n")
        return f"wrote {path}: {len(system + self.messages)} messages"

    def stats(self) -> str:
        done = self.done
        if done is None:
            return "nothing was answered yet"
        cached = done["prompt_tokens"] - done["prefill_tokens"]
        lines = [f"prompt: {done['prompt_tokens']} tokens, {done['prefill_tokens']} computed, {cached} from the cache"]
        if done["prefill_ms"] is not None:
            lines.append(f"prefill: {done['prefill_ms']:.1f} ms")
        if done["tok_s"] is not None:
            lines.append(f"answer: {done['tokens']} tokens, {done['decode_ms_p50']:.2f} ms each (p50), "
                         f"{done['tok_s']:.1f} tok/s")
        lines.append(f"context: {done['context_used']} of {done['context']} tokens, turns: {done['turns']}")
        return "\n".join([*lines, f"peak RSS: {done['peak_rss_mb']:.0f} MB"])


def run_chat(bundle_path: str, as_json: bool = False, *, threads: Optional[int] = None,
             prefill_threads: Optional[int] = None, verify: bool = True, allow_slow: bool = False,
             huge_pages: bool = True, **options: Any) -> int:
    """options: of `api.LanguageModel.talk`. The exit code."""
    from merino_runtime.api import open_model

    if options.get("system") is not None:
        options["system"] = as_text(options["system"])
    with open_model(bundle_path, threads=threads, prefill_threads=prefill_threads, verify=verify,
                    allow_slow=allow_slow, huge_pages=huge_pages, say=say_note) as model:
        talk = model.talk(**options)
        if as_json:
            write_json({"chat": model.bundle.name, "context": model.backend.context, "system": talk.system})
            return talk_in_json(talk)
        return talk_with_people(talk, model.bundle.name)


def talk_with_people(talk: Any, name: str) -> int:
    """talk: as `talk.Talk`. On a terminal what cannot be done is said and the talk goes on; from a pipe it ends."""
    ways = _Terminal() if is_terminal() else _Pipe()
    record = Record(talk.system)
    ways.tell(f"{name}: /help lists commands, ctrl-C stops an answer, ctrl-D leaves", greeting=True)
    while True:
        typed = ways.read()
        if typed is None:
            return 0
        line = Line("", typed)
        try:
            line = line_of(typed)
            if line.command == "exit":
                return 0
            if line.command:
                ways.tell(_obeyed(line, talk, record))
            elif line.text.strip():
                _answered(line.text, talk, record, ways)
        except MerinoError as error:
            ways.refuse(error)
        except KeyboardInterrupt:  # when an answer had just ended, or a second one while it was being stopped
            if not ways.goes_on:
                raise
            for event in talk.interrupted():
                if "done" in event:
                    record.add(line.text, event, 0)


def _obeyed(line: Line, talk: Any, record: Record) -> str:
    """What a command has to say."""
    if line.command == "reset":
        talk.reset()
        record.messages, record.done = [], None
        return "the turns are forgotten"
    if line.command == "system":
        if line.text:
            talk.set_system(line.text)
            record.system = line.text
        return f"system: {record.system}" if record.system is not None else "system: the template's own, if it has one"
    if line.command == "save":
        return record.save(line.text)
    if line.command == "stats":
        return record.stats()
    return "\n".join(f"{form}: {what}" for form, what in COMMANDS)


def _answered(text: str, talk: Any, record: Record, ways: Any) -> None:
    """Shows an answer; ctrl-C stops it, and what there is of it stays in the talk."""
    begin: Dict[str, Any] = {}
    done: Dict[str, Any] = {}

    def take(event: Dict[str, Any]) -> None:
        if "begin" in event:
            begin.update(event)
            if event["dropped_turns"]:
                ways.tell(f"the context is full: the oldest {event['dropped_turns']} turns are left out from here on")
            ways.begin(event["thinks"])
        elif "done" in event:
            done.update(event)
            record.add(text, event, begin.get("dropped_turns", 0))
        else:
            ways.show(event["text"])

    try:
        for event in talk.answer(text):
            take(event)
    except KeyboardInterrupt:
        if not ways.goes_on:
            raise
        for event in talk.interrupted():
            take(event)
    finally:
        if begin:
            ways.end()
    if done.get("stop_reason") == "interrupt":
        ways.tell("stopped")
    elif done.get("stop_reason") == "context":
        ways.tell(f"the context of {done['context']} tokens is full, so the answer ends here: /reset begins anew")
    elif done.get("stop_reason") == "length":
        ways.tell(f"the answer ends after {done['tokens']} tokens, as -n asks for")


class _Terminal:
    """A person's. ctrl-C at the prompt leaves where it comes twice."""
    goes_on = True  # after ctrl-C

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
                self.tell("ctrl-C once more, or ctrl-D, leaves")

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

    def tell(self, text: str, greeting: bool = False) -> None:  # noqa: ARG002
        lines = Wrapped(write_out, width(), takes_styles())
        lines.push(text, dim=True)
        lines.finish()

    def refuse(self, error: MerinoError) -> None:
        self.tell(str(error))


class _Pipe:
    """Each line of stdin is a turn; stdout gets the answers and nothing else."""
    goes_on = False

    def __init__(self) -> None:
        self._lines = stdin_lines()

    def read(self) -> Optional[str]:
        return next(self._lines, None)

    def begin(self, thinks: bool) -> None:
        pass

    def show(self, text: str) -> None:
        write_out(text)

    def end(self) -> None:
        write_out("\n")

    def tell(self, text: str, greeting: bool = False) -> None:
        if not greeting:
            for line in text.split("\n"):
                say(line)

    def refuse(self, error: MerinoError) -> None:
        raise error


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
                write_json({"done": True, "command": line.command, "said": _obeyed(line, talk, record)})
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
