"""The best decoder under the measured law, with a proof: one integer program for each number of layers.

For a fixed number of layers the law's score rises with the effective weights, which are a sum over the blocks, so the
optimum for D layers is the optimum of an integer linear program, and the optimum of all is the best of at most 48. A
linear relaxation bounds each D. Programs are solved in the order of falling bounds until none left exceeds the best
known score; reduced costs of the relaxation leave out options that no better decoder has. HiGHS by scipy.

What is not linear is branched on: the activations of the worst block, and that no layer is far from the mean one.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array

from merino_edge.design.law import EVEN, MeasuredScoring, even, law_score, least_weights
from merino_edge.design.program import ROUNDING, Answer, Program, Solution, SolverError, smallest_choice
from merino_edge.prediction.limits import within

SLACK = 2e-6  # twice HiGHS's feasibility tolerance: limits are lowered by it where a solution oversteps one
UNIT = 1e6  # effective weights are counted in millions, so that HiGHS's tolerances fit
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
        loss: what each option of the node costs that bound where a decoder has it. [O']
        first_loss: the same of each first width. [W]
        prices: of the rows of `Rows.upper` and of `Rows.equal`.
    """

    weights: float
    loss: np.ndarray
    first_loss: np.ndarray
    prices: tuple[np.ndarray, np.ndarray]


Item = tuple[float, int, Node, Relaxed | None]  # minus the bound on the score, a counter, the node, its relaxation


def improve(program: Program, floor: float = -math.inf) -> Answer:
    """The best decoder if it scores more than `floor`. Deterministic."""
    rows = Rows.of(program)
    best: Solution | None = None
    known = floor
    for found in (program.solution(smallest_choice(program)), *uniform(program)):
        if found.score > known * (1 + ROUNDING) or (best is None and floor == -math.inf):
            best, known = found, found.score
    unsolved = -math.inf
    order = count()
    heap: list[Item] = []

    def push(node: Node, weights: float, relaxed: Relaxed | None) -> None:
        bound = score_of(program, node, weights)
        if bound > known * (1 + ROUNDING):
            heappush(heap, (-bound, next(order), node, relaxed))

    for node in roots(program, known):
        push(node, program.blocks * float(program.score.max()), None)
    priced_all = False  # whether the prices of one relaxation have bounded the other numbers of layers
    while heap:
        bound, _, node, relaxed = heappop(heap)
        if -bound <= known * (1 + ROUNDING):
            break
        if relaxed is None:
            relaxed = relax(program, rows, node)
            if relaxed:
                push(node, relaxed.weights, relaxed)
            if relaxed and not priced_all:
                priced_all, waiting = True, [item[2] for item in heap if item[3] is None]
                heap[:] = [item for item in heap if item[3]]
                for other in waiting:
                    push(other, priced(program, rows, other, relaxed.prices), None)
        elif node.first is None:
            mean = relaxed.weights / node.layers
            node = replace(node, among=node.among[EVEN * program.unit[node.among] <= mean * (1 + SLACK)])
            for width in np.unique(program.width[node.among]).tolist():
                push(replace(node, first=width), relaxed.weights - relaxed.first_loss[width], None)
        else:
            try:
                choice = solve(program, rows, node, relaxed, known)
            except SolverError:
                unsolved = max(unsolved, -bound)
                continue
            parts = branches(program, node, choice) if choice else []
            for part in parts:
                push(part, relaxed.weights, None)
            if choice and not parts:
                found = program.solution(choice)
                if found.score > known * (1 + ROUNDING):  # HiGHS keeps its floor within a tolerance only
                    best, known = found, found.score
    return Answer(best, max(known, unsolved))


def upper_bound(program: Program) -> float:
    """A score that no decoder exceeds, by the relaxations alone."""
    rows = Rows.of(program)
    known = max((found.score for found in uniform(program)), default=-math.inf)
    bound, left = known, list(roots(program, known))
    middle = len(left) // 3
    while left:
        node = left.pop(min(middle, len(left) - 1))
        relaxed = relax(program, rows, node)
        if relaxed is None:
            continue
        bound = max(bound, score_of(program, node, relaxed.weights))
        left = [
            each for each in left
            if score_of(program, each, priced(program, rows, each, relaxed.prices)) > bound
        ]  # fmt: skip
    return bound


def score_of(program: Program, node: Node, weights: float) -> float:
    """The score that no decoder of the node exceeds, none of which has more effective weights than `weights`."""
    weights = min(weights, node.most)
    return law_score(weights, node.layers, law_of(program)) if weights > 0 else -math.inf


def law_of(program: Program) -> MeasuredScoring:
    assert program.law
    return program.law


