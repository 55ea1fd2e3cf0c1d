"""A chat template for bundle.json, split into fixed parts if that is exact, so that the board needs no Jinja.

Conversations are rendered with marks instead of the messages' texts. The text between two marks is a part if it is the
same in each turn. Then conversations of up to three turns are rendered by the template and from the parts, with texts
that templates treat specially. Parts are kept only if both give the same text each time.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from merino_edge.families.checkpoint import TEMPLATE, ChatTemplate
from merino_runtime.bundle import Chat, ChatParts, MessageTexts, SystemParts
from merino_runtime.bundle.schema import MESSAGE_TEXTS
from merino_runtime.chat.template import DATE, MARK, MARK_END, Render, Turn, by_parts, compiled, messages_of, rendered
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_shape import LONGEST_PASSAGE

TEXTS = (
    "x", " x ", "\n\nx\n", "", " \n\t", "<think>\nr\n</think>\n\nx\n", "<think>r</think>  x ", "</think>", "<think>r",
    "<|im_end|>\n<|im_start|>user", "{{ x }}{% y %}{# z #}", "\u3000x\u00a0",
    "é\U0001f600\u0301 \"'\\<&>\r\n", "[/INST] </s>",
)  # fmt: skip
# Before a template that takes a message's text as a list of parts, as models of text and images have them.
IN_PARTS = (
    "{%- set made = namespace(messages=[]) %}{% for message in messages %}{% set text = message.content %}"
    "{% if text is string %}{% set message = dict(message, content=[{'type': 'text', 'text': text}]) %}{% endif %}"
    "{% set made.messages = made.messages + [message] %}{% endfor %}{% set messages = made.messages %}{{ '' }}"
)
WHOLE = MessageTexts("whole", "whole", "whole")


class InexactError(Exception):
    """Why a template cannot be split into parts."""


class NoSystemError(Exception):
    """The template leaves the system message out."""


class BundleChat(NamedTuple):
    """`why_jinja`: why the template could not be split into parts; empty if it was."""

    chat: Chat
    why_jinja: str


def chat_of(given: ChatTemplate) -> BundleChat:
    """The entry of bundle.json for a template. Raises MerinoError if the template raises in a conversation of three
    turns."""
    try:
        template = compiled(given.text, given.source)
        for count in range(3):
            rendered(template, given.tokens, messages_of(None, [Turn("x", "y")] * count, "z"))
    except MerinoError as error:
        raise MerinoError(
            f"{given.source}: {error}. Correct the template, or leave it out of the bundle with --set chat=false;"
            " nothing was written"
        ) from error
    try:
        parts = parts_of(template, given.tokens)
    except InexactError as why:
        return BundleChat(Chat(TEMPLATE, given.tokens, None), str(why))
    return BundleChat(Chat(TEMPLATE, given.tokens, parts), "")


def for_texts(given: ChatTemplate) -> ChatTemplate:
    """Return a template that takes messages of text: one that takes lists of parts gets them made from the texts."""

    def shows_text(template: ChatTemplate) -> bool:
        try:
            render = compiled(template.text, template.source)
            return MARK in rendered(render, template.tokens, messages_of(None, [], MARK))
        except MerinoError:
            return False

    in_parts = given._replace(text=IN_PARTS + given.text)
    return in_parts if not shows_text(given) and shows_text(in_parts) else given


def parts_of(template: Render, tokens: dict[str, str]) -> ChatParts:
    """Raises InexactError if the parts render another text than the template."""
    formats: list[str] = []

    def date(form: str) -> str:
        formats.append(form)
        return DATE

    def own_texts(has_system: bool, no_think: bool = False) -> list[str]:
        """The template's own text before, between and behind the messages of three turns."""
        marks = [f"{MARK}{index}{MARK_END}" for index in range(5 + has_system)]
        system, users, answers = marks[: int(has_system)], marks[has_system::2], marks[has_system + 1 :: 2]
        turns = [Turn(*pair) for pair in zip(users[:-1], answers, strict=True)]
        messages = messages_of(system[0] if system else None, turns, users[-1])
        text = rendered(template, tokens, messages, no_think, strftime_now=date)
        if system and system[0] not in text:
            raise NoSystemError
        pattern = "|".join(marks)
        if re.findall(pattern, text) != marks:
            raise InexactError("it does not give each message once")
        return re.split(pattern, text)

    begin, answer, user, *rest = alone = own_texts(False)
    without_thinking = own_texts(False, no_think=True)
    if rest[:2] != [answer, user]:
        raise InexactError("its turns differ")
    if without_thinking[:-1] != alone[:-1]:
        raise InexactError("without thinking, more than the beginning of the answer differs")
    system = system_parts(alone, own_texts)
    if len(set(formats)) > 1:
        raise InexactError("it gives the date in several forms")
    parts = ChatParts(
        begin, system, answer, user, alone[-1], without_thinking[-1] if without_thinking != alone else None,
        formats[0] if formats else None, WHOLE,
    )  # fmt: skip
    check_strings(parts)
    return with_texts(template, tokens, parts)


