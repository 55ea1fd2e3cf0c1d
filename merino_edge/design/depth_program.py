"""The integer linear program of decoders of D layers, its relaxation, and its solution by HiGHS (scipy).

    maximise    sum_i w_i x_i                       effective weights
    subject to  sum_i x_i = N,  sum_i L_i x_i = D   blocks and layers
                sum_i c_ri x_i + ends_r + peak_r <= 1   each limit r, in shares of it
                x_i in 0, 1, 2, ...                 how often option i stands in the decoder

An option is one block (E, R, L, KV heads, shared or not). `ends_r`: what embedding and head take, by the widths of the
first and the last block. `peak_r`: activations of the worst block. The order of the blocks between changes nothing,
since a change of width pads or drops channels. Left to others: which D, and that layers are near equal (`by_depth`).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array

from merino_edge.design.program import ROUNDING, Program, SolverError
from merino_edge.design.uniform import cut

UNIT = 1e6  # effective weights are counted in millions, so that HiGHS's tolerances fit
EXCESS = 1e5  # millions of weights that the relaxation pays for each limit overstepped by its whole
LEVELS = 24  # of activations, in one integer program
OPTIMAL, INFEASIBLE = 0, 2  # scipy's status


@dataclass(frozen=True)
class Node:
    """A part of the decoders of D layers: of options `among`, of `least` to `most` effective weights, where the worst
    block's activations are counted as `peak` [R], and each limit is `limit`."""

    layers: int
    among: np.ndarray  # [O'], indices of options
    peak: np.ndarray
    first: int | None = None  # index of the first block's width; None: any
    least: float = 0.0
    most: float = math.inf
    limit: float = 1.0


class Relaxed(NamedTuple):
    """The linear relaxation of a node.

    Attributes:
        weights: effective weights that no decoder of the node exceeds.
        loss: what each option of the node costs that bound where a decoder has it (its reduced cost). [O']
        first_loss: the same of each first width. [W]
        prices: of the rows of `Rows.upper` and of `Rows.equal`.
    """

    weights: float
    loss: np.ndarray
    first_loss: np.ndarray
    prices: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Rows:
    """The rows of the linear program, the same for each number of layers. Columns: how often each option stands in the
    decoder [O], whether the first block has a width [W], whether the last has it [W]."""

    upper: np.ndarray  # [rows, O + 2 W]: limits; limits with the blocks' mean activations, which the worst exceed; <= 0
    equal: np.ndarray  # [4, O + 2 W]: layers, blocks, one first width, one last width

    @staticmethod
    def of(program: Program) -> "Rows":
        options, widths = len(program.options), len(program.allowed)
        of_width = (program.width == np.arange(widths)[:, None]).astype(float)  # [W, O]
        # ends[r, first, last] = first's part + last's part, which `encode` sees to
        first = program.ends[:, :, 0]
        last = program.ends[:, 0, :] - program.ends[:, :1, 0]
        limits = np.concatenate([program.use, first, last], axis=1)
        mean = np.concatenate([program.use + program.peak / program.blocks, first, last], axis=1)
        eye = np.eye(widths)
        ends = np.concatenate([-of_width, eye, eye], axis=1)
        if program.blocks == 1:
            ends = np.concatenate([np.concatenate([-of_width, eye, 0 * eye], axis=1),
                                   np.concatenate([-of_width, 0 * eye, eye], axis=1)])  # fmt: skip
        growth = np.concatenate([of_width, -program.blocks * program.allowed.T.astype(float), 0 * eye], axis=1)
        zeros, ones = np.zeros(widths), np.ones(widths)
        equal = np.stack([
            np.concatenate([program.layers, zeros, zeros]), np.concatenate([np.ones(options), zeros, zeros]),
            np.concatenate([np.zeros(options), ones, zeros]), np.concatenate([np.zeros(options), zeros, ones]),
        ])  # fmt: skip
        return Rows(np.concatenate([limits, mean, ends, growth]), equal)

    def columns(self, program: Program, among: np.ndarray) -> np.ndarray:
        """Of these options, and of the widths."""
        return np.concatenate([among, np.arange(len(program.options), self.upper.shape[1])])

    def right(self, program: Program, node: Node) -> tuple[np.ndarray, np.ndarray]:
        upper = np.zeros(len(self.upper))
        upper[: len(program.use)] = node.limit - node.peak
        upper[len(program.use) : 2 * len(program.use)] = node.limit
        return upper, np.array([node.layers, program.blocks, 1, 1], float)

    def ends(self, program: Program, node: Node) -> np.ndarray:
        """Upper bounds of the columns of widths."""
        highest = np.ones(2 * len(program.allowed))
        if node.first is not None:
            highest[: len(program.allowed)] = np.arange(len(program.allowed)) == node.first
        return highest


