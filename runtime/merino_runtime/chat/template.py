"""Renders conversations in a model's chat template. Knows nothing of models and ids.

Chat templates are Jinja programs. If the exporter can render one into parts exactly, a board needs no Jinja:
`by_parts`. Otherwise jinja2 renders the template here: `segments_of`. Both return segments, which separate the
template's own text, in which special tokens count, from the texts of messages, in which they do not. The Jinja
environment is that of transformers, for which authors write templates.
"""
import itertools
import json
import re
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from merino_runtime.bundle import Bundle, Chat, ChatParts, file_path
from merino_runtime.bundle.requirements import require
from merino_runtime.bundle.schema import MESSAGE_TEXTS
from merino_runtime.errors import MerinoError
from merino_runtime.generation.text import tail_to_hold
from merino_runtime.io.json_file import read_text

if TYPE_CHECKING:
    from merino_runtime.generation.text import Tokenizer

THINK, THINK_END = "<think>", "</think>"
DATE = "\0"  # in parts: today's date
TOOL_TEXTS = (*MESSAGE_TEXTS[:2], "json")  # forms in which templates render a tool's answer
MARK, MARK_END = "\ue000", "\ue001"  # of the private use area: no template contains them
Render = Callable[..., str]  # of a compiled template: its variables by name -> text
Message = Dict[str, Any]


class Turn(NamedTuple):
    user: str
    answer: str


class Segment(NamedTuple):
    text: str
    turn: Optional[int] = None  # index of the answer among the answers; None for other text
    own: bool = False  # the template's own text


class ChatTemplate:
    """The chat template of a bundle. It is read and compiled when that is first needed."""

    def __init__(self, bundle: Bundle, chat: Chat) -> None:
        self._bundle, self.chat = bundle, chat
        self._render: Optional[Render] = None

    def source(self) -> str:
        path = file_path(self._bundle, self.chat.template)
        assert path is not None, self.chat.template  # otherwise bundle.json is refused
        return read_text(path, "a chat template", "Copy or export the bundle again.")

    def render(self) -> Render:
        """Return the compiled template. Raise MerinoError if it is invalid, or jinja2 is missing."""
        if self._render is None:
            self._render = compiled(self.source(), f"the chat template of {self._bundle.name!r}")
        return self._render

    def switches_thinking(self) -> bool:
        """Return whether the template can be asked for answers without thinking."""
        if self.chat.parts is not None:
            return self.chat.parts.no_think is not None
        messages = messages_of(None, (), "x")
        without, usual = (rendered(self.render(), self.chat.tokens, messages, no_think) for no_think in (True, False))
        return without != usual

    def segments(self, messages: Sequence[Message], no_think: bool, variables: Optional[Dict[str, Any]] = None
                 ) -> List[Segment]:
        """Render messages up to the next answer. variables: of the template, for which it is rendered by jinja2. Raise
        as `segments_of`."""
        parts = self.chat.parts
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        texts = [message["content"] for message in messages[system is not None:]]
        roles = [message["role"] for message in messages[system is not None:]]
        if parts is None or variables is not None or roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
            return segments_of(self.render(), self.chat, messages, no_think, **(variables or {}))
        turns = [Turn(texts[index], texts[index + 1]) for index in range(0, len(texts) - 1, 2)]
        return by_parts(parts, system, turns, texts[-1], no_think)


def by_parts(parts: ChatParts, system: Optional[str], turns: Sequence[Turn], user: str, no_think: bool
             ) -> List[Segment]:
    """Render the conversation up to its next answer. Raise MerinoError for a system message if the template supports
    none."""
    if system is None or not system and parts.texts.system == "filled":
        segments = [_own(parts, parts.begin)]
    elif parts.system is None:
        raise MerinoError(NO_SYSTEM)
    else:
        segments = [_own(parts, parts.system.before), Segment(text_of(parts.texts.system, system)),
                    _own(parts, parts.system.after)]
    for index, turn in enumerate(turns):
        segments += [Segment(text_of(parts.texts.user, turn.user)), _own(parts, parts.answer),
                     Segment(text_of(parts.texts.assistant, turn.answer), index), _own(parts, parts.user)]
    opening = parts.no_think if no_think and parts.no_think is not None else parts.generation
    return [*segments, Segment(text_of(parts.texts.user, user)), _own(parts, opening)]


