"""The sources of `--data` and `--held-out`: their paths, weights, hashes, records, and the tokenizer of their text.

Loads neither torch nor datasets before a source needs them, so that a wrong path is reported at once.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from merino_edge.families.checkpoint import ChatTemplate
from merino_edge.families.hub import hub_name
from merino_edge.storage.extras import import_extra
from merino_edge.storage.faults import one_line, shortened
from merino_edge.text.documents import TextFile, document_segments, read_chunks, read_json_lines
from merino_edge.text.samples import CHAT, FIELDS, TEXT, Record, Segment, normalized_record, record_segments
from merino_runtime.bundle import sha256_of
from merino_runtime.chat.template import compiled
from merino_runtime.errors import MerinoError
from merino_runtime.io.lock import raising_machine_faults

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
CONVERTED = ".json", ".csv", ".tsv"  # would be trained as text, with their syntax
FORMS = "text, JSONL (.jsonl), Parquet (.parquet), a folder of datasets' save_to_disk, or the name of a hub dataset"
GIVE_TEXT = "give a source with text"
SPLIT = "train"  # of a dataset with several splits
MOST_CHARACTERS = 200_000_000  # most text for a BPE: the beginning of each source, in equal parts
CHATML_MARKS = "<|im_start|>", "<|im_end|>"


class DataFile(TextFile):
    """A source in the record of a run. `weight` is its share of the rows, as given."""

    weight: float | None = None

    def __str__(self) -> str:
        weight = "" if self.weight is None else f", weight {self.weight}"
        return f"{self.bytes:,} bytes ({self.sha256[:12]}{weight})"


@dataclass(frozen=True)
class DataSource:
    """A source. `kind`: text, jsonl, parquet, folder or hub. `weight`: None if no source has one."""

    what: str
    kind: str
    weight: float | None = None
    option: str = "--data"

    def __str__(self) -> str:
        return f"{self.option} {self.what}"

    @cached_property
    def file(self) -> DataFile:
        """Size and hash; reads all of the source. Raises MerinoError if it cannot be read, or is empty."""
        with raising_machine_faults(f"read {self}"):
            if self.kind in ("folder", "hub"):
                dataset = open_dataset(self)  # datasets' fingerprint is of all changes
                size, sha256 = dataset.data.nbytes, hashlib.sha256(dataset._fingerprint.encode()).hexdigest()
            else:
                size, sha256 = Path(self.what).stat().st_size, sha256_of(self.what)
        if size == 0:
            raise MerinoError(f"no text in {self}: {GIVE_TEXT}")
        name = self.what if self.kind == "hub" else Path(self.what).name
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


def records(source: DataSource) -> Iterator[tuple[str, Record]]:
    """Yield the records of a source that is not text: (its place, for messages; its known fields).

    Raises MerinoError for a record that cannot be read.
    """
    if source.kind == "jsonl":
        yield from read_json_lines(Path(source.what), str(source))
        return
    if source.kind == "parquet":
        rows = parquet_rows(source)
    else:
        dataset = open_dataset(source)
        rows = iter(dataset.select_columns([name for name in FIELDS if name in dataset.column_names]))
    for number, record in enumerate(rows, 1):
        yield f"{source}, row {number:,}", record


def parquet_rows(source: DataSource) -> Iterator[dict[str, Any]]:
    parquet = import_extra("pyarrow.parquet")
    try:
        with parquet.ParquetFile(source.what) as file:
            columns = [name for name in FIELDS if name in file.schema_arrow.names]
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


def segments_of(source: DataSource, chat: ChatTemplate | None) -> Iterator[Segment]:
    """Return the segments of a source in order. chat: the template for `messages`. They raise MerinoError for text or a
    record that cannot be used, with its place."""
    if source.kind == "text":
        return (Segment(TEXT, *given) for given in document_segments(read_chunks(Path(source.what), str(source))))
    render = partial(compiled(chat.text, chat.source), **chat.tokens) if chat else None
    return record_segments(records(source), render)


def chat_template(sources: Sequence[DataSource]) -> ChatTemplate | None:
    """Return ChatML if a source has chats, by its first record; None if none has."""
    for source in sources:
        first = None if source.kind == "text" else next(records(source), None)
        if first is not None and normalized_record(*first, False)[0] == CHAT:
            text = (files("merino_edge.training") / "chatml.jinja").read_text(encoding="utf-8").removesuffix("\n")
            return ChatTemplate(text, {"eos_token": CHATML_MARKS[1]}, "ChatML")
    return None


def text_of(sources: Sequence[DataSource], chat: ChatTemplate | None) -> Iterator[str]:
    """Yield the text that a BPE is trained on. Raises MerinoError for a source without text."""
    most = MOST_CHARACTERS // len(sources)
    for source in sources:
        left = most
        for segment in segments_of(source, chat):
            yield segment.text[:left]
            left -= len(segment.text)
            if left <= 0:
                break
        if left == most:
            raise MerinoError(f"no text in {source}: {GIVE_TEXT}")
