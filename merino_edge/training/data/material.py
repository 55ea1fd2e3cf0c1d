"""From the sources of a run to its rows: the tokenizer's text, the shards, the training rows in order, the held-out
rows."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from merino_edge.text.tokenizer import check_separates, end_id
from merino_edge.training.data.rows import (
    HELD_OUT_SHARE,
    Joined,
    Mixture,
    RowSet,
    SampleRows,
    Span,
    TextRows,
    split,
    whole,
)
from merino_edge.training.data.samples import Piece, pieces_of
from merino_edge.training.data.shards import Reading, Say, shard_of
from merino_edge.training.data.sources import GIVE_TEXT, DataFile, DataSource
from merino_edge.training.recipe import Recipe
from merino_runtime.errors import MerinoError

MOST_HELD_OUT = 1 << 20  # tokens that are evaluated, where the held-out text was not given
MOST_BPE_CHARACTERS = 200_000_000  # the BPE of a larger corpus is trained on the first ones of each source


class Sources(NamedTuple):
    """The sources and their hashed files. `held_out`: none where the last of each of `data` are held out."""

    data: list[DataSource]
    data_files: list[DataFile]
    held_out: list[DataSource]
    held_out_files: list[DataFile]


class RunRows(NamedTuple):
    """`tokens`: in all different training rows; `held_out_tokens`: in the held-out ones."""

    rows: Mixture
    held_out: RowSet
    tokens: int
    held_out_tokens: int


def bpe_text(sources: Sources, vocab: int, say: Say) -> Iterator[str]:
    """The text of the training documents, for the training of a BPE. Reads each source twice, in constant memory."""
    sizes = [sized(source) for source in sources.data]
    total = sum(characters for _, characters in sizes)
    share = min(1.0, MOST_BPE_CHARACTERS / max(1, total))
    of = "" if share == 1.0 else f" of {total:,}, the first ones of each source"
    say(f"training a BPE of {vocab:,} entries on {round(total * share):,} characters{of}")
    for source, (documents, characters) in zip(sources.data, sizes, strict=True):
        reserved = 0 if sources.held_out else max(1, round(documents * HELD_OUT_SHARE))
        most = characters * share
        if documents == 1 and reserved:
            reserved, most = 0, min(most, characters - max(1, round(characters * HELD_OUT_SHARE)))
        yield from first_texts(pieces_of(source, None).pieces, documents - reserved, round(most))


def sized(source: DataSource) -> tuple[int, int]:
    """(documents or samples, characters). Raises MerinoError where there are none."""
    documents = characters = 0
    for piece in pieces_of(source, None).pieces:
        documents += piece.first
        characters += len(piece.text)
    if not characters:
        raise MerinoError(f"no text in {source}: {GIVE_TEXT}")
    return documents, characters


def first_texts(pieces: Iterator[Piece], documents: int, characters: int) -> Iterator[str]:
    begun = 0
    for piece in pieces:
        begun += piece.first
        if begun > documents or characters <= 0:
            return
        yield piece.text[:characters]
        characters -= len(piece.text)


def run_rows(
    sources: Sources, reading: Reading, recipe: Recipe, length: int, say: Say, *, multiple: int = 1, verify: bool = True
) -> RunRows:
    """`multiple`: the held-out rows are filled up to a multiple of it by rows without loss. `verify`: whether shards of
    the cache are checked first.

    Raises MerinoError for text that cannot be used, too little text, and a tokenizer that separates no documents.
    """
    given = zip(sources.data, sources.data_files, strict=True)
    shards = [shard_of(*each, reading, say, verify) for each in given]
    given = zip(sources.held_out, sources.held_out_files, strict=True)
    others = [shard_of(*each, reading, say, verify) for each in given]
    check_separates(reading.tokenizer, sum(len(shard.ends) for shard in shards))
    spans = [whole(shard) if others else split(shard)[0] for shard in shards]
    pad = end_id(reading.tokenizer) or 0

    def joined(given: Sequence[Span], what: str, remedy: str) -> Joined:
        text = TextRows([span for span in given if span.shard.learned is None], length)
        samples = SampleRows([span for span in given if span.shard.learned is not None], length, pad, recipe.cut_long)
        for part in (text, samples):
            if part.spans and not len(part):
                raise MerinoError(
                    f"{what} gives {part.tokens} tokens, fewer than one sequence of {length}: {remedy}, or design with"
                    " a shorter --context"
                )
        report_cut(samples, what, say)
        return Joined([text, samples])

    weights = [source.weight for source in sources.data if source.weight is not None]
    if weights:
        groups = [joined([span], span.shard.source.what, "give more of it") for span in spans]
    else:
        groups = [joined(spans, "the text of --data", "give more text")]
    if others:
        held_out = joined([whole(shard) for shard in others], "the text of --held-out", "give more text")
    else:
        last, remedy = "the held-out text, the last 2 % of --data,", "give more text, or one with --held-out"
        held_out = joined([split(shard)[1] for shard in shards], last, remedy)
    apart = any(each.apart for each in (*groups, held_out))
    rows = Mixture(groups, weights or [1.0], recipe.steps * recipe.batch, recipe.seed, apart)
    if weights:
        for source, times in zip(sources.data, rows.passes(), strict=True):
            say(f"{source.what}: {times:.2g} passes over its rows")
    tokens = sum(group.tokens_in_rows for group in groups)
    most = None if others else max(1, MOST_HELD_OUT // length)
    judging = RowSet(held_out, apart, multiple, most)
    if judging.taken < len(held_out):
        say(f"held out are {len(held_out):,} rows; {judging.taken:,} of them, evenly spread, are evaluated")
    return RunRows(rows, judging, tokens, held_out.tokens_in_rows * judging.taken // len(held_out))


def report_cut(samples: SampleRows, what: str, say: Say) -> None:
    if samples.cut_samples or samples.dropped_samples:
        say(
            f"{what}: {samples.cut_samples:,} samples are cut at {samples.length} tokens, and"
            f" {samples.dropped_samples:,} are left out, since nothing that is learned would remain"
        )