NO_SYSTEM = ("the model's chat template takes no system message. Leave out --system and /system, and write its "
             "text into the first message.")


def _own(parts: ChatParts, text: str) -> Segment:
    if parts.date_format and DATE in text:
        text = text.replace(DATE, time.strftime(parts.date_format))
    return Segment(text, own=True)


def encode_segments(tokenizer: "Tokenizer", segments: Sequence[Segment], known: Callable[[int], Sequence[int]]
                    ) -> List[int]:
    """Return the ids of the segments. known: ids of a segment by its index, empty to encode its text."""
    ids: List[int] = []
    group: List[Tuple[str, bool]] = []
    for index, segment in enumerate(segments):
        if known(index):
            ids += [*tokenizer.encode_pieces(group), *known(index)]
            group = []
        else:
            group.append((segment.text, segment.own))
    return ids + tokenizer.encode_pieces(group)


class Thinking:
    """Separates an answer's thinking from the rest, as the text arrives. thinks: whether it begins inside thinking."""

    def __init__(self, thinks: bool = False) -> None:
        self._thinks, self._withheld = thinks, ""

    def push(self, text: str) -> List[Tuple[str, bool]]:
        """Return parts of the text, each with whether it is thinking. The marks belong to the thinking."""
        text, parts = self._withheld + text, []
        while True:
            mark = THINK_END if self._thinks else THINK
            start = text.find(mark)
            if start < 0:
                break
            end = start + (len(mark) if self._thinks else 0)
            parts.append((text[:end], self._thinks))
            text = text[end:]
            self._thinks = not self._thinks
        sure = len(text) - tail_to_hold(text, [THINK_END if self._thinks else THINK])
        parts.append((text[:sure], self._thinks))
        self._withheld = text[sure:]
        return [part for part in parts if part[0]]

    def finish(self) -> List[Tuple[str, bool]]:
        text, self._withheld = self._withheld, ""
        return [(text, self._thinks)] if text else []


def text_of(kind: str, text: str) -> str:
    """Return a message's text as a template renders it. kind: one of MESSAGE_TEXTS or TOOL_TEXTS."""
    if kind == "json":  # the template writes the quotes
        return json.dumps(text, ensure_ascii=False)[1:-1]
    if kind.startswith("answer") and THINK_END in text:
        text = text.split(THINK_END)[-1]
        if kind == "answer_lines":
            text = text.lstrip("\n")
    return text.strip() if kind in ("stripped", "answer_stripped") else text


def messages_of(system: Optional[str], turns: Sequence[Turn], user: str) -> List[Dict[str, str]]:
    """Return the messages as chat templates expect them."""
    messages = [] if system is None else [("system", system)]
    for turn in turns:
        messages += [("user", turn.user), ("assistant", turn.answer)]
    return [{"role": role, "content": content} for role, content in [*messages, ("user", user)]]


