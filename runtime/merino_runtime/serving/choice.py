"""Splits a completion into content, the thinking before it, and tool calls, token by token."""
import json
import time
import uuid
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

from merino_runtime.chat.template import THINK, THINK_END, Thinking
from merino_runtime.generation.text import tail_to_hold
from merino_runtime.io.json_file import value_of
from merino_runtime.serving.prompts import CALL, CALL_END
from merino_runtime.serving.requests import Event, Failed, Finished, Progress, RefusedError, TextChunk, Usage


class TextDelta(NamedTuple):
    text: str
    thinking: bool = False


class Call(NamedTuple):
    id: str
    name: str
    arguments: Dict[str, Any]

    @property
    def arguments_text(self) -> str:
        return json.dumps(self.arguments, ensure_ascii=False)


Delta = Union[TextDelta, Call]


class Choice:
    """The completion of one prompt. chat: separate thinking and, with `tools`, calls from the content; otherwise all
    text is content. required: the completion is a call."""

    def __init__(self, chat: bool = False, thinks: bool = False, tools: bool = False, required: bool = False) -> None:
        self._required = required
        self._thinking = Thinking(thinks) if chat else None
        self._calls = Calls() if tools else None
        self._has_content = False
        self.raw = ""  # all text
        self.content, self.thinking = "", ""
        self.calls: List[Call] = []
        self.chunks: List[TextChunk] = []
        self.tokens = 0  # generated so far
        self.reason: Optional[str] = None
        self.usage: Optional[Usage] = None
        self.embedding: Optional[List[float]] = None
        self.refusal: Optional[RefusedError] = None

    def take(self, event: Event) -> List[Delta]:
        if isinstance(event, TextChunk):
            if event.id is not None:
                self.chunks.append(event)
            if not event.of_prompt:
                self.raw += event.text
                self.tokens += event.tokens if event.id is not None else 0
            if self._thinking is None:
                return self._keep([TextDelta(event.text)] if event.text else [])
            return self._keep(self._split(self._thinking.push(event.text)))
        if isinstance(event, Finished):
            deltas = self._split(self._thinking.finish()) if self._thinking else []
            if self._calls and not (event.reason != "stop" and (self._required or self._calls.inside)):
                deltas += self._calls.finish()  # a call that was cut is neither a call nor content
            self.reason, self.usage, self.embedding = event.reason, event.usage, event.embedding
            return self._keep(deltas)
        if isinstance(event, Failed):
            self.reason, self.refusal = "failed", event.refusal
        return []

    def _split(self, parts: List[Tuple[str, bool]]) -> List[Delta]:
        return [delta for text, thinks in parts for delta in self._deltas_of(text, thinks)]

    def _deltas_of(self, text: str, thinks: bool) -> List[Delta]:
        if thinks:
            text = text.replace(THINK, "", 1).replace(THINK_END, "", 1)
            return [TextDelta(text, thinking=True)] if text else []
        if self.thinking and not self._has_content:
            text = text.lstrip("\n")
        self._has_content = self._has_content or bool(text)
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
    """Separates tool calls from the text around them. A marked text that is not a valid call stays text."""

    def __init__(self) -> None:
        self._text, self.inside, self._any = "", False, False

    def push(self, text: str) -> List[Delta]:
        self._text += text
        deltas: List[Delta] = []
        while True:
            mark = CALL_END if self.inside else CALL
            start = self._text.find(mark)
            if start < 0:
                break
            before, self._text = self._text[:start], self._text[start + len(mark):]
            deltas += self._call(before, CALL_END) if self.inside else self._text_deltas(before)
            self.inside = not self.inside
        if not self.inside:
            sure = len(self._text) - tail_to_hold(self._text, [CALL])
            deltas += self._text_deltas(self._text[:sure])
            self._text = self._text[sure:]
        return deltas

    def finish(self) -> List[Delta]:
        text, self._text = self._text, ""
        return self._call(text, "") if self.inside else self._text_deltas(text)

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
    """Parse a call's JSON; None if it is not a call."""
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
    """Return JSON for a stream of lines. It escapes characters at which clients in Python end lines."""
    text = json.dumps(value, ensure_ascii=False)
    for character in "\x85\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "replace")


class ResponseOptions(NamedTuple):
    """How the response to one request is written."""
    model: str
    stream: bool
    chat: bool  # as messages; otherwise as text
    tools: bool = False
    required: bool = False  # the answer is a call
    thinks: bool = False
    shows_thinking: bool = True
    usage: bool = False  # in a stream: a chunk with the usage at the end
    counts: bool = False  # in a stream: each chunk has the number of tokens so far
    logprobs: bool = False
    n: int = 1  # answers per prompt
    echo: Tuple[str, ...] = ()  # per prompt: the text before the completion
    base64: bool = False  # of embeddings
    head: Optional[Dict[str, Any]] = None  # what a response repeats of its request


class Writer:
    """Writes the response to one request in one interface, whole or as a stream."""
    content_type = "text/event-stream"
    gathers = False  # whether `written` also gathers what `whole` returns

    def __init__(self, options: ResponseOptions, count: int, tokenizer: Any) -> None:
        """count: of completions."""
        self.options, self.stream, self.tokenizer = options, options.stream, tokenizer
        self.choices = [Choice(options.chat or options.thinks, options.thinks, options.tools, options.required)
                        for _ in range(count)]
        self.id, self.created_s = uuid.uuid4().hex[:24], int(time.time())

    def take(self, index: int, event: Event) -> bytes:
        """Return the bytes that a stream writes for an event of the completion `index`."""
        if self.over:
            return b""
        deltas = self.choices[index].take(event)
        return self.written(index, event, deltas) if self.stream or self.gathers else b""

    def written(self, index: int, event: Event, deltas: List[Delta]) -> bytes:
        """Return the bytes for the pieces of an answer that an event added."""
        raise NotImplementedError

    def whole(self) -> Dict[str, Any]:
        """Return the response that is not streamed."""
        raise NotImplementedError

    @property
    def over(self) -> bool:
        return all(choice.reason for choice in self.choices)

    @property
    def refusal(self) -> Optional[RefusedError]:
        return next((choice.refusal for choice in self.choices if choice.refusal), None)


def comment_of(event: Progress) -> bytes:
    """Return the progress of a prefill as a comment in a stream of events."""
    return f": {event.ids} of {event.total} tokens of the prompt\n\n".encode("ascii")
