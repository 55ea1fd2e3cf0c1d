"""Bounds on the effective weights of decoders of D layers, by prices on the limits (a Lagrangian relaxation).

    weights <= sum_i (w_i - prices use_i) + prices (1 - ends - peak)      for any prices >= 0 and each decoder that fits

The right side's maximum over all decoders of D layers is exact and cheap: of the options of each number of layers the
best one counts, and a dynamic programme over the blocks picks the numbers. A decoder's worst activations are one of a
few levels, and at each level the options above it are left out. Left to others: which D, and decoders themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog

from merino_edge.design.program import Program

UNIT = 1e6  # effective weights are counted in millions, so that HiGHS's tolerances fit
ROUNDS = 40  # of better prices, for one number of layers
CLOSE = 0.05  # of a bound's distance from what is sought: by so much it may be too high
OPTIMAL = 0  # scipy's status


@dataclass(frozen=True)
class Options:
    """Some of a program's options, sorted by layers and level of activations.

    Attributes:
        index: in the program. [O]
        layers, level, width: of each; its width by index. [O]
        unit, weights: of one layer, and of all; in millions. [O]
        use: share of each limit, the same for each role. [R, O]
        ends: what embedding and head take on top, in each role: the first block, those between, the last one. [roles]
        reserve: what each level of activations takes. [R, K]
        first: index of the first block's width; None: any.
    """

    index: np.ndarray
    layers: np.ndarray
    level: np.ndarray
    width: np.ndarray
    unit: np.ndarray
    weights: np.ndarray
    use: np.ndarray
    ends: tuple[np.ndarray, ...]
    reserve: np.ndarray
    first: int | None = None

    @staticmethod
    def of(program: Program) -> "Options":
        """All of them."""
        _, representative, level = np.unique(program.peak.sum(axis=0), return_index=True, return_inverse=True)
        reserve = program.peak[:, representative]
        assert (np.diff(reserve, axis=1) >= 0).all(), "one amount is the peak of each limit that has one"
        # ends[r, first, last] = first's part + last's part, which `encode` sees to
        first = program.ends[:, :, 0][:, program.width]
        last = (program.ends[:, 0, :] - program.ends[:, :1, 0])[:, program.width]
        between = [np.zeros_like(first)] * (program.blocks - 2)
        order = np.lexsort((level, program.layers))
        return Options(
            np.arange(len(program.options)), program.layers, level, program.width, program.unit / UNIT,
            program.score / UNIT, program.use,
            (first, *between, last) if program.blocks > 1 else (first + last,), reserve,
        ).some(order)  # fmt: skip

    def some(self, which: np.ndarray) -> "Options":
        """Of these places, or where this mask is true."""
        return replace(
            self, index=self.index[which], layers=self.layers[which], level=self.level[which], width=self.width[which],
            unit=self.unit[which], weights=self.weights[which], use=self.use[:, which],
            ends=tuple(ends[:, which] for ends in self.ends),
        )  # fmt: skip

    def at_level(self, level: int) -> "Options":
        """With this level of activations reserved, and no other."""
        return replace(self, level=np.zeros_like(self.level), reserve=self.reserve[:, level : level + 1])

    @cached_property
    def groups(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where options of equal layers and level begin, and which layers and level these are."""
        starts = np.flatnonzero(np.diff(self.layers, prepend=-1) | np.diff(self.level, prepend=-1))
        return starts, self.layers[starts], self.level[starts]

    def values(self, prices: np.ndarray) -> list[np.ndarray]:
        """What each is worth in each role at these prices. [roles][O]"""
        value = self.weights - prices @ self.use
        found = [value - prices @ ends for ends in self.ends]
        if self.first is not None:
            found[0] = np.where(self.width == self.first, found[0], -np.inf)
        return found

    def tables(self, values: list[np.ndarray]) -> list[np.ndarray]:
        """The best value of an option of each number of layers and of at most each level. [roles][L + 1, K]"""
        starts, layers, level = self.groups
        found = []
        for value in values:
            table = np.full((int(self.layers[-1]) + 1, self.reserve.shape[1]), -np.inf)
            table[layers, level] = np.maximum.reduceat(value, starts)
            found.append(np.maximum.accumulate(table, axis=1))
        return found