def segments_of(template: Render, chat: Chat, messages: Sequence[Message], no_think: bool, **variables: Any
                ) -> List[Segment]:
    """Render messages of any roles with a compiled template. A second rendering, with marks instead of the messages'
    texts, shows where these texts are. Raise MerinoError if the template raises, or if the messages' texts cannot be
    separated from its own."""
    text = rendered(template, chat.tokens, messages, no_think, **variables)
    if messages[0]["role"] == "system" and not messages[0]["content"] and text == rendered(
            template, chat.tokens, messages[1:], no_think, **variables):
        messages = messages[1:]  # some templates leave out an empty system message
    spoken = [index for index, message in enumerate(messages)  # a template may test whether a call comes with a text
              if message.get("content") or not message.get("tool_calls")]
    marks = {index: f"{MARK}{index}{MARK_END}" for index in spoken}
    stand_ins = [dict(message, content=marks.get(index, message.get("content")))
                 for index, message in enumerate(messages)]
    marked = rendered(template, chat.tokens, stand_ins, no_think, **variables)
    if spoken and messages[0]["role"] == "system" and marks.get(0, marked) not in marked:
        raise MerinoError(NO_SYSTEM)
    own = re.split("|".join(marks.values()) or "(?!)", marked)
    order = [int(index) for index in re.findall(f"{MARK}(\\d+){MARK_END}", marked)]
    if sorted(order) == spoken:
        roles = [messages[index]["role"] for index in order]
        contents = [messages[index]["content"] for index in order]
        for kinds in itertools.product(MESSAGE_TEXTS[:2], MESSAGE_TEXTS[:2], MESSAGE_TEXTS, TOOL_TEXTS):
            of_role = dict(zip(("system", "user", "assistant", "tool"), kinds))  # noqa: B905, not in 3.6
            taken = [text_of(of_role.get(role, "whole"), content)
                     for role, content in zip(roles, contents)]  # noqa: B905
            segments = [Segment(own[0], own=True)]
            for place, role in enumerate(roles):
                turn = roles[:place].count("assistant") if role == "assistant" else None
                segments += [Segment(taken[place], turn), Segment(own[place + 1], own=True)]
            if "".join(segment.text for segment in segments) == text:
                return segments
    raise MerinoError("the model's chat template changes the texts of this conversation in a way of its own, so that "
                      "they cannot be separated from the template's marks. /reset starts again.")


def rendered(template: Render, tokens: Dict[str, str], messages: Sequence[Dict[str, Any]], no_think: bool = False,
             **changed: Any) -> str:
    """Render a conversation up to its next answer. changed: replacements of the template's functions. Raise MerinoError
    with the template's error."""
    options = {"enable_thinking": False} if no_think else {}
    try:
        return template(messages=list(messages), add_generation_prompt=True, **dict(tokens, **options), **changed)
    except MemoryError:
        raise
    except Exception as error:  # a template can raise whatever a program can
        raise MerinoError(f"the chat template raises: {_shown(error)}. Change the messages, or leave out the system "
                          "prompt") from error


def compiled(text: str, source: str) -> Render:
    """Compile a template. source: its name in messages. Raise MerinoError if it is invalid, or jinja2 is missing."""
    jinja2 = require("jinja2", ["jinja2"])
    sandbox = require("jinja2.sandbox", ["jinja2"])

    class Sandbox(sandbox.ImmutableSandboxedEnvironment):  # type: ignore[name-defined]
        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            """Refuse str.format, with which templates left the sandbox before jinja2 3.1.6. Python 3.6 has 3.0.3."""
            return attr not in ("format", "format_map") and super().is_safe_attribute(obj, attr, value)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True,
                          extensions=["jinja2.ext.loopcontrols", _generation_tag(jinja2)])
    del environment.filters["attr"]  # the other way out

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=time.strftime)
    try:
        return environment.from_string(text).render
    except (jinja2.exceptions.TemplateError, RecursionError) as error:
        raise MerinoError(f"{source} is not a chat template: {_shown(error)}. Correct it, or export with "
                          "--set chat=false.") from error


def _tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
            sort_keys: bool = False) -> str:
    """Write JSON as transformers does; Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _generation_tag(jinja2: Any) -> Any:
    """Return an extension that ignores `{% generation %}`, which marks answers for training."""
    extension = require("jinja2.ext", ["jinja2"]).Extension

    class Generation(extension):  # type: ignore[misc, valid-type]
        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    return Generation


def _shown(error: BaseException) -> str:
    """Return the error in one line, without control characters."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub("[\x00-\x1f\x7f-\x9f]", "?", line)[:300]
