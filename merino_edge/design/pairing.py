"""Enumerates the decoders of most weights below a bound, meet in the middle: first and second halves are joined.

At prices (`prices`) a decoder's value is at least its weights. So an option or a partial decoder is pruned if the value
of its best completion is below the range of weights. Each remaining first half is joined with the second halves that
bring the weights into the range. The enumeration is complete, so an empty result is a proof.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from merino_edge.design.law import EVEN
from merino_edge.design.prices import Options, joined
from merino_edge.design.program import Program
from merino_edge.prediction.limits import most_within

HALVES = 400_000  # first or second halves at a time
MATCHES = 2_000_000  # decoders at a time
CHUNK = 100_000
NARROWER = 0.2  # factor on the range of weights where it has more
NARROWEST = 1e-9  # relative


class Halves(NamedTuple):
    """First or second halves of decoders. H halves of B blocks.

    Attributes:
        chosen: indices of their options. [B, H]
        layers, weights, value: sums over the blocks. [H]
    """

    chosen: np.ndarray
    layers: np.ndarray
    weights: np.ndarray
    value: np.ndarray

    def some(self, which: np.ndarray) -> "Halves":
        return Halves(self.chosen[:, which], self.layers[which], self.weights[which], self.value[which])


class Looked(NamedTuple):
    """The best decoder of more than `least` million weights; None where there is none. `work`: number of halves and
    decoders enumerated."""

    choice: list[int] | None
    least: float
    work: int


def look(program: Program, options: Options, layers: int, prices: np.ndarray, most: float, least: float) -> Looked:
    """Enumerate the decoders of `least` to `most` weights; `least` is raised where there are too many.

    `options`: of one level of activations.
    """
    constant, half, work = float(prices @ (1 - options.reserve[:, 0])), (len(options.ends) + 1) // 2, 0
    while True:
        last = most - least <= NARROWEST * most
        options = options.some(options.unit * layers >= EVEN * least * (1 - NARROWEST))
        values = options.values(prices)
        tables = options.tables(values)
        first, second = (
            halves(program, options, values, tables, roles, layers, least - constant, None if last else HALVES)
            for roles in (range(half), range(half, len(values)))
        )
        if first is None or second is None:
            work += HALVES
        else:
            pairs = matches(first, second, layers, most, least, least - constant, None if last else MATCHES)
            work += len(first.layers) + len(second.layers) + (MATCHES if pairs is None else len(pairs[0]))
            if pairs is not None:
                return Looked(best_fitting(program, options, layers, first, second, pairs), least, work)
        least = most - (most - least) * NARROWER


def halves(
    program: Program, options: Options, values: list[np.ndarray], tables: list[np.ndarray], roles: Sequence[int],
    layers: int, needed: float, cap: int | None,
) -> Halves | None:
    """Halves for these roles whose best completion has at least the value `needed`; None for more than `cap`."""
    partial = Halves(np.zeros((0, 1), int), np.zeros(1, int), np.zeros(1), np.zeros(1))
    others = [table for role, table in enumerate(tables) if role not in roles]
    for role in roles:
        left = [tables[each] for each in roles if each > role] + others
        rest = joined(left)[:, 0] if left else np.zeros(1)
        alike = role > roles[0] and role > 1 and not (options.ends[role] - options.ends[role - 1]).any()
        parts, count = [], 0
        for which, place in extensions(options, partial, values[role], rest, layers, needed):
            if len(partial.chosen):
                keep = canonical(program, options, partial.chosen[-1][which], place, alike)
                which, place = which[keep], place[keep]
            count += len(which)
            if cap is not None and count > cap:
                return None
            parts.append(Halves(
                np.concatenate([partial.chosen[:, which], place[None]]), partial.layers[which] + options.layers[place],
                partial.weights[which] + options.weights[place], partial.value[which] + values[role][place],
            ))
        if not parts:
            return partial.some(np.zeros(0, int))._replace(chosen=np.zeros((len(roles), 0), int))
        partial = Halves(*(np.concatenate(each, axis=-1) for each in zip(*parts, strict=True)))
    return partial


def extensions(
    options: Options, partial: Halves, value: np.ndarray, rest: np.ndarray, layers: int, needed: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(partial decoders, options) whose best completion has at least the value `needed`, grouped by layers."""
    order = np.lexsort((value, options.layers))
    edges = np.searchsorted(options.layers[order], np.arange(int(options.layers[-1]) + 2))
    for before in np.unique(partial.layers).tolist():
        parts = np.flatnonzero(partial.layers == before)
        for own, (start, end) in enumerate(zip(edges, edges[1:], strict=False)):
            left = layers - before - own
            if start == end or not 0 <= left < len(rest) or rest[left] == -np.inf:
                continue
            members = order[start:end]
            low = np.searchsorted(value[members], needed - rest[left] - partial.value[parts])
            which, place = expanded(low, np.full(len(parts), end - start))
            if len(which):
                yield parts[which], members[place]