def relax(program: Program, rows: Rows, node: Node) -> Relaxed | None:
    """The linear relaxation by column generation; None where not even the widths can be met.

    Unshared options between the fewest and the most layers are mixtures of these two, and shared ones rarely help, so
    both are priced and seldom enter. A column that oversteps all limits at a high price keeps each step feasible:
    of a node without decoders the bound falls below 0, and its prices show the same of others.
    """
    if not len(node.among):
        return None
    score, depth = program.score[node.among] / UNIT, program.layers[node.among]
    inside = np.flatnonzero(~program.shared[node.among] & ((depth == depth.min()) | (depth == depth.max())))
    upper, equal = rows.right(program, node)
    excess = -(np.arange(len(upper)) < 2 * len(program.use)).astype(float)[:, None]
    ends = [(0, high) for high in rows.ends(program, node)]
    while True:
        columns = rows.columns(program, node.among[inside])
        found = linprog(
            np.concatenate([-score[inside], np.zeros(len(ends)), [EXCESS]]),
            A_ub=np.hstack([rows.upper[:, columns], excess]), b_ub=upper,
            A_eq=np.hstack([rows.equal[:, columns], np.zeros((len(equal), 1))]), b_eq=equal,
            bounds=[(0, None)] * len(inside) + ends + [(0, None)], method="highs",
        )  # fmt: skip
        if found.status == INFEASIBLE and len(inside) < len(node.among):
            inside = np.arange(len(node.among))
            continue
        if found.status != OPTIMAL:
            return None
        prices = found.ineqlin.marginals, found.eqlin.marginals
        loss = -score - prices[0] @ rows.upper[:, node.among] - prices[1] @ rows.equal[:, node.among]
        missing = np.setdiff1d(np.flatnonzero(loss < -1e-7), inside)
        if len(missing):
            inside = np.union1d(inside, missing)
            continue
        # prices of a tolerance below 0 could raise the bound by as much for each block
        bound = -found.fun + program.blocks * max(0.0, -float(loss.min()))
        first = slice(len(program.options), len(program.options) + len(program.allowed))
        first_loss = -(prices[0] @ rows.upper[:, first] + prices[1] @ rows.equal[:, first])
        return Relaxed(bound * UNIT, np.maximum(loss, 0.0) * UNIT, np.maximum(first_loss, 0.0) * UNIT, prices)


def priced(program: Program, rows: Rows, node: Node, prices: tuple[np.ndarray, np.ndarray]) -> float:
    """Effective weights that no decoder of the node exceeds, by the prices of another node's relaxation."""
    upper, equal = rows.right(program, node)
    columns = rows.columns(program, node.among)
    score = np.concatenate([program.score[node.among] / UNIT, np.zeros(len(columns) - len(node.among))])
    excess = score + prices[0] @ rows.upper[:, columns] + prices[1] @ rows.equal[:, columns]
    above = program.blocks * max(0.0, excess[: len(node.among)].max()) + 2 * max(0.0, excess[len(node.among) :].max())
    return (-(prices[0] @ upper) - prices[1] @ equal + above) * UNIT