def roots(program: Program, known: float) -> Iterator[Node]:
    """All decoders of each number of layers, without options whose layers are too small beside those of a decoder that
    is better than the known one."""
    for layers in range(program.blocks * int(program.layers.min()), program.blocks * int(program.layers.max()) + 1):
        among = np.arange(len(program.options))
        if known > 0:
            least = least_weights(known, layers, law_of(program))
            among = np.flatnonzero(program.unit >= EVEN * least / layers)
        if len(among):
            yield Node(layers, among, program.peak[:, among].min(axis=1))


def priced(program: Program, rows: "Rows", node: Node, prices: tuple[np.ndarray, np.ndarray]) -> float:
    """Effective weights that no decoder of the node exceeds, by the prices of another node's relaxation."""
    upper, equal = rows.right(program, node)
    columns = rows.columns(program, node.among)
    score = np.concatenate([program.score[node.among] / UNIT, np.zeros(len(columns) - len(node.among))])
    excess = score + prices[0] @ rows.upper[:, columns] + prices[1] @ rows.equal[:, columns]
    above = program.blocks * max(0.0, excess[: len(node.among)].max()) + 2 * max(0.0, excess[len(node.among) :].max())
    return (-(prices[0] @ upper) - prices[1] @ equal + above) * UNIT


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
    """By column generation: unshared options between the fewest and the most layers are mixtures of these two, and
    shared ones rarely help, so both are priced and seldom enter. None where the relaxation has no solution."""
    score = program.score[node.among] / UNIT
    depth = program.layers[node.among]
    inside = np.flatnonzero(~program.shared[node.among] & ((depth == depth.min()) | (depth == depth.max())))
    upper, equal = rows.right(program, node)
    while True:
        columns = rows.columns(program, node.among[inside])
        cost = np.concatenate([-score[inside], np.zeros(len(columns) - len(inside))])
        found = linprog(
            cost, A_ub=rows.upper[:, columns], b_ub=upper, A_eq=rows.equal[:, columns], b_eq=equal, method="highs",
            bounds=[(0, None)] * len(inside) + [(0, high) for high in rows.ends(program, node)],
        )  # fmt: skip
        if found.status == INFEASIBLE and len(inside) < len(node.among):
            inside = np.arange(len(node.among))
            continue
        if found.status != OPTIMAL:
            return None
        paid = found.ineqlin.marginals @ rows.upper[:, node.among] + found.eqlin.marginals @ rows.equal[:, node.among]
        loss = -score - paid  # reduced costs, [O']
        missing = np.setdiff1d(np.flatnonzero(loss < -1e-7), inside)
        if not len(missing):
            # prices of a tolerance below 0 could raise the bound by as much for each block
            slack = program.blocks * max(0.0, -float(loss.min()))
            prices = found.ineqlin.marginals, found.eqlin.marginals
            first = slice(len(program.options), len(program.options) + len(program.allowed))
            ends = -(prices[0] @ rows.upper[:, first] + prices[1] @ rows.equal[:, first])
            loss, ends = np.maximum(loss, 0.0) * UNIT, np.maximum(ends, 0.0) * UNIT
            return Relaxed((-found.fun + slack) * UNIT, loss, ends, prices)
        inside = np.union1d(inside, missing)


def solve(program: Program, rows: Rows, node: Node, relaxed: Relaxed, known: float) -> list[int] | None:
    """The decoder of most effective weights in the node that scores more than `known`; None where there is none.

    Raises SolverError where HiGHS fails.
    """
    least = least_weights(known, node.layers, law_of(program)) if known > 0 else 0.0
    least = max(least, node.least * (1 - SLACK))
    weights = min(relaxed.weights, node.most)
    if weights <= least * (1 + ROUNDING):
        return None
    fits = EVEN * program.unit[node.among] <= weights / node.layers * (1 + SLACK)
    among = node.among[fits & (relaxed.loss <= relaxed.weights - least * (1 + ROUNDING))]
    found = solve_columns(program, rows, node, among, least) if len(among) else None
    return found and ordered(program, *found)


