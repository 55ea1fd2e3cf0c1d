"""Read text files, and the documents in them. Loads no torch, so that a file's faults are reported at once."""

import codecs
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from merino_edge.storage.faults import shortened
from merino_runtime.errors import MerinoError

END_OF_TEXT = "<|endoftext|>"  # separates documents in a file; in the token ids it precedes each document
READ_BYTES = 1 << 20
SEGMENT = 1 << 16  # characters of a longer document that are encoded at once


class TextFile(BaseModel):
    """A text file in the record of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    bytes: int
    sha256: str


def check_files(paths: Sequence[Path], option: str) -> None:
    """Raise MerinoError for a path that is not a file, before anything is read. `option`: where the user gave it."""
    for path in paths:
        if not path.is_file():
            why = "is a folder" if path.is_dir() else "is a device or a pipe" if path.exists() else "does not exist"
            raise MerinoError(f"{option} {path} {why}: give the path of a file")


def read_texts(paths: Sequence[Path], option: str = "--data") -> tuple[list[str], list[TextFile]]:
    """Return the documents of UTF-8 text files, split at `<|endoftext|>`, and the files. Without it a file is one
    document.

    `option`: where the user gave the paths. Raise MerinoError for a file that cannot be read or decoded, and if there
    is no text at all.
    """
    documents: list[str] = []
    files: list[TextFile] = []
    for path in paths:
        text, file = read_file(path, option)
        files.append(file)
        documents += [document.strip() for document in text.split(END_OF_TEXT) if document.strip()]
    if not documents:
        raise MerinoError(f"no text in {', '.join(map(str, paths))}: {option} takes plain text files")
    return documents, files


def read_file(path: Path, option: str) -> tuple[str, TextFile]:
    """Return the text of a UTF-8 file. Raise MerinoError if it cannot be read or decoded."""
    try:
        text = "".join(read_chunks(path, f"{option} {path}"))
    except OSError as error:
        raise MerinoError(f"cannot read {path}: {error.strerror}. {option} takes plain text files") from error
    content = text.encode()  # the file's bytes
    return text, TextFile(name=path.name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def read_chunks(path: Path, what: str) -> Iterator[str]:
    """Yield the text of a file in chunks. what: its name in messages. Raise MerinoError if it is not UTF-8 text."""
    decoder, read, content = codecs.getincrementaldecoder("utf-8")(), 0, b"start"
    with path.open("rb") as file:
        while content:
            content = file.read(READ_BYTES)
            start = read - len(decoder.getstate()[0])
            read += len(content)
            try:
                text = decoder.decode(content, final=not content)
            except UnicodeDecodeError as error:
                place = f"byte {start + error.start:,}"
                raise MerinoError(f"{what} is not UTF-8 text ({place}): convert it first") from error
            if "\0" in text:
                raise MerinoError(f"{what} is not text, with a NUL byte in its first {read:,}: convert it first")
            yield text


def document_segments(chunks: Iterable[str]) -> Iterator[tuple[str, bool, bool]]:
    """Yield the documents that `<|endoftext|>` separates in a stream of text, without the whitespace around them, as
    (text, whether it starts a document, whether it ends one).

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
                yield text[:place], first, False
                text, first = text[place:], False
            if last and (text or not first):
                yield text, first, True
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


def read_json_lines(path: Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (its place, for messages; the object) for each line of a JSONL file. Raise MerinoError for a line that is
    not an object."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{what}, line {number:,}"
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))  # Excel writes a BOM
            except UnicodeDecodeError as error:
                place = f"byte {error.start} of the line"
                raise MerinoError(f"{where}, is not UTF-8 text ({place}): convert it first") from error
            except json.JSONDecodeError as error:
                fault = f"{error.msg} at column {error.colno}"
                raise MerinoError(f"{where}, is not JSON: {fault}. Write one object a line") from error
            except RecursionError as error:
                raise MerinoError(f"{where}, is nested too deeply: leave that out") from error
            if not isinstance(record, dict):
                array = ". Write one object a line instead of an array" if isinstance(record, list) else ""
                raise MerinoError(f"{where}, is {shortened(repr(record))}, must be an object{array}")
            yield where, record
