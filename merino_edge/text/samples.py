"""Records of JSONL, Parquet and data sets as segments of text, the parts that a tokenizer encodes at once.

A document is learned whole. A sample is a prompt with a completion, several such turns, or the messages of a chat; the
loss counts its completions, or the assistant's messages.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from merino_edge.storage.faults import shortened
from merino_edge.text.documents import document_segments
from merino_runtime.errors import MerinoError

# The forms of a record by their fields. Records in Alpaca's and ShareGPT's forms become one of them.
Form = tuple[str, ...]
TEXT: Form = ("text",)
COMPLETION: Form = ("prompt", "completion")
CHAT: Form = ("messages",)
OWN_FIELDS = *TEXT, *COMPLETION, *CHAT
FIELDS = *OWN_FIELDS, "instruction", "input", "output", "conversations", "tools"
ROLES = {"human": "user", "gpt": "assistant", "observation": "tool", "function_response": "tool"}  # of ShareGPT
KNOWN = "`text`, `prompt` with `completion`, `messages`, `instruction` with `output`, or `conversations`"
Record = Mapping[str, Any]
Render = Callable[..., str]  # a compiled chat template


class Segment(NamedTuple):
    """`form`: TEXT, COMPLETION or CHAT. `first`, `last`: whether it starts and ends its document or sample."""

    form: Form
    text: str
    first: bool
    last: bool
    learned: bool = True


def record_segments(records: Iterable[tuple[str, Record]], render: Render | None) -> Iterator[Segment]:
    """Yield the segments of records, each given with its place for messages. render: writes `messages`.

    Raise MerinoError for a record that cannot be used, and for records of several forms.
    """
    form: Form = ()
    for where, given in records:
        fields, record = normalized_record(where, given, render is not None)
        if form not in ((), fields):
            raise MerinoError(
                f"{where}, has {quoted(fields)}, but earlier records have {quoted(form)}: a file has one form. Write"
                " two files, and give --data twice"
            )
        form = fields
        if form == TEXT:
            document = checked_string(where, record, "text")
            yield from (Segment(TEXT, *segment) for segment in document_segments([document]))
        else:
            turns = completion_turns(where, record) if form == COMPLETION else message_turns(where, record, render)
            for number, (text, learned) in enumerate(turns):
                yield Segment(form, text, number == 0, number == len(turns) - 1, learned)


def normalized_record(where: str, record: Record, as_chat: bool) -> tuple[Form, Record]:
    """Return a record's form, and the record in it. as_chat: Alpaca's form becomes `messages`. Raise MerinoError for a
    record in no known form."""
    fields = tuple(name for name in OWN_FIELDS if record.get(name) is not None)
    turns, instruction, output = (record.get(name) for name in ("conversations", "instruction", "output"))
    if not fields and isinstance(turns, list) and all(isinstance(turn, dict) and "from" in turn for turn in turns):
        messages = [{"role": ROLES.get(turn["from"], turn["from"]), "content": turn.get("value")} for turn in turns]
        return CHAT, {"messages": messages, "tools": record.get("tools")}
    if not fields and isinstance(instruction, str) and isinstance(output, str):
        given = record.get("input") or ""
        if as_chat:
            user = {"role": "user", "content": f"{instruction}\n\n{given}" if given else instruction}
            return CHAT, {"messages": [user, {"role": "assistant", "content": output}]}
        middle = f"\n\n### Input:\n{given}" if given else ""
        prompt = f"### Instruction:\n{instruction}{middle}\n\n### Response:\n"
        return COMPLETION, {"prompt": prompt, "completion": output}
    if fields not in (TEXT, COMPLETION, CHAT):
        has = quoted(fields) if fields else f"none of these fields, but {shortened(', '.join(record)) or 'nothing'}"
        raise MerinoError(f"{where}, has {has}, expected: {KNOWN}")
    return fields, record


def quoted(fields: Form) -> str:
    return " and ".join(f"`{name}`" for name in fields)


def checked_string(where: str, record: Record, name: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise MerinoError(f"{where}, `{name}` is {shortened(repr(value))}, must be a string")
    return value


def completion_turns(where: str, record: Record) -> list[tuple[str, bool]]:
    """Return the turns of a sample as (text, whether it is learned)."""

    def strings(name: str) -> list[str]:
        value = record[name]
        listed = isinstance(value, list) and value and all(isinstance(text, str) for text in value)
        return value if listed else [checked_string(where, record, name)]

    prompts, completions = strings("prompt"), strings("completion")
    if len(prompts) != len(completions):
        raise MerinoError(f"{where}, has {len(prompts)} prompts and {len(completions)} completions: give each its own")
    if not all(completions):
        raise MerinoError(f"{where}, has an empty `completion`: leave it out, there is nothing to learn")
    return [turn for pair in zip(prompts, completions, strict=True) for turn in zip(pair, (False, True), strict=True)]


def message_turns(where: str, record: Record, render: Render | None) -> list[tuple[str, bool]]:
    """Return the turns of a chat as its template writes them. The assistant's are learned, with the token that ends
    them."""
    messages, tools = record["messages"], record.get("tools")
    if render is None:
        raise MerinoError(
            f"{where}, has `messages`, and there is no chat template to write them in: give a --tokenizer with a"
            " chat_template.jinja beside it, or write the samples as `prompt` and `completion`"
        )
    if not (isinstance(messages, list) and all(isinstance(turn, dict) and "role" in turn for turn in messages)):
        raise MerinoError(f"{where}, `messages` is {shortened(repr(messages))}, must be a list of objects with `role`")
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise MerinoError(f"{where}, has no message of the assistant: leave it out, there is nothing to learn")
    try:
        given = {"tools": json.loads(tools) if isinstance(tools, str) else tools} if tools else {}
    except ValueError as error:
        raise MerinoError(f"{where}, `tools` is {shortened(repr(tools))}, must be a list of tools") from error
    # A turn ends where the text up to it ends: up to each answer's start, with the generation prompt, and its end.
    turns, before = [], ""
    for count, learned in ((answer + after, bool(after)) for answer in answers for after in (0, 1)):
        try:
            text = render(messages=messages[:count], add_generation_prompt=not learned, **given)
        except Exception as error:  # a template can raise whatever a program can
            fault = shortened(str(error))
            raise MerinoError(f"{where}, the chat template raises: {fault}. Correct the messages") from error
        if not text.startswith(before):
            raise MerinoError(
                f"{where}, the chat template writes earlier messages differently at message {count}, so the"
                " assistant's text is not known: cut the chat into one sample per answer"
            )
        turns.append((text[len(before) :], learned))
        before = text
    return turns
