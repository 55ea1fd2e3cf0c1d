"""Pieces of text to tokenize, of documents and of samples, and which of them are learned.

A document of text is learned whole. A sample is a prompt with a completion, of which the completion is learned, several
such turns in order, or the messages of a chat, of which the assistant's are learned.
"""

import codecs
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from merino_edge.families.checkpoint import ChatTemplate
from merino_edge.storage.faults import shortened
from merino_edge.text.documents import END_OF_TEXT
from merino_edge.training.data.sources import GIVE_TEXT, DataSource, records
from merino_runtime.chat.template import compiled
from merino_runtime.errors import MerinoError

FIELDS = ("text", "prompt", "completion", "messages")
DOCUMENTS, COMPLETIONS, CHATS = ("text",), ("prompt", "completion"), ("messages",)
FORMS = (DOCUMENTS, COMPLETIONS, CHATS)
KNOWN = "`text`, `prompt` with `completion`, or `messages`"
READ_BYTES = 1 << 20
PIECE = 1 << 16  # characters of a longer document that are encoded at once, beside others


class Piece(NamedTuple):
    """`first`, `last`: whether it begins and ends its document or sample. `ends`: whether an answer ends with it."""

    text: str
    learned: bool = True
    first: bool = True
    last: bool = True
    ends: bool = False


class Pieces(NamedTuple):
    """`form`: the fields of its records; documents are cut into rows, samples are packed whole."""

    form: tuple[str, ...]
    pieces: Iterator[Piece]

    @property
    def samples(self) -> bool:
        return self.form != DOCUMENTS

    @property
    def chats(self) -> bool:
        return self.form == CHATS


def pieces_of(source: DataSource, chat: ChatTemplate | None) -> Pieces:
    """The pieces of a source, in its order. `chat`: the template of `messages`.

    Raises MerinoError, here or on the way, for text or a record that cannot be used, with its place.
    """
    if source.kind == "text":
        return Pieces(DOCUMENTS, text_pieces(source))
    entries = records(source, FIELDS)
    where, record = next(entries, ("", {}))
    if not where:
        raise MerinoError(f"no text in {source}: {GIVE_TEXT}")
    form = form_of(where, record)
    if form == CHATS and chat is None:
        raise MerinoError(
            f"{where}, has `messages`, and there is no chat template to write them in: give a --tokenizer with a"
            " chat_template.jinja beside it, or write the samples as `prompt` and `completion`"
        )

    def all_pieces() -> Iterator[Piece]:
        from_record = recorder(form, chat)
        yield from from_record(where, record)
        for place, each in entries:
            other = form_of(place, each)
            if other != form:
                raise MerinoError(
                    f"{place}, has {quoted(other)}, and what stands before it {quoted(form)}: one file has one form."
                    " Write two files, and give --data twice"
                )
            yield from from_record(place, each)

    return Pieces(form, all_pieces())


def form_of(where: str, record: Mapping[str, Any]) -> tuple[str, ...]:
    fields = tuple(name for name in FIELDS if record.get(name) is not None)
    if fields not in FORMS:
        has = quoted(fields) if fields else f"none of these fields, but {shortened(', '.join(record)) or 'nothing'}"
        raise MerinoError(f"{where}, has {has}, expected: {KNOWN}")
    return fields


def quoted(fields: tuple[str, ...]) -> str:
    return " and ".join(f"`{name}`" for name in fields)


def recorder(form: tuple[str, ...], chat: ChatTemplate | None) -> Any:
    """A function: (where, record) -> its pieces."""
    if form == CHATS:
        assert chat is not None
        template = compiled(chat.text, chat.source)
        return lambda where, record: message_pieces(where, record["messages"], template, chat.tokens)
    return document_piece if form == DOCUMENTS else completion_pieces


def document_piece(where: str, record: Mapping[str, Any]) -> Iterator[Piece]:
    text = string_of(where, record, "text")
    if text.strip():
        yield from cut(text)


def completion_pieces(where: str, record: Mapping[str, Any]) -> Iterator[Piece]:
    prompts, completions = (strings_of(where, record, name) for name in ("prompt", "completion"))
    if len(prompts) != len(completions):
        raise MerinoError(f"{where}, has {len(prompts)} prompts and {len(completions)} completions: give each its own")
    if not all(completions):
        raise MerinoError(f"{where}, has an empty `completion`: leave it out, there is nothing to learn")
    for turn, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        yield Piece(prompt, learned=False, first=turn == 0, last=False)
        yield Piece(completion, first=False, last=turn == len(prompts) - 1, ends=True)


