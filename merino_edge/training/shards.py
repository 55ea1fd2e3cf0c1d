"""Sources as token ids in the cache: each source is tokenized once for its content, its tokenizer and its template. A
cache that another user can change is refused.

A shard is a folder. `ids.bin`: all ids, in 2 bytes each if they fit, else in 4. `ends.bin`: the end of each document or
sample, in 8 bytes. `learned.bin`: of samples a byte per id, 1 if the loss counts it; empty for documents. Shards are
memory-mapped.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from merino_edge.families.checkpoint import ChatTemplate
from merino_edge.storage.atomic import cache_folder, new_folder
from merino_edge.text.samples import CHAT, COMPLETION, TEXT, Segment
from merino_edge.text.tokenizer import around, end_id, tokenizer_hash
from merino_edge.training.sources import GIVE_TEXT, DataSource, segments_of
from merino_runtime.errors import MerinoError
from merino_runtime.io.lock import others_may_write

FORMAT = 4
IDS, ENDS, LEARNED = "ids.bin", "ends.bin", "learned.bin"
TYPES = "<u2", "<u4"  # of ids, in vocabularies of up to 65,536 and larger
# Characters that all cores encode at once: their Encodings take some 100 bytes per token.
BATCH = (os.cpu_count() or 1) << 17
MOST_SEGMENTS = 4096  # of a batch
REPORT_SECONDS = 10
Say = Callable[[str], None]


class Tokenization(NamedTuple):
    """What ids depend on besides the source. `end`: the id that ends a sample; None: the tokenizer's own."""

    tokenizer: Tokenizer
    chat: ChatTemplate | None = None
    end: int | None = None

    def stops(self, known: Sequence[int] = ()) -> list[int]:
        """Return the ids that end a text or an answer; of a trained model those that are known."""
        own = self.chat.tokens.get("eos_token", "") if self.chat else ""
        ids = known or (end_id(self.tokenizer), self.end, self.tokenizer.token_to_id(own))
        return [token_id for token_id in dict.fromkeys(ids) if token_id is not None]


class Shard(NamedTuple):
    """Memory-mapped arrays. `ends`: of documents or samples, in ids. `learned`: None if the loss counts all ids, which
    is so for documents. `first`: the number of documents or samples of the source that precede these."""

    source: DataSource
    ids: np.ndarray
    ends: np.ndarray
    learned: np.ndarray | None
    first: int = 0


def load_shard(source: DataSource, tokenization: Tokenization, say: Say) -> Shard:
    """Return a source's shard. It is made first if it is missing.

    Raises MerinoError for text that cannot be used, a full disk, and a cache that another user may change.
    """
    # 1. The folder, by all that the ids depend on.
    tokenizer, chat, end = tokenization
    facts = [FORMAT, source.kind, source.file.sha256, tokenizer_hash(tokenizer), chat and [chat.text, chat.tokens], end]
    parent, dtype = cache_folder() / "tokens", TYPES[tokenizer.get_vocab_size() > 1 << 16]
    folder = parent / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    check_owner(parent, folder, *folder.glob("*"))
    # 2. Its files, which exist all or none.
    if not folder.exists():
        started = time.perf_counter()
        try:
            with new_folder(folder, lambda _: True, 2 * source.file.bytes // 3) as made:
                parent.chmod(0o700)  # the files hold users' text
                tokens = write_ids(made, source, tokenization, dtype, say)
        except MerinoError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            raise MerinoError(
                f"the tokens of {source} cannot be kept: {error} They are kept in {parent}, which may be emptied; set"
                " XDG_CACHE_HOME to a folder on another disk"
            ) from None
        seconds = time.perf_counter() - started
        say(f"{source.what}: {tokens:,} tokens in {seconds:.1f} s, kept for later runs in {folder}")
    ids, ends = np.memmap(folder / IDS, dtype, "r"), np.memmap(folder / ENDS, np.int64, "r")
    learned = np.memmap(folder / LEARNED, np.uint8, "r") if (folder / LEARNED).stat().st_size else None
    return Shard(source, ids, ends, learned)


def check_owner(*paths: Path) -> None:
    """Raise MerinoError if another user may have written one of the paths: text of theirs would be trained on."""
    for path in paths:
        if path.exists() and others_may_write(path.stat()):
            raise MerinoError(
                f"other users may change {path}. Remove it, or set XDG_CACHE_HOME to another folder: it is made again"
            )


def write_ids(folder: Path, source: DataSource, tokenization: Tokenization, dtype: str, say: Say) -> int:
    """Write a source's ids, ends and learned marks. Return the number of ids."""
    tokenizer, chat, end = tokenization
    before, after = around(tokenizer)
    own = end if end is not None else end_id(tokenizer)
    # By form: the ids before a document or sample, and after a document or an answer. A chat template writes its own.
    marks = {TEXT: (before, after), COMPLETION: (before, after or ([] if own is None else [own])), CHAT: ([], [])}
    tokens, characters, reported = 0, 0, time.perf_counter()
    with (folder / IDS).open("xb") as ids, (folder / ENDS).open("xb") as ends, (folder / LEARNED).open("xb") as learned:
        for batch in batches(segments_of(source, chat)):
            encodings = tokenizer.encode_batch_fast([segment.text for segment in batch], add_special_tokens=False)
            for segment, encoding in zip(batch, encodings, strict=True):
                before, after = marks[segment.form]
                ended = segment.last if segment.form == TEXT else segment.learned
                row = [*(before if segment.first else ()), *encoding.ids, *(after if ended else ())]
                ids.write(np.array(row, dtype).tobytes())
                if segment.form != TEXT:
                    learned.write(bytes([segment.learned]) * len(row))
                tokens += len(row)
                characters += len(segment.text)
                if segment.last:
                    ends.write(np.int64(tokens).tobytes())
            if time.perf_counter() - reported > REPORT_SECONDS:
                reported = time.perf_counter()
                say(f"{source.what}: {characters:,} characters tokenized")
    if tokens == 0:
        raise MerinoError(f"no text in {source}: {GIVE_TEXT}")
    return tokens


def batches(segments: Iterator[Segment]) -> Iterator[list[Segment]]:
    """Yield lists of at most MOST_SEGMENTS, which end with the segment that reaches BATCH characters."""
    batch: list[Segment] = []
    size = 0
    for segment in segments:
        batch.append(segment)
        size += len(segment.text)
        if size >= BATCH or len(batch) == MOST_SEGMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
