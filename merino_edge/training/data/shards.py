"""A source's token ids in a folder of the cache: made once for its content, its tokenizer and this format, then
memory-mapped. A damaged one is noticed by its hashes and made again. A cache that another user can change is refused.

`ids.bin`: all ids in a row, in 2 bytes where they fit, else in 4. `ends.bin`: where each document or sample ends, in 8
bytes. `learned.bin`: of samples, a byte for each id, 1 where the loss counts. `shard.json`: what it is, and the hashes.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from merino_edge.families.checkpoint import ChatTemplate
from merino_edge.storage.atomic import cache_folder, new_folder
from merino_edge.text.tokenizer import around, end_id, tokenizer_hash
from merino_edge.training.data.samples import Piece, pieces_of
from merino_edge.training.data.sources import GIVE_TEXT, DataFile, DataSource
from merino_runtime.bundle import sha256_of
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json
from merino_runtime.io.owner import check_own

FORMAT = 1
IDS, ENDS, LEARNED, DESCRIPTION = "ids.bin", "ends.bin", "learned.bin", "shard.json"
# Characters that all cores encode at once: their Encodings take some 100 bytes per token.
BATCH = (os.cpu_count() or 1) << 17
MOST_PIECES = 4096  # of a batch
REPORT_SECONDS = 10
Say = Callable[[str], None]


class Reading(NamedTuple):
    """The parameters of tokenization: all that a shard depends on beside its source."""

    tokenizer: Tokenizer
    chat: ChatTemplate | None = None
    end: int | None = None  # of a sample; None: the tokenizer's own

    @property
    def key(self) -> list[Any]:
        return [tokenizer_hash(self.tokenizer), self.chat and [self.chat.text, self.chat.tokens], self.end]


class Shard(NamedTuple):
    """Memory-mapped. `ends`: of documents or samples, in ids; `learned`: None where all are."""

    source: DataSource
    ids: np.ndarray
    ends: np.ndarray
    learned: np.ndarray | None

    def begin(self, number: int) -> int:
        """Where the document or sample with this number begins."""
        return int(self.ends[number - 1]) if number else 0


def shards_folder() -> Path:
    return cache_folder() / "tokens"


def shard_of(source: DataSource, file: DataFile, reading: Reading, say: Say, verify: bool = True) -> Shard:
    """A shard of the cache, which is made if it is missing, and checked by its hashes if `verify`.

    Raises MerinoError for text that cannot be used, a cache that another user may change, and a full disk.
    """
    facts = [FORMAT, source.kind, file.sha256, *reading.key]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    folder = shards_folder() / key
    check_owner(folder)
    dtype = dtype_of(reading.tokenizer.get_vocab_size())
    fault = fault_of(folder, dtype) if verify and folder.exists() else ""
    if fault or not folder.exists():
        if fault:
            say(f"the tokens of {source.what} in {folder} are damaged ({fault}): they are made again")
        make_shard(folder, source, reading, file, say)
    return opened(folder, source, dtype)


def check_owner(folder: Path) -> None:
    """Raise MerinoError if another user may change the cache, or wrote this shard: text of theirs would be trained."""
    try:
        for path in (shards_folder(), folder, *folder.glob("*")):
            if path.exists():
                check_own(str(path), 0o022 if path == shards_folder() else 0)
    except OSError as error:
        raise MerinoError(
            f"{error}. Remove {shards_folder()}, whose tokens are made again, or let XDG_CACHE_HOME name another folder"
        ) from None


def opened(folder: Path, source: DataSource, dtype: str) -> Shard:
    learned = np.memmap(folder / LEARNED, np.uint8, "r") if (folder / LEARNED).is_file() else None
    return Shard(source, np.memmap(folder / IDS, dtype, "r"), np.memmap(folder / ENDS, np.int64, "r"), learned)


def fault_of(folder: Path, dtype: str) -> str:
    """The fault of a shard; empty where it is whole."""
    try:
        described = read_json(str(folder / DESCRIPTION), "")
        if described["dtype"] != dtype:
            return f"its dtype is not {dtype}"
        for name, sha256 in described["files"].items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if sha256_of(str(folder / name)) != sha256:
                return f"{name} has other content"
    except (MerinoError, KeyError, TypeError, AttributeError):
        return f"{DESCRIPTION} does not read"
    return ""


def make_shard(folder: Path, source: DataSource, reading: Reading, file: DataFile, say: Say) -> None:
    started = time.perf_counter()
    try:
        with new_folder(folder, lambda _: True, 2 * file.bytes // 3) as made:
            shards_folder().chmod(0o700)  # what people wrote is in these files
            tokens = write_ids(made, source, reading, say)
            names = sorted(path.name for path in made.iterdir())
            described = {
                "format": FORMAT, "source": file.name, "tokens": tokens,
                "dtype": dtype_of(reading.tokenizer.get_vocab_size()),
                "files": {name: sha256_of(str(made / name)) for name in names},
            }  # fmt: skip
            (made / DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n")
    except MerinoError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise MerinoError(
            f"the tokens of {source} cannot be kept: {error} They are kept in {shards_folder()}, which may be"
            " emptied; let XDG_CACHE_HOME name another disk"
        ) from None
    say(f"{source.what}: {tokens:,} tokens in {time.perf_counter() - started:.1f} s, kept for later runs in {folder}")


def dtype_of(vocab: int) -> str:
    """The type of ids in a file."""
    return "<u2" if vocab <= 1 << 16 else "<u4"


def write_ids(folder: Path, source: DataSource, reading: Reading, say: Say) -> int:
    """Writes a source's ids, ends and learned marks -> the number of ids."""
    content = pieces_of(source, reading.chat)
    before, after = around(reading.tokenizer) if not content.chats else ([], [])  # a template writes its own
    if content.samples and not content.chats and not after:
        end = reading.end if reading.end is not None else end_id(reading.tokenizer)
        after = [] if end is None else [end]
    dtype = dtype_of(reading.tokenizer.get_vocab_size())
    tokens, characters, reported = 0, 0, time.perf_counter()
    with (folder / IDS).open("xb") as ids, (folder / ENDS).open("xb") as ends, (folder / LEARNED).open("xb") as learned:
        for pieces in batches(content.pieces):
            encoded = reading.tokenizer.encode_batch_fast([each.text for each in pieces], add_special_tokens=False)
            places = []
            for piece, encoding in zip(pieces, encoded, strict=True):
                row = [*(before if piece.first else ()), *encoding.ids, *(after if piece.last or piece.ends else ())]
                ids.write(np.array(row, dtype).tobytes())
                tokens += len(row)
                characters += len(piece.text)
                if content.samples:
                    learned.write(bytes([piece.learned]) * len(row))
                if piece.last:
                    places.append(tokens)
            ends.write(np.array(places, np.int64).tobytes())
            if time.perf_counter() - reported > REPORT_SECONDS:
                reported = time.perf_counter()
                say(f"{source.what}: {characters:,} characters tokenized")
    if not content.samples:
        os.unlink(folder / LEARNED)
    if tokens == 0:
        raise MerinoError(f"no text in {source}: {GIVE_TEXT}")
    return tokens


def batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Lists of pieces: BATCH characters or one piece more, and at most MOST_PIECES pieces."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH or len(batch) == MOST_PIECES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
