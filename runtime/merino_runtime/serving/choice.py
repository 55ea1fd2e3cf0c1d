"""What an answer consists of, token by token: content, thinking before it, calls of tools."""
import json
import uuid
from typing import Any, Dict, List, NamedTuple, Optional, Union

from merino_runtime.chat.screen import Thinking
from merino_runtime.chat.template import THINK, THINK_END
from merino_runtime.generation.text import tail_to_hold
from merino_runtime.io.json_file import value_of
from merino_runtime.serving.asks import Ended, Event, Failed, Piece, RefusedError, Used
from merino_runtime.serving.prompts import CALL, CALL_END


class Said(NamedTuple):
    text: str
    thinking: bool = False


class Call(NamedTuple):
    id: str
    name: str
    arguments: Dict[str, Any]


Delta = Union[Said, Call]


class Choice:
    """One answer. talk: thinking and, with `tools`, calls are told from the content; else all text is content."""

    def __init__(self, talk: bool = False, thinks: bool = False, tools: bool = False) -> None:
        self._thinking = Thinking(thinks) if talk else None
        self._calls = Calls() if tools else None
        self._began = False  # whether content was told
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
            return [Said(text)] if text else []
        return [delta for piece, thinks in self._thinking.push(text) for delta in self._told(piece, thinks)]

    def _rest(self) -> List[Delta]:
        pieces = [] if self._thinking is None else self._thinking.finish()
        told = [delta for piece, thinks in pieces for delta in self._told(piece, thinks)]
        return told + (self._calls.finish() if self._calls else [])

    def _told(self, text: str, thinks: bool) -> List[Delta]:
        if thinks:
            text = text.replace(THINK, "", 1).replace(THINK_END, "", 1)
            return [Said(text, thinking=True)] if text else []
        if self.thinking and not self._began:
            text = text.lstrip("\n")
        self._began = self._began or bool(text)
        if self._calls is None:
            return [Said(text)] if text else []
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
    """Tells calls of tools from the text around them. What is marked as one and is none stays text."""

    def __init__(self) -> None:
        self._text, self._inside, self._any = "", False, False

    def push(self, text: str) -> List[Delta]:
        self._text += text
        deltas: List[Delta] = []
        while True:
            mark = CALL_END if self._inside else CALL
            place = self._text.find(mark)
            if place < 0:
                break
            before, self._text = self._text[:place], self._text[place + len(mark):]
            deltas += self._call(before, CALL_END) if self._inside else self._said(before)
            self._inside = not self._inside
        if not self._inside:
            sure = len(self._text) - tail_to_hold(self._text, [CALL])
            deltas += self._said(self._text[:sure])
            self._text = self._text[sure:]
        return deltas

    def finish(self) -> List[Delta]:
        text, self._text = self._text, ""
        return self._call(text, "") if self._inside else self._said(text)

    def _said(self, text: str) -> List[Delta]:
        if self._any and not text.strip():  # line ends around calls
            return []
        return [Said(text)] if text else []

    def _call(self, text: str, end: str) -> List[Delta]:
        call = call_of(text)
        if call is None:
            return [Said(CALL + text + end)]
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


def arguments_text(call: Call) -> str:
    return json.dumps(call.arguments, ensure_ascii=False)
