"""The sources of `--data` and `--held-out`: their paths, weights and hashes, and their records as segments of text.

A segment is what the tokenizer encodes at once. A document is learned whole. A sample is a prompt with a completion,
several such turns, or the messages of a chat; the loss counts its completions, or the assistant's messages. Loads
neither torch nor datasets before a source needs them, so that a wrong path is reported at once.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from merino_edge.families.checkpoint import ChatTemplate
from merino_edge.families.hub import hub_name
from merino_edge.storage.extras import import_extra
from merino_edge.storage.faults import one_line, shortened
from merino_edge.text.documents import TextFile, document_segments, read_chunks, read_json_lines
from merino_runtime.bundle import sha256_of
from merino_runtime.chat.template import compiled
from merino_runtime.errors import MerinoError
from merino_runtime.io.machine_faults import machine_fault

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
CONVERTED = ".json", ".csv", ".tsv"  # would be trained as text, with their syntax
FORMS = "text, JSONL (.jsonl), Parquet (.parquet), a folder of datasets' save_to_disk, or the name of a hub dataset"
GIVE_TEXT = "give a source with text"
SPLIT = "train"  # of a dataset with several splits
Record = Mapping[str, Any]
FIELDS = "text", "prompt", "completion", "messages"
NAMES_OF_FORMS = {("text",): "documents", ("prompt", "completion"): "completions", ("messages",): "chats"}
# Of Alpaca's and ShareGPT's forms, and the tools of a chat.
OTHER_FIELDS = "instruction", "input", "output", "conversations", "tools"
ROLES = {"human": "user", "gpt": "assistant", "observation": "tool", "function_response": "tool"}  # of ShareGPT
KNOWN = "`text`, `prompt` with `completion`, `messages`, `instruction` with `output`, or `conversations`"


class DataFile(TextFile):
    """A source in the record of a run. `weight` is its share of the rows, as given."""

    weight: float | None = None

    def __str__(self) -> str:
        weight = "" if self.weight is None else f", weight {self.weight:g}"
        return f"{self.name} ({self.bytes:,} bytes, {self.sha256[:8]}{weight})"


@dataclass(frozen=True)
class DataSource:
    """A source. `kind`: text, jsonl, parquet, folder or hub. `weight`: None if no source has one."""

    what: str
    kind: str
    weight: float | None = None
    option: str = "--data"

    def __str__(self) -> str:
        return f"{self.option} {self.what}"

    @property
    def path(self) -> Path:
        return Path(self.what)

    @cached_property
    def file(self) -> DataFile:
        """Size and hash; reads all of the source. Raises MerinoError if it cannot be read, or is empty."""
        try:
            if self.kind in ("folder", "hub"):
                dataset = open_dataset(self)
                content = hashlib.sha256(dataset._fingerprint.encode())  # datasets' own, of all changes
                paths = sorted({file["filename"] for file in dataset.cache_files})
                for path in paths:
                    content.update(bytes.fromhex(sha256_of(path)))
                size, sha256 = sum(Path(path).stat().st_size for path in paths), content.hexdigest()
            else:
                size, sha256 = self.path.stat().st_size, sha256_of(self.what)
        except OSError as error:
            raise machine_fault(f"read {self}", error) from error
        if size == 0:
            raise MerinoError(f"no text in {self}: {GIVE_TEXT}")
        name = self.what if self.kind == "hub" else self.path.name
        return DataFile(name=name, bytes=size, sha256=sha256, weight=self.weight)


def read_sources(given: Sequence[str | Path], option: str = "--data") -> list[DataSource]:
    """Return the sources of `PATH[:WEIGHT]`, without those of weight 0.

    Raises MerinoError for a path that does not exist, a weight that is no number, weights that only some sources have,
    and weights that sum to 0.
    """
    sources = [read_source(str(text), option) for text in given]
    weights = [source.weight for source in sources if source.weight is not None]
    if weights and len(weights) < len(sources):
        lacking = next(source.what for source in sources if source.weight is None)
        raise MerinoError(f"{option} {lacking} has no weight and others have one: give all of them one, or none")
    if weights and not sum(weights) > 0:
        raise MerinoError(f"the weights of {option} sum to 0: give at least one source a weight above 0")
    return [source for source in sources if source.weight != 0]


def read_source(text: str, option: str) -> DataSource:
    what, colon, given = text.rpartition(":")
    if not colon or Path(text).exists() or not (Path(what).exists() or hub_name(what)):
        return DataSource(text, kind_of(text, option), None, option)
    if option != "--data":
        raise MerinoError(f"{option} {text} takes no weight: give {option} {what}")
    try:
        weight = float(given)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise MerinoError(f"--data {text}: the weight {shortened(repr(given))} must be 0 or more, such as 0.3")
    return DataSource(what, kind_of(what, option), weight, option)


def kind_of(what: str, option: str) -> str:
    path = Path(what)
    suffix = path.suffix.lower()
    if path.is_file():
        if suffix in CONVERTED:
            raise MerinoError(
                f"{option} {what} has the suffix {suffix}, which is not read: write one JSON object per line to a"
                " .jsonl file, by `jq -c '.[]'` or by datasets' `load_dataset('csv', data_files=FILE)` and `to_json`"
            )
        return SUFFIXES.get(suffix, "text")
    if any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        return "folder"
    is_local = path.exists() or path.parent.is_dir() or suffix in (*SUFFIXES, *CONVERTED, ".txt")
    if hub_name(what) and not is_local:
        return "hub"
    fault = "is a device or a pipe" if path.exists() else "does not exist"
    fault = "is a folder that datasets' save_to_disk did not write" if path.is_dir() else fault
    raise MerinoError(f"{option} {what} {fault}: give {FORMS}")


def records(source: DataSource, fields: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """Yield the records of a source that is not text: (its place, for messages; those of `fields` that it has).

    Raises MerinoError for a record that cannot be read.
    """
    if source.kind == "jsonl":
        yield from read_json_lines(source.path, str(source))
        return
    if source.kind == "parquet":
        rows = parquet_rows(source, fields)
    else:
        dataset = open_dataset(source)
        rows = iter(dataset.select_columns([name for name in fields if name in dataset.column_names]))
    for number, record in enumerate(rows, 1):
        yield f"{source}, row {number:,}", record


def parquet_rows(source: DataSource, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
    parquet = import_extra("pyarrow.parquet")
    try:
        with parquet.ParquetFile(source.what) as file:
            columns = [name for name in fields if name in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=256, columns=columns):
                yield from batch.to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are both
        raise MerinoError(f"{source} is not a Parquet file, or is damaged: {one_line(error)}. Copy it again") from error


@cache
def open_dataset(source: DataSource) -> Any:
    """Return the split `train` of a dataset. Raises MerinoError if it does not load."""
    datasets = import_extra("datasets")
    datasets.disable_progress_bars()
    load = datasets.load_from_disk if source.kind == "folder" else datasets.load_dataset
    try:
        dataset = load(source.what)
    except Exception as error:  # datasets raises whatever its readers and its network raise
        where = "in that folder" if source.kind == "folder" else "on the hub or in its cache"
        raise MerinoError(f"no data set loads from {source} {where}: {one_line(error)}. Give {FORMS}") from error
    if isinstance(dataset, dict):
        if SPLIT not in dataset:
            splits = ", ".join(dataset)
            raise MerinoError(f"{source} has no split {SPLIT!r}, but {splits}: save one of these and name its folder")
        dataset = dataset[SPLIT]
    return dataset


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

    return NAMES_OF_FORMS[form], all_segments()


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
    if fields not in NAMES_OF_FORMS:
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
