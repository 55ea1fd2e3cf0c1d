"""Rows of ids as the model takes them, from memory-mapped shards, in an order that depends on seed and place alone.

Documents are concatenated and cut into rows of equal length. Samples are packed whole: a row holds those that fit, each
with positions of its own from 0 on, so that none attends to another; the rest of the row is padding without loss.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from merino_edge.training.data.shards import Shard
from merino_runtime.errors import MerinoError

NOT_LEARNED = -100  # torch's label without loss
HELD_OUT_SHARE = 0.02
PATTERN = 1000  # rows in which each source has its share of places
ROUNDS = 4  # of the permutation


class Span(NamedTuple):
    """Documents or samples of a shard, from `first` to before `last`. `part`: ids of a single document; None: all."""

    shard: Shard
    first: int
    last: int
    part: tuple[int, int] | None = None

    @property
    def bounds(self) -> tuple[int, int]:
        """In ids."""
        return self.part or (self.shard.begin(self.first), self.shard.begin(self.last))


class Row(NamedTuple):
    """`labels`: ids, NOT_LEARNED where no loss counts; `positions`: from 0 on in each sample; all [length]."""

    ids: np.ndarray
    labels: np.ndarray
    positions: np.ndarray


class Rows(Protocol):
    def __len__(self) -> int: ...

    def row(self, index: int) -> Row: ...


def split(shard: Shard) -> tuple[Span, Span]:
    """(training, held out): the last 2 % of the documents or samples, at least one, are held out. A single document is
    cut instead, at the same share of its ids."""
    count = len(shard.ends)
    if count == 1:
        size = len(shard.ids)
        cut = size - max(1, round(size * HELD_OUT_SHARE))
        return Span(shard, 0, 1, (0, cut)), Span(shard, 0, 1, (cut, size))
    cut = count - max(1, round(count * HELD_OUT_SHARE))
    return Span(shard, 0, cut), Span(shard, cut, count)


def whole(shard: Shard) -> Span:
    return Span(shard, 0, len(shard.ends))


class TextRows:
    """The documents of spans, concatenated and cut into rows of `length`; the incomplete last row is dropped."""

    apart = False

    def __init__(self, spans: Sequence[Span], length: int):
        self.spans, self.length = spans, length
        self.ends = list(accumulate(end - begin for begin, end in (span.bounds for span in spans)))
        self.tokens = self.ends[-1] if self.ends else 0

    def __len__(self) -> int:
        return self.tokens // self.length

    @property
    def tokens_in_rows(self) -> int:
        return len(self) * self.length

    def row(self, index: int) -> Row:
        place, needed, parts = index * self.length, self.length, []
        number = bisect_right(self.ends, place)
        while needed:
            begin, end = self.spans[number].bounds
            start = place - (self.ends[number] - (end - begin)) + begin
            part = self.spans[number].shard.ids[start : min(end, start + needed)]
            parts.append(part)
            place, needed, number = place + len(part), needed - len(part), number + 1
        ids = np.concatenate(parts).astype(np.int64)
        return Row(ids, ids, np.arange(self.length))


class SampleRows:
    """The samples of spans, packed whole into rows of `length`. `cut_long`: whether longer ones lose their end, instead
    of being refused. `pad`: the id behind the last sample of a row."""

    apart = True

    def __init__(self, spans: Sequence[Span], length: int, pad: int, cut_long: bool):
        self.spans, self.length, self.pad = spans, length, pad
        self.cut_samples = self.dropped_samples = 0
        self.tokens = 0
        packed = [self.pack(number, cut_long) for number in range(len(spans))]
        self.starts = [starts for starts, _ in packed]  # of each span: the first sample of each row, and the end
        self.kept = [kept for _, kept in packed]
        self.ends = list(accumulate(len(starts) - 1 for starts in self.starts))

    def pack(self, number: int, cut_long: bool) -> tuple[np.ndarray, np.ndarray]:
        """(places in the kept samples at which rows begin, the kept samples' numbers)"""
        span = self.spans[number]
        ends = np.asarray(span.shard.ends[span.first : span.last])
        begins = np.concatenate(([span.shard.begin(span.first)], ends[:-1]))
        sizes = ends - begins
        long = np.flatnonzero(sizes > self.length)
        if len(long) and not cut_long:
            raise MerinoError(
                f"{len(long):,} of {len(sizes):,} samples of {span.shard.source.what} are longer than a row of"
                f" {self.length} tokens, the longest {int(sizes.max()):,}, the first is sample"
                f" {span.first + int(long[0]) + 1:,}: give --cut-long, which cuts their ends off, a --length of up to"
                " the model's context, or shorter samples"
            )
        learned = span.shard.learned
        assert learned is not None
        lost = [each for each in long if not learned[begins[each] : begins[each] + self.length].any()]
        self.cut_samples += len(long) - len(lost)
        self.dropped_samples += len(lost)
        kept = np.delete(np.arange(len(sizes)), lost)
        filled = np.cumsum(np.minimum(sizes[kept], self.length))
        self.tokens += int(filled[-1]) if len(filled) else 0
        starts, done = [0], 0
        while starts[-1] < len(kept):
            starts.append(int(np.searchsorted(filled, done + self.length, "right")))
            done = int(filled[starts[-1] - 1])
        return np.array(starts), kept + span.first

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    @property
    def tokens_in_rows(self) -> int:
        return self.tokens

    def row(self, index: int) -> Row:
        number = bisect_right(self.ends, index)
        inner = index - (self.ends[number - 1] if number else 0)
        shard, kept = self.spans[number].shard, self.kept[number]
        assert shard.learned is not None
        ids = np.full(self.length, self.pad, np.int64)
        labels = np.full(self.length, NOT_LEARNED, np.int64)
        positions, place = np.arange(self.length), 0
        for sample in kept[self.starts[number][inner] : self.starts[number][inner + 1]]:
            begin = shard.begin(int(sample))
            size = min(self.length, int(shard.ends[sample]) - begin)
            here, there = slice(place, place + size), slice(begin, begin + size)
            ids[here] = shard.ids[there]
            labels[here] = np.where(shard.learned[there] == 1, ids[here], NOT_LEARNED)
            positions[here] = np.arange(size)
            place += size
        positions[place:] = np.arange(self.length - place)
        return Row(ids, labels, positions)


class Joined:
    """Rows behind rows. `apart`: whether any of them hold samples, whose positions then count."""

    def __init__(self, parts: "Sequence[TextRows | SampleRows | Joined]"):
        self.parts = [part for part in parts if len(part)]
        self.ends = list(accumulate(map(len, self.parts)))
        self.apart: bool = any(part.apart for part in self.parts)
        self.tokens_in_rows: int = sum(part.tokens_in_rows for part in self.parts)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def row(self, index: int) -> Row:
        number = bisect_right(self.ends, index)
        return self.parts[number].row(index - (self.ends[number - 1] if number else 0))


class RowSet(Dataset):
    """Rows in their own order, as torch's Dataset, filled up to a multiple of `multiple` by rows without loss, so that
    several processes get equal batches.

    `apart`: whether the model gets positions. `most`: rows that are taken, evenly spread; None: all.
    """

    def __init__(self, rows: Joined, apart: bool, multiple: int = 1, most: int | None = None):
        self.rows, self.apart = rows, apart
        self.taken = min(len(rows), most or len(rows))
        self.size = -(-self.taken // multiple) * multiple

    def __len__(self) -> int:
        return self.size

    def row(self, index: int) -> Row:
        return self.rows.row(index * len(self.rows) // self.taken)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index < self.taken:
            return tensors(self.row(index), self.apart)
        if index >= self.size:
            raise IndexError(index)
        row = self.row(0)
        return tensors(row._replace(labels=np.full_like(row.labels, NOT_LEARNED)), self.apart)

    @cached_property
    def learned(self) -> int:
        """Tokens that are predicted and whose loss counts."""
        return sum(int((self.row(index).labels[1:] != NOT_LEARNED).sum()) for index in range(self.taken))


def tensors(row: Row, apart: bool) -> dict[str, torch.Tensor]:
    inputs = {"input_ids": torch.from_numpy(row.ids), "labels": torch.from_numpy(row.labels)}
    if apart:
        inputs["position_ids"] = torch.from_numpy(row.positions)
    return inputs


class Mixture(Dataset):
    """The rows of a whole run, in order: `count` of them, drawn from `groups` by their `shares`.

    Each PATTERN rows have each group's share of places, shuffled. A group's rows are drawn in passes, each of which
    takes every row once, in another order. The row at a place depends only on `seed` and the place.
    """

    def __init__(self, groups: Sequence[Joined], shares: Sequence[float], count: int, seed: int, apart: bool):
        self.groups, self.count, self.seed, self.apart = groups, count, seed, apart
        self.places = integer_places(shares)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        group, row = self.drawn(index)
        return tensors(self.groups[group].row(row), self.apart)

    def drawn(self, index: int) -> tuple[int, int]:
        """(group, row of the group) at a place of the run."""
        block, place = divmod(index, PATTERN)
        group, before = pattern(self.places, self.seed, block)[place]
        many = len(self.groups[group])
        turn, at = divmod(block * self.places[group] + before, many)
        return group, permuted(at, many, hash_of(self.seed, group, turn))

    def passes(self) -> list[float]:
        """The number of passes of each group over its rows."""
        drawn = zip(self.places, self.groups, strict=True)
        return [self.count * places / PATTERN / len(group) for places, group in drawn]


def integer_places(shares: Sequence[float]) -> tuple[int, ...]:
    """Each share's number of PATTERN places, by the largest remainder. Raises MerinoError for a share without a place.
    """
    total = sum(shares)
    exact = [PATTERN * share / total for share in shares]
    places = [int(each) for each in exact]
    for group in sorted(range(len(shares)), key=lambda each: places[each] - exact[each])[: PATTERN - sum(places)]:
        places[group] += 1
    if 0 in places:
        least = shares[places.index(0)]
        raise MerinoError(f"a weight of {least:g} of {total:g} is less than a row in {PATTERN}: raise or leave it out")
    return tuple(places)


@lru_cache(maxsize=4)
def pattern(places: tuple[int, ...], seed: int, block: int) -> list[tuple[int, int]]:
    """(group, how many of its rows stand before in this block) at each place of a block."""
    groups = np.repeat(np.arange(len(places)), places)
    if len(places) > 1:
        np.random.default_rng([seed, block]).shuffle(groups)
    count = [0] * len(places)
    drawn = []
    for group in groups.tolist():
        drawn.append((group, count[group]))
        count[group] += 1
    return drawn


def permuted(index: int, count: int, key: int) -> int:
    """The value of a pseudorandom permutation of range(count) at `index`: a Feistel network on the next power of four,
    repeated until the value is in range. It needs no table, which for a large corpus would take gigabytes."""
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(ROUNDS):
            left, right = right, left ^ (hash_of(key, turn, right) & mask)
        index = left << half | right
        if index < count:
            return index


def hash_of(*numbers: int) -> int:
    """64 bits, by the finaliser of splitmix64."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ state >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state