def solve(program: Program, rows: Rows, node: Node, among: np.ndarray, least: float) -> list[int] | None:
    """The decoder of most effective weights, of options `among` and of at least `least`; None where there is none.
    Raises SolverError where HiGHS fails.

    x_i of the unshared options of one shape become two integers: L_s, the layers of that shape, and y_s, the blocks
    that they are cut into. Else each way to cut a run of equal layers into blocks would be tried. (Not where the space
    leaves out a depth.) Columns: L [S], y [S], x of the other options [Z], first and last width [2 W], whether
    activations reach a level [K].
    """
    deepest, ends = int(program.layers.max()), rows.upper.shape[1] - len(program.options)
    runs = ~program.shared[among] & (len(np.unique(program.layers)) == deepest)
    shapes, shared = list(dict.fromkeys(program.shape[among[runs]].tolist())), among[~runs]
    one = np.array([program.place[shape, 1] for shape in shapes], int)
    all_layers = np.array([program.place[shape, deepest] for shape in shapes], int)

    def columns(matrix: np.ndarray) -> list[np.ndarray]:
        """The coefficients of L, y, shared options and widths in these rows."""
        per_layer = (matrix[:, all_layers] - matrix[:, one]) / max(1, deepest - 1)
        return [per_layer, matrix[:, one] - per_layer, matrix[:, shared], matrix[:, len(program.options) :]]

    reached, reserve = levels(program, node, np.concatenate([one, shared]))  # [K, S + Z], [R, K]
    kinds, count = len(shapes), len(reached)
    eye = np.eye(kinds)

    def none(height: int, width: int) -> np.ndarray:
        return np.zeros((height, width))

    inequalities = np.block([
        [*columns(rows.upper), np.vstack([reserve, none(len(rows.upper) - len(reserve), count)])],
        [eye, -deepest * eye, none(kinds, len(shared) + ends + count)],  # L_s <= 12 y_s
        [-eye, eye, none(kinds, len(shared) + ends + count)],  # y_s <= L_s
        [none(count, kinds), reached, none(count, ends), -program.blocks * np.eye(count)],
    ])  # fmt: skip
    right, exact = rows.right(program, node)
    equalities = np.hstack([*columns(rows.equal), none(len(rows.equal), count)])
    score = np.concatenate([program.unit[one], np.zeros(kinds), program.score[shared], np.zeros(ends + count)]) / UNIT
    highest = np.concatenate([
        np.full(kinds, deepest * program.blocks), np.full(kinds + len(shared), program.blocks),
        rows.ends(program, node), np.ones(count),
    ])  # fmt: skip
    constraints = [
        LinearConstraint(csr_array(inequalities), -np.inf, np.pad(right, (0, len(inequalities) - len(right)))),
        LinearConstraint(csr_array(equalities), exact, exact),
        LinearConstraint(score[None], least / UNIT * (1 + ROUNDING), node.most / UNIT),
    ]
    for presolve in (True, False):
        found = milp(
            -score, integrality=np.ones(len(score)), bounds=Bounds(0, highest), constraints=constraints,
            options={"mip_rel_gap": 0.0, "presolve": presolve},
        )  # fmt: skip
        if found.status in (OPTIMAL, INFEASIBLE):
            break
    if found.status == INFEASIBLE:
        return None
    if found.status != OPTIMAL:
        raise SolverError
    layers, blocks, times, widths, _ = np.split(
        np.round(found.x).astype(int), np.cumsum([kinds, kinds, len(shared), ends])
    )
    options = np.repeat(shared, times).tolist()
    for shape, deep, parts in zip(shapes, layers.tolist(), blocks.tolist(), strict=True):
        equal_layers = cut(program, shape, deep, parts)
        assert equal_layers is not None, "the integer program keeps each block's depth within the space"
        options += equal_layers
    first, last = widths.reshape(2, -1).argmax(axis=1)
    return ordered(program, options, int(first), int(last))


def levels(program: Program, node: Node, options: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each limit a few levels of activations above those reserved: which options reach each [K, O'], and by how much
    the limits' reserve grows at it [R, K]."""
    reached, reserved = [], []
    for row, least in enumerate(node.peak):
        above = np.unique(program.peak[row, options])
        above = above[above > least]
        if len(above) > LEVELS:
            above = above[np.linspace(0, len(above) - 1, LEVELS).astype(int)]
        reached += [program.peak[row, options] >= level for level in above]
        growth = np.zeros((len(node.peak), len(above)))
        growth[row] = np.diff(above, prepend=least)
        reserved.append(growth)
    return np.array(reached, float).reshape(-1, len(options)), np.concatenate(reserved, axis=1)


def ordered(program: Program, options: list[int], first: int, last: int) -> list[int]:
    """The blocks by rising width, but for the first and the last, whose widths are given."""
    left = sorted(options, key=lambda option: (program.width[option], option))
    head = next(option for option in left if program.width[option] == first)
    left.remove(head)
    tail = next((option for option in reversed(left) if program.width[option] == last), None)
    if tail is None:
        return [head, *left]
    left.remove(tail)
    return [head, *left, tail]
