"""The sources of `--data`: a file or folder of text or samples, or a data set of the hub; its weight, hash and records.
Loads no torch, so that a wrong path or weight is reported at once."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import SerializerFunctionWrapHandler, model_serializer

from merino_edge.families.hub import hub_name
from merino_edge.storage.faults import one_line, shortened
from merino_edge.text.documents import TextFile
from merino_runtime.bundle import sha256_of
from merino_runtime.errors import MerinoError
from merino_runtime.io.machine_faults import machine_fault

Kind = Literal["text", "jsonl", "parquet", "folder", "hub"]
SUFFIXES: dict[str, Kind] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
FORMS = (
    "text, JSONL (.jsonl), Parquet (.parquet), a folder of datasets' save_to_disk, or the name of a data set on the hub"
)
# From a checkout: before the first release anybody can register this project's names on the package index.
INSTALL = "pip install -e release/merino-runtime -e '.[train]' in a checkout of the repository"
GIVE_TEXT = "give a source with text"
SPLIT = "train"  # of a data set with several


class DataFile(TextFile):
    """A data file in the record of a run. `weight`: as given; files leave None out."""

    weight: float | None = None

    def same_data(self, other: "DataFile") -> bool:
        return self.same_text(other) and self.weight == other.weight

    def __str__(self) -> str:
        weighed = "" if self.weight is None else f", weight {self.weight:g}"
        return f"{self.name} ({self.bytes:,} bytes, {self.sha256[:8]}{weighed})"

    @model_serializer(mode="wrap")
    def _without_none(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if value is not None}


class DataSource(NamedTuple):
    """`weight`: its share of the rows, relative to the other sources; None where no source has one. `option`: where the
    user gave it."""

    what: str
    kind: Kind
    weight: float | None = None
    option: str = "--data"

    def __str__(self) -> str:
        return f"{self.option} {self.what}"

    @property
    def path(self) -> Path:
        return Path(self.what)


def data_source(given: str | Path, option: str = "--data") -> DataSource:
    """The source of `PATH[:WEIGHT]`. Raises MerinoError for a path that is not there, and a weight that is no
    number."""
    text = str(given)
    what, colon, weight = text.rpartition(":")
    if colon and not Path(text).exists() and (Path(what).exists() or hub_name(what)):
        if option != "--data":
            raise MerinoError(f"{option} {text} takes no weight: give {option} {what}")
        return DataSource(what, kind_of(what, option), weight_of(weight, text))
    return DataSource(text, kind_of(text, option), None, option)


def weight_of(given: str, text: str) -> float:
    try:
        weight = float(given)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise MerinoError(f"--data {text}: the weight {shortened(repr(given))} must be 0 or more, such as 0.3")
    return weight


def kind_of(what: str, option: str) -> Kind:
    path = Path(what)
    if path.is_file():
        return SUFFIXES.get(path.suffix.lower(), "text")
    if path.is_dir():
        if not any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
            raise MerinoError(f"{option} {what} is a folder that datasets' save_to_disk did not write: give {FORMS}")
        return "folder"
    if path.exists():
        raise MerinoError(f"{option} {what} is a device or a pipe: give {FORMS}")
    if hub_name(what) is None or path.parent.is_dir() or path.suffix.lower() in (*SUFFIXES, ".txt", ".json"):
        raise MerinoError(f"{option} {what} does not exist: give {FORMS}")
    return "hub"


def data_sources(given: Sequence[str | Path], option: str = "--data") -> list[DataSource]:
    """Raises MerinoError as `data_source`, and for weights that some sources lack, or that sum to nothing."""
    sources = [data_source(each, option) for each in given]
    weights = [each.weight for each in sources if each.weight is not None]
    if weights and len(weights) < len(sources):
        lacking = next(each.what for each in sources if each.weight is None)
        raise MerinoError(f"{option} {lacking} has no weight and others have one: give all of them one, or none")
    if weights and not sum(weights) > 0:
        raise MerinoError(f"the weights of {option} sum to 0: give at least one source a weight above 0")
    return [each for each in sources if each.weight != 0]


def file_of(source: DataSource) -> DataFile:
    """Its size and hash, for the record of a run. Reads all of it. Raises MerinoError where it cannot be read."""
    try:
        if source.kind in ("folder", "hub"):
            return hashed_dataset(source)
        size, sha256 = source.path.stat().st_size, sha256_of(str(source.path))
    except OSError as error:
        raise machine_fault(f"read {source}", error) from error
    if size == 0:
        raise MerinoError(f"no text in {source}: {GIVE_TEXT}")
    return DataFile(name=source.path.name, bytes=size, sha256=sha256, weight=source.weight)


def hashed_dataset(source: DataSource) -> DataFile:
    """The hash is over the Arrow files and the fingerprint that datasets keeps of all changes."""
    dataset = opened_dataset(source)
    files = sorted({each["filename"] for each in dataset.cache_files})
    content = hashlib.sha256(dataset._fingerprint.encode())
    for file in files:
        content.update(bytes.fromhex(sha256_of(file)))
    size = sum(Path(file).stat().st_size for file in files)
    name = source.what if source.kind == "hub" else source.path.name
    return DataFile(name=name, bytes=size, sha256=content.hexdigest(), weight=source.weight)


@cache
def opened_dataset(source: DataSource) -> Any:
    """The split `train` of a data set. Raises MerinoError where it does not load."""
    datasets = needed("datasets", source)
    datasets.disable_progress_bars()
    try:
        load = datasets.load_from_disk if source.kind == "folder" else datasets.load_dataset
        dataset = load(source.what)
    except Exception as error:  # datasets raises whatever its readers and its network do
        where = "in that folder" if source.kind == "folder" else "on the hub or in its cache"
        raise MerinoError(f"no data set loads from {source} {where}: {one_line(error)}. Give {FORMS}") from error
    if isinstance(dataset, dict):
        if SPLIT not in dataset:
            raise MerinoError(f"the data set of {source} has no split {SPLIT!r}, but {', '.join(dataset)}:"
                              " save one of these to a folder and name that")
        dataset = dataset[SPLIT]
    return dataset


def needed(module: str, source: DataSource) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MerinoError(f"{source} needs {package}: {INSTALL}") from error


def records(source: DataSource, fields: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(its place, for messages; those of `fields` that it has) of each record of a source that is not text.

    Raises MerinoError for a line that is no object, and for a file that cannot be read.
    """
    fields = list(fields)
    if source.kind == "jsonl":
        yield from json_lines(source)
    elif source.kind == "parquet":
        yield from parquet_rows(source, fields)
    else:
        dataset = opened_dataset(source)
        dataset = dataset.select_columns([name for name in fields if name in dataset.column_names])
        for number, record in enumerate(dataset, 1):
            yield f"{source}, row {number:,}", record


def json_lines(source: DataSource) -> Iterator[tuple[str, dict[str, Any]]]:
    import json

    with source.path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{source}, line {number:,}"
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise MerinoError(
                    f"{where}, is not UTF-8 text (byte {error.start} of the line): convert it first"
                ) from error
            except json.JSONDecodeError as error:
                raise MerinoError(
                    f"{where}, is not JSON: {error.msg} at column {error.colno}. Write one object a line"
                ) from error
            except RecursionError as error:
                raise MerinoError(f"{where}, is nested too deeply: leave that out") from error
            if not isinstance(record, dict):
                raise MerinoError(f"{where}, is {shortened(repr(record))}, must be an object")
            yield where, record


def parquet_rows(source: DataSource, fields: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    parquet = needed("pyarrow.parquet", source)
    number = 0
    try:
        with parquet.ParquetFile(source.what) as file:
            columns = [name for name in fields if name in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=256, columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{source}, row {number:,}", record
    except (OSError, ValueError) as error:  # pyarrow's own errors are both
        raise MerinoError(f"{source} is not a Parquet file, or is damaged: {one_line(error)}. Copy it again") from error
