"""Records and text files as segments of text: what the tokenizer encodes, and which parts the loss counts.

A document is learned whole. A sample is a prompt with a completion, several such turns, or the messages of a chat; the
loss counts its completions, or the assistant's messages.
"""

import json
from collections.abc import Iterator, Mapping
from itertools import chain, pairwise
from typing import Any, NamedTuple

from merino_edge.families.checkpoint import ChatTemplate
from merino_edge.storage.faults import shortened
from merino_edge.text.documents import document_segments, read_chunks
from merino_edge.training.sources import GIVE_TEXT, DataSource, records
from merino_runtime.chat.template import compiled
from merino_runtime.errors import MerinoError

Record = Mapping[str, Any]
FIELDS = "text", "prompt", "completion", "messages"
FORMS = {("text",): "documents", ("prompt", "completion"): "completions", ("messages",): "chats"}
# Of Alpaca's and ShareGPT's forms, and the tools of a chat.
OTHER_FIELDS = "instruction", "input", "output", "conversations", "tools"
ROLES = {"human": "user", "gpt": "assistant", "observation": "tool", "function_response": "tool"}  # of ShareGPT
KNOWN = "`text`, `prompt` with `completion`, `messages`, `instruction` with `output`, or `conversations`"


class Segment(NamedTuple):
    """`first`, `last`: whether it starts and ends its document or sample. `turn_end`: whether an answer ends with it,
    so that an end token follows."""

    text: str
    first: bool
    last: bool
    learned: bool = True
    turn_end: bool = False


def segments_of(source: DataSource, chat: ChatTemplate | None) -> tuple[str, Iterator[Segment]]:
    """Return (documents, completions or chats; the segments of a source in order).

    chat: the template for `messages`. Raises MerinoError for text or a record that cannot be used, with its place, now
    or when the segments are read.
    """
    if source.kind == "text":
        return "documents", (Segment(*given) for given in document_segments(read_chunks(source.path, str(source))))
    entries = records(source, (*FIELDS, *OTHER_FIELDS))
    start = next(entries, None)
    if start is None:
        raise MerinoError(f"no text in {source}: {GIVE_TEXT}")
    form, _ = normalized_record(*start, chat)
    if form == ("messages",) and chat is None:
        raise MerinoError(
            f"{start[0]}, has `messages`, and there is no chat template to write them in: give a --tokenizer with a"
            " chat_template.jinja beside it, or write the samples as `prompt` and `completion`"
        )
    template = compiled(chat.text, chat.source) if chat and form == ("messages",) else None

    def all_segments() -> Iterator[Segment]:
        for where, given in chain([start], entries):
            other, record = normalized_record(where, given, chat)
            if other != form:
                raise MerinoError(
                    f"{where}, has {quoted(other)}, but earlier records have {quoted(form)}: a file has one form. Write"
                    " two files, and give --data twice"
                )
            if form == ("text",):
                yield from (Segment(*given) for given in document_segments([checked_string(where, record, "text")]))
            elif template is None or chat is None:
                yield from completion_segments(where, record)
            else:
                yield from message_segments(where, record, template, chat.tokens)

    return FORMS[form], all_segments()


def normalized_record(where: str, record: Record, chat: ChatTemplate | None) -> tuple[tuple[str, ...], Record]:
    """Return a record's form, and the record in it. Raises MerinoError for a record in no known form."""
    fields = tuple(name for name in FIELDS if record.get(name) is not None)
    turns, instruction, output = (record.get(name) for name in ("conversations", "instruction", "output"))
    if not fields and isinstance(turns, list) and all(isinstance(turn, dict) and "from" in turn for turn in turns):
        messages = [{"role": ROLES.get(turn["from"], turn["from"]), "content": turn.get("value")} for turn in turns]
        return ("messages",), {"messages": messages, "tools": record.get("tools")}
    if not fields and isinstance(instruction, str) and isinstance(output, str):
        given = record.get("input") or ""
        if chat:
            user = {"role": "user", "content": f"{instruction}\n\n{given}" if given else instruction}
            return ("messages",), {"messages": [user, {"role": "assistant", "content": output}]}
        middle = f"\n\n### Input:\n{given}" if given else ""
        prompt = f"### Instruction:\n{instruction}{middle}\n\n### Response:\n"
        return ("prompt", "completion"), {"prompt": prompt, "completion": output}
    if fields not in FORMS:
        has = quoted(fields) if fields else f"none of these fields, but {shortened(', '.join(record)) or 'nothing'}"
        raise MerinoError(f"{where}, has {has}, expected: {KNOWN}")
    return fields, record


def quoted(fields: tuple[str, ...]) -> str:
    return " and ".join(f"`{name}`" for name in fields)


def checked_string(where: str, record: Record, name: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise MerinoError(f"{where}, `{name}` is {shortened(repr(value))}, must be a string")
    return value


def completion_segments(where: str, record: Record) -> Iterator[Segment]:
    def strings(name: str) -> list[str]:
        value = record[name]
        listed = isinstance(value, list) and value and all(isinstance(text, str) for text in value)
        return value if listed else [checked_string(where, record, name)]

    prompts, completions = strings("prompt"), strings("completion")
    if len(prompts) != len(completions):
        raise MerinoError(f"{where}, has {len(prompts)} prompts and {len(completions)} completions: give each its own")
    if not all(completions):
        raise MerinoError(f"{where}, has an empty `completion`: leave it out, there is nothing to learn")
    for turn, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        yield Segment(prompt, first=turn == 0, last=False, learned=False)
        yield Segment(completion, first=False, last=turn == len(prompts) - 1, turn_end=True)


def message_segments(where: str, record: Record, template: Any, tokens: Mapping[str, str]) -> Iterator[Segment]:
    """Yield a chat as its template writes it; the assistant's turns are learned, with the token that ends them."""
    messages, tools = record["messages"], record.get("tools")
    if not (isinstance(messages, list) and all(isinstance(turn, dict) and "role" in turn for turn in messages)):
        raise MerinoError(f"{where}, `messages` is {shortened(repr(messages))}, must be a list of objects with `role`")
    turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise MerinoError(f"{where}, has no message of the assistant: leave it out, there is nothing to learn")
    try:
        given = {**tokens, "tools": json.loads(tools) if isinstance(tools, str) else tools} if tools else tokens
    except ValueError as error:
        raise MerinoError(f"{where}, `tools` is {shortened(repr(tools))}, must be a list of tools") from error
    # The text up to a turn's start, with the generation prompt, and up to its end, for each turn.
    text, ends = "", [0]
    for count, prompted in ((turn + after, not after) for turn in turns for after in (0, 1)):
        before = text
        try:
            text = template(messages=messages[:count], add_generation_prompt=prompted, **given)
        except Exception as error:  # a template can raise whatever a program can
            fault = shortened(str(error))
            raise MerinoError(f"{where}, the chat template raises: {fault}. Correct the messages") from error
        if not text.startswith(before):
            raise MerinoError(
                f"{where}, the chat template writes earlier messages differently at message {count}, so the"
                " assistant's text is not known: cut the chat into one sample per answer"
            )
        ends.append(len(text))
    for number, (start, end) in enumerate(pairwise(ends)):
        yield Segment(text[start:end], number == 0, number == len(ends) - 2, learned=number % 2 == 1)