class Bound(NamedTuple):
    """No decoder of a number of layers has more weights than `levels` of its level of activations. [K], in millions"""

    prices: np.ndarray
    levels: np.ndarray

    @property
    def weights(self) -> float:
        return float(self.levels.max())


def sums(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The best sums of one row of each table, by the sum of their numbers."""
    found = np.full((len(first) + len(second) - 1, first.shape[1]), -np.inf)
    for number in np.flatnonzero(first.max(axis=1) > -np.inf).tolist():
        part = found[number : number + len(second)]
        np.maximum(part, first[number] + second, out=part)
    return found


def joined(tables: Sequence[np.ndarray]) -> np.ndarray:
    """The best sums over all roles. [layers + 1, K]"""
    found = tables[0]
    for table in tables[1:]:
        found = sums(found, table)
    return found


def bound_at(options: Options, layers: int, prices: np.ndarray) -> Bound:
    """By these prices."""
    if not len(options.index):
        return Bound(prices, np.full(options.reserve.shape[1], -np.inf))
    tables = options.tables(options.values(prices))
    half = (len(tables) + 1) // 2
    best = best_of_layers(joined(tables[:half]), joined(tables[half:]) if half < len(tables) else None, layers)
    return Bound(prices, best + prices.sum() - prices @ options.reserve)


def best_of_layers(first: np.ndarray, second: np.ndarray | None, layers: int) -> np.ndarray:
    """The best sum of so many layers. [K]"""
    if second is None:
        return first[layers] if layers < len(first) else np.full(first.shape[1], -np.inf)
    low, high = max(0, layers - len(second) + 1), min(layers, len(first) - 1)
    if low > high:
        return np.full(first.shape[1], -np.inf)
    return (first[low : high + 1] + second[layers - high : layers - low + 1][::-1]).max(axis=0)


def decoder_at(options: Options, layers: int, prices: np.ndarray, level: int) -> np.ndarray:
    """The places of the options of the decoder that makes the bound. [roles]"""
    values = options.values(prices)
    tables = [table[:, level : level + 1] for table in options.tables(values)]
    allowed, chosen, left = options.level <= level, [], layers
    for role, value in enumerate(values):
        rest = joined(tables[role + 1 :])[:, 0] if role + 1 < len(tables) else np.zeros(1)
        own = tables[role][:, 0]
        number = max(
            (count for count in range(len(own)) if 0 <= left - count < len(rest)),
            key=lambda count: own[count] + rest[left - count],
        )
        chosen.append(int(np.where(allowed & (options.layers == number), value, -np.inf).argmax()))
        left -= number
    return np.array(chosen)


def best_bound(options: Options, layers: int, prices: np.ndarray, least: float) -> Bound:
    """The lowest bound that prices give, from these prices on; one below `least` is low enough.

    Kelley's cutting planes: each decoder that makes a bound says what the bound is at least at any prices, and a linear
    program finds the prices where all that are known say least.
    """
    best = bound_at(options, layers, prices)
    if not np.isfinite(best.weights):
        return best
    found, cuts, spare = best, [], []  # a decoder's weights, and what it leaves of each limit
    highest = 4 * best.weights
    for _ in range(ROUNDS):
        if best.weights < least:
            break
        level = int(found.levels.argmax())
        chosen = decoder_at(options, layers, found.prices, level)
        ends = sum(options.ends[role][:, place] for role, place in enumerate(chosen.tolist()))
        cuts.append(float(options.weights[chosen].sum()))
        spare.append(1 - options.use[:, chosen].sum(axis=1) - ends - options.reserve[:, level])
        rows = np.hstack([np.array(spare), -np.ones((len(cuts), 1))])
        limits = [(0, highest)] * len(prices) + [(None, None)]
        answer = linprog(np.append(np.zeros(len(prices)), 1.0), A_ub=rows, b_ub=-np.array(cuts), bounds=limits)
        if answer.status != OPTIMAL or best.weights - answer.fun <= CLOSE * (best.weights - least):
            break
        found = bound_at(options, layers, np.maximum(answer.x[:-1], 0.0))
        if found.weights < best.weights:
            best = found
    return best
