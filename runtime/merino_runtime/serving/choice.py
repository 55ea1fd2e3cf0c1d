"""What an answer consists of, token by token: content, thinking before it, calls of tools."""
import json
import uuid
from typing import Any, Dict, List, NamedTuple, Optional, Union

from merino_runtime.chat.screen import Thinking
from merino_runtime.chat.template import THINK, THINK_END
from merino_runtime.generation.text import tail_to_hold
from merino_runtime.io.json_file import value_of
from merino_runtime.serving.prompts import CALL, CALL_END
from merino_runtime.serving.requests import Ended, Event, Failed, Piece, RefusedError, Used


class TextDelta(NamedTuple):
    text: str
    thinking: bool = False


class Call(NamedTuple):
    id: str
    name: str
    arguments: Dict[str, Any]


Delta = Union[TextDelta, Call]


class Choice:
    """One answer. chat: thinking and, with `tools`, calls are separated from the content; else all text is content."""

    def __init__(self, chat: bool = False, thinks: bool = False, tools: bool = False) -> None:
        self._thinking = Thinking(thinks) if chat else None
        self._calls = Calls() if tools else None
        self._began = False  # whether content was returned
        self.raw = ""  # all text
        self.content, self.thinking = "", ""
        self.calls: List[Call] = []
        self.pieces: List[Piece] = []
        self.tokens = 0  # generated so far
        self.reason: Optional[str] = None
        self.used: Optional[Used] = None
        self.refusal: Optional[RefusedError] = None

    def take(self, event: Event) -> List[Delta]:
        if isinstance(event, Piece):
            if event.id is not None:
                self.pieces.append(event)
            if not event.of_prompt:
                self.raw += event.text
                self.tokens += event.tokens if event.id is not None else 0
            return self._keep(self._split(event.text))
        if isinstance(event, Ended):
            deltas = self._keep(self._rest())
            self.reason, self.used = event.reason, event.used
            return deltas
        if isinstance(event, Failed):
            self.reason, self.refusal = "failed", event.refusal
        return []

    def _split(self, text: str) -> List[Delta]:
        if self._thinking is None:
            return [TextDelta(text)] if text else []
        return [delta for piece, thinks in self._thinking.push(text) for delta in self._deltas_of(piece, thinks)]

    def _rest(self) -> List[Delta]:
        pieces = [] if self._thinking is None else self._thinking.finish()
        deltas = [delta for piece, thinks in pieces for delta in self._deltas_of(piece, thinks)]
        return deltas + (self._calls.finish() if self._calls else [])

    def _deltas_of(self, text: str, thinks: bool) -> List[Delta]:
        if thinks:
            text = text.replace(THINK, "", 1).replace(THINK_END, "", 1)
            return [TextDelta(text, thinking=True)] if text else []
        if self.thinking and not self._began:
            text = text.lstrip("\n")
        self._began = self._began or bool(text)
        if self._calls is None:
            return [TextDelta(text)] if text else []
        return self._calls.push(text)

    def _keep(self, deltas: List[Delta]) -> List[Delta]:
        for delta in deltas:
            if isinstance(delta, Call):
                self.calls.append(delta)
            elif delta.thinking:
                self.thinking += delta.text
            else:
                self.content += delta.text
        return deltas


class Calls:
    """Separates calls of tools from the text around them. What is marked as a call and is none stays text."""

    def __init__(self) -> None:
        self._text, self._inside, self._any = "", False, False

    def push(self, text: str) -> List[Delta]:
        self._text += text
        deltas: List[Delta] = []
        while True:
            mark = CALL_END if self._inside else CALL
            start = self._text.find(mark)
            if start < 0:
                break
            before, self._text = self._text[:start], self._text[start + len(mark):]
            deltas += self._call(before, CALL_END) if self._inside else self._text_deltas(before)
            self._inside = not self._inside
        if not self._inside:
            sure = len(self._text) - tail_to_hold(self._text, [CALL])
            deltas += self._text_deltas(self._text[:sure])
            self._text = self._text[sure:]
        return deltas

    def finish(self) -> List[Delta]:
        text, self._text = self._text, ""
        return self._call(text, "") if self._inside else self._text_deltas(text)

    def _text_deltas(self, text: str) -> List[Delta]:
        if self._any and not text.strip():  # line ends around calls
            return []
        return [TextDelta(text)] if text else []

    def _call(self, text: str, end: str) -> List[Delta]:
        call = call_of(text)
        if call is None:
            return [TextDelta(CALL + text + end)]
        self._any = True
        return [call]


def call_of(text: str) -> Optional[Call]:
    try:
        value = value_of(text)
    except ValueError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = value_of(arguments)
        except ValueError:
            return None
    return Call(f"call_{uuid.uuid4().hex[:24]}", value["name"], arguments) if isinstance(arguments, dict) else None


def one_line(value: Any) -> bytes:
    """JSON for a stream of lines. Clients in Python end lines at these characters too, which JSON does not escape."""
    text = json.dumps(value, ensure_ascii=False)
    for character in "\x85\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "replace")


def arguments_text(call: Call) -> str:
    return json.dumps(call.arguments, ensure_ascii=False)
