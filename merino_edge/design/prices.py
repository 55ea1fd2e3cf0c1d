"""Upper bounds on the effective weights of decoders of D layers by Lagrangian relaxation: prices on the limits.

    weights <= sum_i (w_i - prices use_i) + prices (1 - ends - peak)      for any prices >= 0 and each decoder that fits

The maximum of the right side over all decoders of D layers is exact and cheap: for each number of layers only the best
option matters, and dynamic programming over the blocks distributes the layers. A decoder's worst activations have one
of a few levels; at each level the options above it are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog

from merino_edge.design.program import Program

UNIT = 1e6  # effective weights are in millions, to suit HiGHS's tolerances
ROUNDS = 40  # of cutting planes, for one number of layers
CLOSE = 0.05  # of a bound's distance from the weights to exceed: allowed slack of a bound
OPTIMAL = 0  # scipy's status


@dataclass(frozen=True)
class Options:
    """Some of a program's options, sorted by layers and level of activations.

    Attributes:
        index: in the program. [O]
        layers, level, width: number of layers, level of activations, index of the width. [O]
        unit, weights: of one layer, and of all; in millions. [O]
        use: share of each limit, the same for each role. [R, O]
        ends: share of embedding and head in each role: the first block, the blocks between, the last block. [roles]
        reserve: share of each level of activations. [R, K]
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
        """All options of a program."""
        _, representative, level = np.unique(program.peak.sum(axis=0), return_index=True, return_inverse=True)
        reserve = program.peak[:, representative]
        assert (np.diff(reserve, axis=1) >= 0).all(), "one amount is the peak of each limit that has one"
        # `encode` makes ends[r, first, last] a sum of the first block's part and the last block's part
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
        """The options at these indices, or of this mask."""
        return replace(
            self, index=self.index[which], layers=self.layers[which], level=self.level[which], width=self.width[which],
            unit=self.unit[which], weights=self.weights[which], use=self.use[:, which],
            ends=tuple(ends[:, which] for ends in self.ends),
        )  # fmt: skip

    def at_level(self, level: int) -> "Options":
        """The options with only this level of activations reserved."""
        return replace(self, level=np.zeros_like(self.level), reserve=self.reserve[:, level : level + 1])

    @cached_property
    def groups(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Runs of options of equal layers and level: their first indices, layers and levels."""
        starts = np.flatnonzero(np.diff(self.layers, prepend=-1) | np.diff(self.level, prepend=-1))
        return starts, self.layers[starts], self.level[starts]

    def values(self, prices: np.ndarray) -> list[np.ndarray]:
        """Value of each option in each role at these prices: weights minus the cost of its shares. [roles][O]"""
        value = self.weights - prices @ self.use
        values = [value - prices @ ends for ends in self.ends]
        if self.first is not None:
            values[0] = np.where(self.width == self.first, values[0], -np.inf)
        return values

    def tables(self, values: list[np.ndarray]) -> list[np.ndarray]:
        """The best value of an option of each number of layers and of at most each level. [roles][L + 1, K]"""
        starts, layers, level = self.groups
        tables = []
        for value in values:
            table = np.full((int(self.layers[-1]) + 1, self.reserve.shape[1]), -np.inf)
            table[layers, level] = np.maximum.reduceat(value, starts)
            tables.append(np.maximum.accumulate(table, axis=1))
        return tables


class Bound(NamedTuple):
    """No decoder of a number of layers has more weights than `levels` of its level of activations. [K], in millions"""

    prices: np.ndarray
    levels: np.ndarray

    @property
    def weights(self) -> float:
        return float(self.levels.max())


def sums(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Max-plus convolution: the best sum of one row of each table, by the sum of the rows' numbers."""
    best = np.full((len(first) + len(second) - 1, first.shape[1]), -np.inf)
    for number in np.flatnonzero(first.max(axis=1) > -np.inf).tolist():
        part = best[number : number + len(second)]
        np.maximum(part, first[number] + second, out=part)
    return best


def joined(tables: Sequence[np.ndarray]) -> np.ndarray:
    """The best sums over all roles. [layers + 1, K]"""
    best = tables[0]
    for table in tables[1:]:
        best = sums(best, table)
    return best


def bound_at(options: Options, layers: int, prices: np.ndarray) -> Bound:
    """The bound at these prices."""
    if not len(options.index):
        return Bound(prices, np.full(options.reserve.shape[1], -np.inf))
    tables = options.tables(options.values(prices))
    half = (len(tables) + 1) // 2
    best = best_of_layers(joined(tables[:half]), joined(tables[half:]) if half < len(tables) else None, layers)
    return Bound(prices, best + prices.sum() - prices @ options.reserve)


def best_of_layers(first: np.ndarray, second: np.ndarray | None, layers: int) -> np.ndarray:
    """The best sum for `layers` layers in all. [K]"""
    if second is None:
        return first[layers] if layers < len(first) else np.full(first.shape[1], -np.inf)
    low, high = max(0, layers - len(second) + 1), min(layers, len(first) - 1)
    if low > high:
        return np.full(first.shape[1], -np.inf)
    return (first[low : high + 1] + second[layers - high : layers - low + 1][::-1]).max(axis=0)


def decoder_at(options: Options, layers: int, prices: np.ndarray, level: int) -> np.ndarray:
    """Indices of the options of the decoder that attains the bound. [roles]"""
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
    """The lowest bound over all prices, beginning at `prices`; stops at a bound below `least`.

    Kelley's cutting planes: each decoder that attains a bound is a lower bound at any prices, linear in them, and a
    linear program minimizes the maximum of the known ones.
    """
    best = bound_at(options, layers, prices)
    if not np.isfinite(best.weights):
        return best
    latest, cuts, spare = best, [], []  # a decoder's weights, and the rest of each limit
    highest = 4 * best.weights
    for _ in range(ROUNDS):
        if best.weights < least:
            break
        level = int(latest.levels.argmax())
        chosen = decoder_at(options, layers, latest.prices, level)
        ends = sum(options.ends[role][:, place] for role, place in enumerate(chosen.tolist()))
        cuts.append(float(options.weights[chosen].sum()))
        spare.append(1 - options.use[:, chosen].sum(axis=1) - ends - options.reserve[:, level])
        rows = np.hstack([np.array(spare), -np.ones((len(cuts), 1))])
        limits = [(0, highest)] * len(prices) + [(None, None)]
        answer = linprog(np.append(np.zeros(len(prices)), 1.0), A_ub=rows, b_ub=-np.array(cuts), bounds=limits)
        if answer.status != OPTIMAL or best.weights - answer.fun <= CLOSE * (best.weights - least):
            break
        latest = bound_at(options, layers, np.maximum(answer.x[:-1], 0.0))
        if latest.weights < best.weights:
            best = latest
    return best