def expanded(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs (row, n) with low[row] <= n < high[row], as two arrays."""
    count = np.maximum(high - low, 0)
    row = np.repeat(np.arange(len(count)), count)
    return row, np.arange(len(row)) + np.repeat(low - (np.cumsum(count) - count), count)


def canonical(program: Program, options: Options, before: np.ndarray, after: np.ndarray, alike: bool) -> np.ndarray:
    """Symmetry breaking: equal layers of two blocks are split in nearly equal parts, where the space has every depth;
    blocks of `alike` roles stand in the order of their options."""
    first, second = options.index[before], options.index[after]
    same = (program.shape[first] == program.shape[second]) & ~program.shared[first] & ~program.shared[second]
    more = program.layers[first] - program.layers[second]
    keep = ~same | ((more == 0) | (more == 1)) if program.every_depth else np.ones(len(first), bool)
    return keep & (same | (first <= second)) if alike else keep


def matches(
    first: Halves, second: Halves, layers: int, most: float, least: float, needed: float, cap: int | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Pairs of halves with `layers` layers in all, and weights in the range; None for more than `cap`."""
    pairs, count = [], 0
    for own in np.unique(first.layers).tolist():
        left, right = np.flatnonzero(first.layers == own), np.flatnonzero(second.layers == layers - own)
        right = right[np.argsort(second.weights[right], kind="stable")]
        low = np.searchsorted(second.weights[right], least - first.weights[left], side="left")
        high = np.searchsorted(second.weights[right], most * (1 + NARROWEST) - first.weights[left], side="right")
        count += int(np.maximum(high - low, 0).sum())
        if cap is not None and count > cap:
            return None
        row, place = expanded(low, high)
        one, other = left[row], right[place]
        worth = first.value[one] + second.value[other] >= needed
        pairs.append((one[worth], other[worth]))
    if not pairs:
        return np.zeros(0, int), np.zeros(0, int)
    one, other = (np.concatenate(each) for each in zip(*pairs, strict=True))
    return one, other


def best_fitting(
    program: Program, options: Options, layers: int, first: Halves, second: Halves, pairs: tuple[np.ndarray, np.ndarray]
) -> list[int] | None:
    """The decoder of most weights that meets all limits and whose layers are nearly equal."""
    weights = first.weights[pairs[0]] + second.weights[pairs[1]]
    order = np.argsort(-weights, kind="stable")
    for part in np.split(order, range(CHUNK, len(order), CHUNK)):
        chosen = np.concatenate([first.chosen[:, pairs[0][part]], second.chosen[:, pairs[1][part]]])  # [blocks, M]
        unit, mean = options.unit[chosen], weights[part] / layers
        keep = (EVEN * mean <= most_within(unit.min(axis=0))) & (EVEN * unit.max(axis=0) <= most_within(mean))
        chosen = chosen[:, keep]
        width = program.width[options.index[chosen]]
        chosen = chosen[:, program.allowed[width[:1], width].all(axis=0)]
        share = options.use[:, chosen].sum(axis=1) + options.reserve[:, 0][:, None]
        for role, place in enumerate(chosen):
            share = share + options.ends[role][:, place]
        fitting = np.flatnonzero((share <= most_within(1.0)).all(axis=0))
        if len(fitting):
            return options.index[chosen[:, fitting[0]]].tolist()
    return None
