"""The decoders of most weights below a bound: halves that may be in them, joined.

At prices (`prices`) a decoder is worth at least its weights. So an option, or a part of a decoder, whose best
completion is worth too little is in no decoder of the weights sought. Halves of decoders that are left are joined: to
each first half those second halves with which the weights lie in the range that is sought. All that lies there is
looked at, so finding none proves that there is none.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from merino_edge.design.law import EVEN
from merino_edge.design.prices import Options, joined
from merino_edge.design.program import Program
from merino_edge.prediction.limits import most_within

HALVES = 400_000  # first or second halves that are listed at a time
MATCHES = 2_000_000  # decoders that are looked at at a time
CHUNK = 100_000
NARROWER = 0.2  # the range of weights, where there are more
NARROWEST = 1e-9  # relative


class Halves(NamedTuple):
    """First or second halves of decoders. H halves of B blocks.

    Attributes:
        chosen: places of their options. [B, H]
        layers, weights, value: summed. [H]
    """

    chosen: np.ndarray
    layers: np.ndarray
    weights: np.ndarray
    value: np.ndarray

    def some(self, which: np.ndarray) -> "Halves":
        return Halves(self.chosen[:, which], self.layers[which], self.weights[which], self.value[which])


class Looked(NamedTuple):
    """The best decoder of more than `least` weights, in millions; None where there is none. `work`: halves and decoders
    that were looked at."""

    choice: list[int] | None
    least: float
    work: int


def look(program: Program, options: Options, layers: int, prices: np.ndarray, most: float, least: float) -> Looked:
    """Looks at the decoders of at most `most` weights and at least `least`, or more than that where they are too many.

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
    """Those of these roles whose best completion is worth `needed`; None where there are more than `cap`."""
    found = Halves(np.zeros((0, 1), int), np.zeros(1, int), np.zeros(1), np.zeros(1))
    others = [table for role, table in enumerate(tables) if role not in roles]
    for role in roles:
        left = [tables[each] for each in roles if each > role] + others
        rest = joined(left)[:, 0] if left else np.zeros(1)
        alike = role > roles[0] and role > 1 and not (options.ends[role] - options.ends[role - 1]).any()
        parts, count = [], 0
        for which, place in extensions(options, found, values[role], rest, layers, needed):
            if len(found.chosen):
                keep = canonical(program, options, found.chosen[-1][which], place, alike)
                which, place = which[keep], place[keep]
            count += len(which)
            if cap is not None and count > cap:
                return None
            parts.append(Halves(
                np.concatenate([found.chosen[:, which], place[None]]), found.layers[which] + options.layers[place],
                found.weights[which] + options.weights[place], found.value[which] + values[role][place],
            ))
        if not parts:
            return found.some(np.zeros(0, int))._replace(chosen=np.zeros((len(roles), 0), int))
        found = Halves(*(np.concatenate(each, axis=-1) for each in zip(*parts, strict=True)))
    return found


def extensions(
    options: Options, found: Halves, value: np.ndarray, rest: np.ndarray, layers: int, needed: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(parts, options) that together may be completed, by the layers of both."""
    order = np.lexsort((value, options.layers))
    edges = np.searchsorted(options.layers[order], np.arange(int(options.layers[-1]) + 2))
    for before in np.unique(found.layers).tolist():
        parts = np.flatnonzero(found.layers == before)
        for own, (start, end) in enumerate(zip(edges, edges[1:], strict=False)):
            left = layers - before - own
            if start == end or not 0 <= left < len(rest) or rest[left] == -np.inf:
                continue
            members = order[start:end]
            low = np.searchsorted(value[members], needed - rest[left] - found.value[parts])
            which, place = expanded(low, np.full(len(parts), end - start))
            if len(which):
                yield parts[which], members[place]


def expanded(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row's number once for each number from its low to its high, and these numbers."""
    count = np.maximum(high - low, 0)
    row = np.repeat(np.arange(len(count)), count)
    return row, np.arange(len(row)) + np.repeat(low - (np.cumsum(count) - count), count)


def canonical(program: Program, options: Options, before: np.ndarray, after: np.ndarray, alike: bool) -> np.ndarray:
    """Of decoders that are the same one way: equal layers in two blocks are cut in nearly equal parts, where the space
    has every depth; blocks of roles that are `alike` stand in order."""
    first, second = options.index[before], options.index[after]
    same = (program.shape[first] == program.shape[second]) & ~program.shared[first] & ~program.shared[second]
    more = program.layers[first] - program.layers[second]
    keep = ~same | ((more == 0) | (more == 1)) if program.every_depth else np.ones(len(first), bool)
    return keep & (same | (first <= second)) if alike else keep


def matches(
    first: Halves, second: Halves, layers: int, most: float, least: float, needed: float, cap: int | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Halves that together have the layers, and weights in the range; None where there are more than `cap`."""
    found, count = [], 0
    for own in np.unique(first.layers).tolist():
        mine, theirs = np.flatnonzero(first.layers == own), np.flatnonzero(second.layers == layers - own)
        theirs = theirs[np.argsort(second.weights[theirs], kind="stable")]
        low = np.searchsorted(second.weights[theirs], least - first.weights[mine], side="left")
        high = np.searchsorted(second.weights[theirs], most * (1 + NARROWEST) - first.weights[mine], side="right")
        count += int(np.maximum(high - low, 0).sum())
        if cap is not None and count > cap:
            return None
        row, place = expanded(low, high)
        one, other = mine[row], theirs[place]
        worth = first.value[one] + second.value[other] >= needed
        found.append((one[worth], other[worth]))
    if not found:
        return np.zeros(0, int), np.zeros(0, int)
    one, other = (np.concatenate(each) for each in zip(*found, strict=True))
    return one, other


def best_fitting(
    program: Program, options: Options, layers: int, first: Halves, second: Halves, pairs: tuple[np.ndarray, np.ndarray]
) -> list[int] | None:
    """The decoder of most weights that keeps all limits, and whose layers are near equal."""
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
