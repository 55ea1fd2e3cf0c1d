"""Records and text files as segments of text: what the tokenizer encodes, and which parts the loss counts.

A document is learned whole. A sample is a prompt with a completion, several such turns, or the messages of a chat; the
loss counts its completions, or the assistant's messages.
"""

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, pairwise
from typing import Any, NamedTuple

from merino_edge.families.checkpoint import ChatTemplate
from merino_edge.storage.faults import shortened
from merino_edge.text.documents import END_OF_TEXT
from merino_edge.training.sources import GIVE_TEXT, DataSource, records
from merino_runtime.chat.template import compiled
from merino_runtime.errors import MerinoError

Record = Mapping[str, Any]
FIELDS = "text", "prompt", "completion", "messages"
FORMS = {("text",): "documents", ("prompt", "completion"): "completions", ("messages",): "chats"}
# Also read: the forms of Alpaca and of ShareGPT, and the tools of a chat.
OTHER_FIELDS = "instruction", "input", "output", "conversations", "system", "tools"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
         "tool": "tool", "function_response": "tool", "observation": "tool"}  # fmt: skip
KNOWN = "`text`, `prompt` with `completion`, `messages`, `instruction` with `output`, or `conversations`"
READ_BYTES = 1 << 20
SEGMENT = 1 << 16  # characters of a longer document that are encoded at once


class Segment(NamedTuple):
    """`first`, `last`: whether it starts and ends its document or sample. `turn_end`: whether an answer ends with it,
    so that an end token follows."""

    text: str
    learned: bool = True
    first: bool = True
    last: bool = True
    turn_end: bool = False


def segments_of(source: DataSource, chat: ChatTemplate | None) -> tuple[str, Iterator[Segment]]:
    """Return (documents, completions or chats; the segments of a source in its order).

    chat: the template that `messages` are written with. Raises MerinoError, now or later, for text or a record that
    cannot be used, with its place.
    """
    if source.kind == "text":
        return "documents", document_segments(read_chunks(source))
    entries = records(source, (*FIELDS, *OTHER_FIELDS))
    start = next(entries, None)
    if start is None:
        raise MerinoError(f"no text in {source}: {GIVE_TEXT}")
    form, _ = formed(*start, chat)
    if form == ("messages",) and chat is None:
        raise MerinoError(
            f"{start[0]}, has `messages`, and there is no chat template to write them in: give a --tokenizer with a"
            " chat_template.jinja beside it, or write the samples as `prompt` and `completion`"
        )
    template = compiled(chat.text, chat.source) if chat and form == ("messages",) else None

    def all_segments() -> Iterator[Segment]:
        for where, given in chain([start], entries):
            other, record = formed(where, given, chat)
            if other != form:
                raise MerinoError(
                    f"{where}, has {quoted(other)}, and what stands before it {quoted(form)}: one file has one form."
                    " Write two files, and give --data twice"
                )
            if form == ("text",):
                yield from document_segments([string_of(where, record, "text")])
            elif template is None or chat is None:
                yield from completion_segments(where, record)
            else:
                yield from message_segments(where, record, template, chat.tokens)

    return FORMS[form], all_segments()


def formed(where: str, record: Record, chat: ChatTemplate | None) -> tuple[tuple[str, ...], Record]:
    """Return a record's form, and the record in it. Raises MerinoError for a record in no known form."""
    fields = tuple(name for name in FIELDS if record.get(name) is not None)
    if not fields and isinstance(record.get("conversations"), list):
        fields, record = ("messages",), from_sharegpt(where, record)
    elif not fields and isinstance(record.get("instruction"), str) and isinstance(record.get("output"), str):
        record = from_alpaca(record, chat)
        fields = ("messages",) if chat else ("prompt", "completion")
    if fields not in FORMS:
        has = quoted(fields) if fields else f"none of these fields, but {shortened(', '.join(record)) or 'nothing'}"
        raise MerinoError(f"{where}, has {has}, expected: {KNOWN}")
    return fields, record


def from_alpaca(record: Record, chat: ChatTemplate | None) -> Record:
    """Write `instruction`, `input`, `output` as messages, or, without a template, as Alpaca's prompt and completion."""
    instruction, given, output = record["instruction"], record.get("input") or "", record["output"]
    if chat:
        user = {"role": "user", "content": f"{instruction}\n\n{given}" if given else instruction}
        return {"messages": [user, {"role": "assistant", "content": output}]}
    middle = f"\n\n### Input:\n{given}" if given else ""
    return {"prompt": f"### Instruction:\n{instruction}{middle}\n\n### Response:\n", "completion": output}


def from_sharegpt(where: str, record: Record) -> Record:
    """Write `conversations`, lists of `from` and `value`, as messages. Raises MerinoError for an unknown speaker."""
    messages = [{"role": "system", "content": record["system"]}] if record.get("system") else []
    for turn in record["conversations"]:
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if speaker not in ROLES:
            raise MerinoError(
                f"{where}, a turn of `conversations` is {shortened(repr(turn))}, must have `from`, one of"
                f" {', '.join(ROLES)}, and `value`"
            )
        messages.append({"role": ROLES[speaker], "content": turn.get("value", "")})
    return {"messages": messages, "tools": record.get("tools")}