def system_parts(alone: Sequence[str], own_texts: Callable[[bool], list[str]]) -> SystemParts | None:
    """None if the template raises for a system message, or leaves it out."""
    try:
        before, after, *rest = own_texts(True)
    except (MerinoError, NoSystemError):
        return None
    if list(rest) != list(alone[1:]):
        raise InexactError("a system message changes the turns")
    return SystemParts(before, after)


def check_strings(parts: ChatParts) -> None:
    strings = [parts.begin, parts.answer, parts.user, parts.generation, parts.no_think or "", *(parts.system or ())]
    if any(len(text) > LONGEST_PASSAGE for text in strings):
        raise InexactError(f"it has more than {LONGEST_PASSAGE} characters of its own")
    if parts.date_format is None and any(DATE in text for text in strings):
        raise InexactError("it has a NUL in its text")


def with_texts(template: Render, tokens: dict[str, str], parts: ChatParts) -> ChatParts:
    """The parts, with the rule by which the template trims each role's text. Raises InexactError if no rule gives
    the template's text in every conversation."""

    def same(candidate: ChatParts, system: str | None, turns: Sequence[Turn], user: str) -> bool:
        for no_think in (False, True)[: 1 + (parts.no_think is not None)]:
            joined = "".join(piece.text for piece in by_parts(candidate, system, turns, user, no_think))
            if joined != rendered(template, tokens, messages_of(system, turns, user), no_think):
                return False
        return True

    for role in MessageTexts._fields:
        if role == "system" and parts.system is None:
            continue
        for kind in MESSAGE_TEXTS:
            candidate = parts._replace(texts=parts.texts._replace(**{role: kind}))
            if all(same(candidate, *conversation_with(role, text)) for text in TEXTS):
                parts = candidate
                break
        else:
            raise InexactError(f"it changes texts of the {role} by no rule that is known")
    for system, turns, user in conversations(parts.system is not None):
        if not same(parts, system, turns, user):
            raise InexactError("the same parts do not fit every conversation")
    return parts


def conversation_with(role: str, text: str) -> tuple[str | None, list[Turn], str]:
    if role == "system":
        return text, [Turn("x", "y")], "z"
    return None, [Turn(text, "y") if role == "user" else Turn("x", text)], "z"


def conversations(has_system: bool) -> Iterator[tuple[str | None, list[Turn], str]]:
    """Conversations of one, two and three turns, each text beside each other one."""
    for first, text in enumerate(TEXTS):
        for step in range(len(TEXTS)):
            texts = [TEXTS[(first + step * place) % len(TEXTS)] for place in range(1, 5)]
            turns = [Turn(text, texts[0]), Turn(texts[1], texts[2])][: step % 3]
            yield None, turns, texts[3]
            if has_system:
                yield text, turns, texts[3]
