"""Shards as rows of ids, in the order of a run.

Documents are concatenated and cut into rows of equal length. Samples are packed whole: a row holds those that fit, each
with positions from 0 on, so that none attends to another; the rest of the row is padding without loss. The order of
rows is a permutation per pass, seeded by the recipe.
"""

from array import array
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Dataset

from merino_edge.text.tokenizer import check_separates, end_id
from merino_edge.training.recipe import Recipe
from merino_edge.training.shards import Say, Shard, Tokenization, load_shard
from merino_edge.training.sources import DataSource
from merino_runtime.errors import MerinoError

NO_LOSS = -100  # label of a token without loss, as in torch
HELD_OUT_SHARE = 0.02
MOST_HELD_OUT = 1 << 20  # tokens of a held-out share that are evaluated
PATTERN = 1000  # rows among which every weighted source has its share


class PackedRows(Dataset[tuple[np.ndarray, np.ndarray, np.ndarray]]):
    """Rows of `length` ids, packed from shards: first those of documents, then those of samples.

    `text_rows`: number of rows of documents. `text_ends`: where the shards of documents begin and end in their
    concatenation. `slices`: the shard of each sample, and its range there [samples, 3]. `firsts`: the first sample of
    each row of samples, and the number of samples. `tokens`: number of tokens in all rows, without padding. `cut`,
    `lost`: number of samples that were truncated, and that were left out because no token with loss remained.
    """

    def __init__(
        self, shards: Sequence[Shard], *, length: int, pad: int, cut_long: bool, what: str,
        remedy: str = "give more text",
    ):  # fmt: skip
        """Raises MerinoError for less than a row, and for samples longer than a row, unless `cut_long`."""
        texts = [shard for shard in shards if shard.learned is None]
        self.samples = [shard for shard in shards if shard.learned is not None]
        self.shards, self.length, self.pad, self.cut, self.lost = [*texts, *self.samples], length, pad, 0, 0
        # 1. Documents: their concatenation is cut into rows, and its rest is left out.
        self.text_ends = np.cumsum([0, *(len(shard.ids) for shard in texts)], dtype=np.int64)
        self.text_rows = int(self.text_ends[-1]) // length
        # 2. Samples: a row takes the next ones as long as they fit. Those that are too long are cut, or refused.
        packed, firsts, filled, self.tokens = array("q"), array("q"), length, self.text_rows * length
        for number, shard in enumerate(self.samples, len(texts)):
            assert shard.learned is not None
            sizes = np.diff(shard.ends, prepend=0)
            long = np.flatnonzero(sizes > length)
            if len(long) and not cut_long:
                raise MerinoError(
                    f"{len(long):,} of {len(sizes):,} samples of {shard.source.what} are longer than a row of {length}"
                    f" tokens, the longest {sizes.max():,}, the first is sample {shard.first + long[0] + 1:,}: give"
                    " --set cut_long=true, which cuts off their ends, a longer --set length, or shorter samples"
                )
            for start, end in zip(map(int, shard.ends - sizes), map(int, shard.ends), strict=True):
                stop = min(end, start + length)
                if stop < end and not shard.learned[start:stop].any():
                    self.lost += 1
                    continue
                self.cut += stop < end
                if filled + stop - start > length:
                    firsts.append(len(packed) // 3)
                    filled = 0
                packed.extend((number, start, stop))
                filled += stop - start
                self.tokens += stop - start
        self.slices = np.array(packed, np.int64).reshape(-1, 3)
        self.firsts = np.array([*firsts, len(self.slices)], np.int64)
        if (texts and not self.text_rows) or (self.samples and not firsts):
            raise MerinoError(
                f"{what} gives {sum(len(shard.ids) for shard in shards)} tokens, fewer than one sequence of {length}:"
                f" {remedy}, or design with a shorter --context"
            )

    def __len__(self) -> int:
        return self.text_rows + len(self.firsts) - 1

    def _slices(self, row: int) -> list[tuple[int, int, int]]:
        """Return (shard, start, stop) of what the row holds."""
        if row >= self.text_rows:
            first, end = self.firsts[row - self.text_rows : row - self.text_rows + 2]
            return [(number, start, stop) for number, start, stop in self.slices[first:end].tolist()]
        start, stop, ends = row * self.length, (row + 1) * self.length, self.text_ends
        first, last = np.searchsorted(ends, (start, stop - 1), "right") - 1
        bounds = ((number, int(ends[number]), int(ends[number + 1])) for number in range(first, last + 1))
        return [(number, max(start, begin) - begin, min(stop, end) - begin) for number, begin, end in bounds]

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (ids, labels, positions), each [length]."""
        ids, labels = np.full(self.length, self.pad, np.int64), np.full(self.length, NO_LOSS, np.int64)
        positions, place = np.arange(self.length), 0
        for number, start, stop in self._slices(row):
            shard = self.shards[number]
            here = slice(place, place + stop - start)
            ids[here] = labels[here] = shard.ids[start:stop]
            place = here.stop
            if shard.learned is not None:
                labels[here][shard.learned[start:stop] == 0] = NO_LOSS
                positions[here.start :] = np.arange(self.length - here.start)
        positions[place:] = np.arange(self.length - place)
        return ids, labels, positions


class RowDataset(Dataset[dict[str, torch.Tensor]]):
    """The rows of groups in the order of a run: place i has row `order[i]` of `rows`, all groups' one after the other.

    `order`: -1 is a row without loss, which gives all processes equal batches. `tokens`: number of tokens in `rows`.
    `logits`: a teacher's logits for all of `rows` (distill.py), or None.
    """

    def __init__(self, groups: Sequence[PackedRows], order: np.ndarray):
        self.rows: ConcatDataset[Any] = ConcatDataset(groups)
        self.order = order
        self.has_samples = any(group.samples for group in groups)
        self.tokens = sum(group.tokens for group in groups)
        self.logits: Any = None

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        row = int(self.order[place])
        inputs = self.inputs(max(row, 0))
        if row < 0:
            inputs["labels"] = torch.full_like(inputs["labels"], NO_LOSS)
        return inputs if self.logits is None else inputs | self.logits.row(row)

    def inputs(self, row: int) -> dict[str, torch.Tensor]:
        """Return the model's inputs, each [length]; without samples no positions."""
        ids, labels, positions = map(torch.from_numpy, self.rows[row])
        tensors = {"input_ids": ids, "labels": labels}
        return tensors | {"position_ids": positions} if self.has_samples else tensors

    @cached_property
    def learned(self) -> int:
        """The number of tokens that are predicted and whose loss counts."""
        return sum(int((self.rows[row][1][1:] != NO_LOSS).sum()) for row in self.order if row >= 0)


def load_data(
    data: Sequence[DataSource], held_out: Sequence[DataSource], tokenization: Tokenization, recipe: Recipe,
    *, length: int, say: Say = lambda _: None, multiple: int = 1,
) -> tuple[RowDataset, RowDataset]:  # fmt: skip
    """Return the rows for training and the held-out rows of a run, from cached shards if there are any. The number of
    held-out rows becomes a multiple of `multiple`.

    Raises MerinoError for text that cannot be used, too little text, and a tokenizer that separates no documents.
    """
    # 1. Files to shards, and shards to training and held-out shares.
    shards = [load_shard(source, tokenization, say) for source in data]
    check_separates(tokenization.tokenizer, sum(len(shard.ends) for shard in shards))
    if held_out:
        held_out_shards = [load_shard(source, tokenization, say) for source in held_out]
        what, remedy = "the text of --held-out", "give more text"
    else:
        shards, held_out_shards = zip(*(split(shard, length) for shard in shards), strict=True)
        sizes = [sum(len(shard.ids) for shard in part) for part in (shards, held_out_shards)]
        say(f"held out: the last {sizes[1]:,} of {sum(sizes):,} tokens, {sizes[1] / sum(sizes):.1%}")
        what, remedy = "the held-out text, the end of --data,", "give more text, or one with --held-out"
    # 2. Shards to groups of packed rows: one group per weighted source, or one of all.
    pack = partial(PackedRows, length=length, pad=end_id(tokenization.tokenizer) or 0, cut_long=recipe.cut_long)
    weights = [source.weight for source in data if source.weight is not None]
    separate = [pack([shard], what=shard.source.what) for shard in shards] if weights else []
    groups = separate or [pack(shards, what="the text of --data")]
    held_out_rows = pack(held_out_shards, what=what, remedy=remedy)
    cut, lost = (sum(getattr(group, name) for group in (*groups, held_out_rows)) for name in ("cut", "lost"))
    if cut or lost:
        say(f"{cut:,} samples are cut at {length} tokens; {lost:,} are left out, because the loss would count nothing")
    # 3. Groups to an order of rows.
    order = run_order([len(group) for group in groups], weights or [1.0], recipe.steps * recipe.batch, recipe.seed)
    rows = RowDataset(groups, order)
    if weights:
        counts, _ = np.histogram(rows.order, [0, *rows.rows.cumulative_sizes])
        for source, group, count in zip(data, groups, counts, strict=True):
            say(f"{source.what}: {count / len(group):.2g} passes over its rows")
    taken = len(held_out_rows) if held_out else min(len(held_out_rows), max(1, MOST_HELD_OUT // length))
    if taken < len(held_out_rows):
        say(f"held out are {len(held_out_rows):,} rows; {taken:,} of them, evenly spread, are evaluated")
    spread = np.arange(taken) * len(held_out_rows) // taken
    evaluated = RowDataset([held_out_rows], np.pad(spread, (0, -taken % multiple), constant_values=-1))
    evaluated.has_samples = rows.has_samples = rows.has_samples or evaluated.has_samples
    return rows, evaluated


def split(shard: Shard, least: int = 1) -> tuple[Shard, Shard]:
    """Return (training, held out): the last documents or samples with 2 % of the tokens are held out. `least`: tokens
    to hold out of a small text, as long as they are at most a tenth of it.

    Samples are held out whole, at least one; all but one at most. A document is cut if its rest would make the held-out
    share more than twice as large, so that no long document is lost to it. `first` of the held-out part counts the
    documents that end before it.
    """
    ends, size = shard.ends, len(shard.ids)
    wanted = max(1, round(size * HELD_OUT_SHARE), min(least, size // 10))
    whole = shard.learned is not None and len(ends) > 1
    first = max(int(whole), int(np.searchsorted(ends, size - wanted, "right")))
    start = int(ends[first - 1]) if first else 0
    cut = start if whole or (first and size - start <= 2 * wanted) else size - wanted
    learned = (None, None) if shard.learned is None else (shard.learned[:cut], shard.learned[cut:])
    trained_ends = np.append(ends[:first], cut) if cut > start else ends[:first]
    return (
        shard._replace(ids=shard.ids[:cut], ends=trained_ends, learned=learned[0]),
        shard._replace(ids=shard.ids[cut:], ends=ends[first:] - cut, learned=learned[1], first=first),
    )


def run_order(sizes: Sequence[int], shares: Sequence[float], count: int, seed: int) -> np.ndarray:
    """Return the row of each of a run's `count` places, which counts through the rows of all groups.

    Every group gets its share of each PATTERN places, shuffled. A group's rows are read in passes: each pass reads all
    rows once, in another order. A shorter run of the same seed reads the same first rows. Raises MerinoError for a
    share of less than one place.
    """
    bounds = np.cumsum(shares) / sum(shares)
    pattern = np.searchsorted(bounds[:-1], (np.arange(PATTERN) + 0.5) / PATTERN, "right").astype(np.uint16)
    absent = sorted(set(range(len(sizes))) - set(pattern.tolist()))
    if absent:
        least = f"{shares[absent[0]]:g} of {sum(shares):g}"
        raise MerinoError(f"a weight of {least} is less than a row in {PATTERN}: raise it, or leave the source out")
    tiled = np.broadcast_to(pattern, (-(-count // PATTERN), PATTERN))
    groups = np.random.default_rng(seed).permuted(tiled, axis=1).ravel()[:count]
    rows = np.empty(count, np.uint32)
    for group, size in enumerate(sizes):
        places, generator = np.flatnonzero(groups == group), np.random.default_rng([seed, group])
        for start in range(0, len(places), size):
            order = np.arange(sum(sizes[:group]), sum(sizes[: group + 1]), dtype=np.uint32)
            generator.shuffle(order)
            rows[places[start : start + size]] = order[: len(places) - start]
    return rows