def quoted(fields: tuple[str, ...]) -> str:
    return " and ".join(f"`{name}`" for name in fields)


def string_of(where: str, record: Record, name: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise MerinoError(f"{where}, `{name}` is {shortened(repr(value))}, must be a string")
    return value


def completion_segments(where: str, record: Record) -> Iterator[Segment]:
    def strings(name: str) -> list[str]:
        value = record[name]
        listed = isinstance(value, list) and value and all(isinstance(text, str) for text in value)
        return value if listed else [string_of(where, record, name)]

    prompts, completions = strings("prompt"), strings("completion")
    if len(prompts) != len(completions):
        raise MerinoError(f"{where}, has {len(prompts)} prompts and {len(completions)} completions: give each its own")
    if not all(completions):
        raise MerinoError(f"{where}, has an empty `completion`: leave it out, there is nothing to learn")
    for turn, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        yield Segment(prompt, learned=False, first=turn == 0, last=False)
        yield Segment(completion, first=False, last=turn == len(prompts) - 1, turn_end=True)


def message_segments(where: str, record: Record, template: Any, tokens: Mapping[str, str]) -> Iterator[Segment]:
    """Yield a chat as its template writes it; the assistant's turns are learned, with the token that ends them."""
    messages, tools = record["messages"], record.get("tools")
    if not (isinstance(messages, list) and all(isinstance(turn, dict) and "role" in turn for turn in messages)):
        raise MerinoError(f"{where}, `messages` is {shortened(repr(messages))}, must be a list of objects with `role`")
    if isinstance(tools, str):  # as columns of Parquet often have them
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise MerinoError(f"{where}, `tools` is {shortened(repr(tools))}, must be a list of tools") from error
    given = {**tokens, "tools": tools} if tools else dict(tokens)
    turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise MerinoError(f"{where}, has no message of the assistant: leave it out, there is nothing to learn")
    # The text up to a turn's start, with the generation prompt, and up to its end, for each turn.
    text, ends = "", [0]
    for count, prompted in ((turn + after, not after) for turn in turns for after in (0, 1)):
        before = text
        try:
            text = template(messages=messages[:count], add_generation_prompt=prompted, **given)
        except Exception as error:  # a template can raise whatever a program can
            raise MerinoError(
                f"{where}, the chat template raises: {shortened(str(error))}. Correct the messages"
            ) from error
        if not text.startswith(before):
            raise MerinoError(
                f"{where}, the chat template writes earlier messages differently at message {count}, so the"
                " assistant's text is not known: split the chat into one sample per answer"
            )
        ends.append(len(text))
    for number, (start, end) in enumerate(pairwise(ends)):
        yield Segment(text[start:end], number % 2 == 1, number == 0, number == len(ends) - 2)


def document_segments(chunks: Iterable[str]) -> Iterator[Segment]:
    """Yield the documents that `<|endoftext|>` separates in a stream of text, without the whitespace around them.

    A long document comes in several segments, so that memory stays bounded and all cores encode it.
    """
    rest, first = "", True
    for chunk in chain(chunks, (END_OF_TEXT,)):
        *ended, rest = (rest + chunk).split(END_OF_TEXT)
        for text, last in [*((text, True) for text in ended), (rest, False)]:
            text = text.lstrip() if first else text
            text = text.rstrip() if last else text
            while len(text) > 2 * SEGMENT:
                place = cutting_place(text)
                yield Segment(text[:place], first=first, last=False)
                text, first = text[place:], False
            if last and (text or not first):
                yield Segment(text, first=first)
            first = first or last
            rest = text


def cutting_place(text: str) -> int:
    """Return a place before a space that follows a word: there a byte-level BPE splits both sides into the same words
    as the whole. A text without such a place is cut anywhere."""
    for mark in (" ", "\n"):
        place = text.rfind(mark, SEGMENT // 2, SEGMENT)
        while place > 0 and text[place - 1].isspace():
            place -= 1
        if place > 0:
            return place
    return SEGMENT


def read_chunks(source: DataSource) -> Iterator[str]:
    """Yield the text of a file in chunks. Raises MerinoError if it is not UTF-8 text."""
    decoder, read, content = codecs.getincrementaldecoder("utf-8")(), 0, b"start"
    with source.path.open("rb") as file:
        while content:
            content = file.read(READ_BYTES)
            start = read - len(decoder.getstate()[0])
            read += len(content)
            try:
                text = decoder.decode(content, final=not content)
            except UnicodeDecodeError as error:
                place = f"byte {start + error.start:,}"
                raise MerinoError(f"{source} is not UTF-8 text ({place}): convert it first") from error
            if "\0" in text:
                raise MerinoError(f"{source} is not text, with a NUL byte in its first {read:,}: convert it first")
            yield text