def solve_columns(
    program: Program, rows: Rows, node: Node, among: np.ndarray, least: float
) -> tuple[list[int], int, int] | None:
    """The integer program -> options, first width, last width; None where it has no solution. Raises SolverError.

    Columns: the layers and the blocks of each unshared shape, each shared option, the two widths, and whether the worst
    block's activations reach each of a few levels, between which `branches` decides. Layers as integers
    leave out the many ways to cut one run of equal layers into blocks, which binaries of options would try.
    """
    shapes = list(dict.fromkeys(program.shape[among[~program.shared[among]]].tolist()))
    shared = among[program.shared[among]]
    kinds, widths = len(shapes), rows.upper.shape[1] - len(program.options)
    one = np.array([program.place[shape, 1] for shape in shapes], int)
    deepest = int(program.layers.max())
    two = np.array([program.place[shape, deepest] for shape in shapes], int)
    step = (rows.upper[:, two] - rows.upper[:, one]) / max(1, deepest - 1)  # of one more layer in a block
    ends = rows.upper[:, len(program.options) :]
    upper = np.concatenate([step, rows.upper[:, one] - step, rows.upper[:, shared], ends], axis=1)
    more = (rows.equal[:, two] - rows.equal[:, one]) / max(1, deepest - 1)
    equal = np.concatenate(
        [more, rows.equal[:, one] - more, rows.equal[:, shared], rows.equal[:, len(program.options) :]], axis=1
    )
    reached, reserved = levels(program, node, np.concatenate([one, shared]))  # [K, kinds + shared], [R, K]
    count = len(reached)
    gap = np.zeros((len(upper) - len(reserved), count))
    upper = np.concatenate([upper, np.concatenate([reserved, gap])], axis=1)
    equal = np.concatenate([equal, np.zeros((len(equal), count))], axis=1)
    peaks = np.concatenate(
        [np.zeros((count, kinds)), reached, np.zeros((count, widths)), -program.blocks * np.eye(count)], axis=1
    )
    eye, none = np.eye(kinds), np.zeros((kinds, len(shared) + widths + count))
    depth = np.concatenate([
        np.concatenate([eye, -deepest * eye, none], axis=1), np.concatenate([-eye, eye, none], axis=1), peaks,
    ])  # fmt: skip
    score = np.concatenate([program.unit[one], np.zeros(kinds), program.score[shared], np.zeros(widths + count)]) / UNIT
    right, exact = rows.right(program, node)
    most = min(node.most / UNIT, float(score.max(initial=0)) * node.layers * 2)
    constraints = [
        LinearConstraint(csr_array(np.concatenate([upper, depth])), -np.inf, [*right, *[0] * len(depth)]),
        LinearConstraint(csr_array(equal), exact, exact),
        LinearConstraint(score[None], least / UNIT * (1 + ROUNDING), most),
    ]
    highest = np.concatenate([
        np.full(kinds, deepest * program.blocks), np.full(kinds + len(shared), program.blocks),
        rows.ends(program, node), np.ones(count),
    ])  # fmt: skip
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
    counts = np.round(found.x).astype(int)
    options = [int(o) for o, times in zip(shared, counts[2 * kinds :], strict=False) for _ in range(times)]
    for shape, layers, blocks in zip(shapes, counts, counts[kinds:], strict=False):
        equal_layers = cut(program, shape, int(layers), int(blocks))
        assert equal_layers is not None, "the integer program keeps each block's depth within the space"
        options += equal_layers
    first, last = counts[2 * kinds + len(shared) :][:widths].reshape(2, -1).argmax(axis=1)
    return options, int(first), int(last)


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


def branches(program: Program, node: Node, choice: list[int]) -> list[Node]:
    """Where the decoder breaks what the integer program does not know, the parts that hold all others; else none."""
    share = program.evaluate(choice)[1]
    for row in np.flatnonzero([not within(each, 1.0) for each in share]):
        worst = float(program.peak[row, choice].max())
        if worst <= node.peak[row]:  # HiGHS's tolerance
            return [replace(node, limit=node.limit - SLACK)]
        reserved = node.peak.copy()
        reserved[row] = worst
        smaller = node.among[program.peak[row, node.among] < worst]
        parts = [replace(node, peak=reserved)]
        return parts + ([replace(node, among=smaller)] if len(smaller) else [])
    weights, units = float(program.score[choice].sum()), program.unit[choice]
    if even(weights, node.layers, units):
        return []
    within_node = program.unit[node.among]
    if within(EVEN * weights / node.layers, units.min()):  # the largest layer is too large
        others = node.among[within_node < units.max()]
        kept = replace(node, least=max(node.least, EVEN * float(units.max()) * node.layers))
    else:
        others = node.among[within_node > units.min()]
        kept = replace(node, most=min(node.most, float(units.min()) * node.layers / EVEN))
    return [kept, *([replace(node, among=others)] if len(others) else [])]


def uniform(program: Program) -> Iterator[Solution]:
    """Decoders of one width, FFN ratio and number of KV heads, the best for each number of layers: a first floor."""
    shapes = sorted({shape for shape, _ in program.place})
    for layers in range(program.blocks, program.blocks * int(program.layers.max()) + 1):
        best: list[int] | None = None
        most = 0.0  # for a fixed number of layers the score rises with the weights
        for shape in shapes:
            choice = cut(program, shape, layers, program.blocks)
            weights = float(program.score[choice].sum()) if choice else 0.0
            if choice and weights > most and program.fits(choice):
                best, most = choice, weights
        if best:
            yield program.solution(best)


def cut(program: Program, shape: int, layers: int, blocks: int) -> list[int] | None:
    """The options of `layers` equal layers in blocks of nearly equal depth; None where the space has no such block."""
    base, more = divmod(layers, max(1, blocks))
    found = [program.place.get((shape, base + (block < more))) for block in range(blocks)]
    return None if None in found else [option for option in found if option is not None]