def strings_of(where: str, record: Mapping[str, Any], name: str) -> list[str]:
    """The strings of a field that is a string, or a list of at least one."""
    value = record[name]
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return value
    return [string_of(where, record, name)]


def string_of(where: str, record: Mapping[str, Any], name: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise MerinoError(f"{where}, `{name}` is {shortened(repr(value))}, must be a string")
    return value


def message_pieces(where: str, messages: Any, template: Any, tokens: Mapping[str, str]) -> Iterator[Piece]:
    """The template's text of the assistant's turns is learned, up to the token that ends them."""
    if not (isinstance(messages, list) and all(isinstance(each, dict) and "role" in each for each in messages)):
        raise MerinoError(f"{where}, `messages` is {shortened(repr(messages))}, must be a list of objects with `role`")
    turns = [number for number, each in enumerate(messages) if each["role"] == "assistant"]
    if not turns:
        raise MerinoError(f"{where}, has no message of the assistant: leave it out, there is nothing to learn")
    ends = [0]
    texts = [""]

    def up_to(count: int, prompted: bool) -> None:
        try:
            text = template(messages=messages[:count], add_generation_prompt=prompted, **tokens)
        except Exception as error:  # a template can raise whatever a program can
            raise MerinoError(
                f"{where}, the chat template raises: {shortened(str(error))}. Correct the messages"
            ) from error
        if not text.startswith(texts[-1]):
            raise MerinoError(
                f"{where}, the chat template writes earlier messages anew at message {count}, so it is not known which"
                " text is the assistant's: cut the chat into one sample for each answer"
            )
        texts.append(text)
        ends.append(len(text))

    for turn in turns:
        up_to(turn, True)
        up_to(turn + 1, False)
    for number, (begin, end) in enumerate(pairwise(ends)):
        yield Piece(texts[-1][begin:end], number % 2 == 1, number == 0, number == len(ends) - 2)


def text_pieces(source: DataSource) -> Iterator[Piece]:
    """The pieces of a UTF-8 text file's documents, which `<|endoftext|>` separates; spaces around each are dropped.
    Reads it in constant memory."""
    waiting, first = "", True
    for more in decoded(source):
        *whole, waiting = (waiting + more).split(END_OF_TEXT)
        for document in whole:
            yield from ended(document, first)
            first = True
        while len(waiting) > 2 * PIECE:
            text = waiting.lstrip() if first else waiting
            place = cutting_place(text)
            if text[:place].strip():
                yield Piece(text[:place], first=first, last=False)
                first = False
            waiting = text[place:]
    yield from ended(waiting, first)


def ended(rest: str, first: bool) -> Iterator[Piece]:
    """The pieces of the end of a document."""
    text = rest.strip() if first else rest.rstrip()
    if text or not first:
        yield from cut(text, first)


def cut(text: str, first: bool = True) -> Iterator[Piece]:
    while len(text) > 2 * PIECE:
        place = cutting_place(text)
        yield Piece(text[:place], first=first, last=False)
        text, first = text[place:], False
    yield Piece(text, first=first)


def cutting_place(text: str) -> int:
    """Before a space behind a word, so that a byte-level BPE splits both sides into the same words as the whole. A text
    without one is cut anywhere."""
    for mark in (" ", "\n"):
        place = text.rfind(mark, PIECE // 2, PIECE)
        while place > 0 and text[place - 1].isspace():
            place -= 1
        if place > 0:
            return place
    return PIECE


def decoded(source: DataSource) -> Iterator[str]:
    """Text of a file, in pieces. Raises MerinoError for a file that is no UTF-8 text."""
    decoder, read = codecs.getincrementaldecoder("utf-8")(), 0
    with source.path.open("rb") as file:
        while True:
            content = file.read(READ_BYTES)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(content, final=not content)
            except UnicodeDecodeError as error:
                raise MerinoError(
                    f"{source} is not UTF-8 text (byte {read - pending + error.start:,}): convert it first"
                ) from error
            if "\0" in text:
                raise MerinoError(
                    f"{source} is not text, with a NUL byte in its first {read + len(content):,}: convert it first"
                )
            if not content:
                return
            read += len(content)
            yield text
