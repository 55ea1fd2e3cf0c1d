"""The best decoder of a space, with a proof: branch and bound over widths, with integer programs on scipy's HiGHS.

Widths never shrink and grow by a limited factor, so there are only hundreds of sequences, which are enumerated. A
Lagrangian relaxation bounds the score of each sequence. In the order of falling bounds an integer program chooses
ratio, depth and sharing of the blocks, until no remaining bound exceeds the best known score. Constraints are added
lazily. The paper searches by evolution only.
"""

import math
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp, minimize

from merino_edge.design import by_depth
from merino_edge.design.program import ROUNDING, Answer, Program, Solution, SolverError, smallest_choice
from merino_edge.prediction.limits import within

SLACK = 2e-6  # twice HiGHS's feasibility tolerance: the limit is lowered by it where a solution exceeds the limit
NEAR = 0.02  # of the highest bound: options that lower it by less are tried first, for a good first decoder
OPTIMAL, INFEASIBLE = 0, 2  # milp's status; 1, 3 and 4 (a limit, unbounded, other) prove nothing


def improve(program: Program, floor: float = -math.inf) -> Answer:
    """The best decoder if it scores more than `floor`. Deterministic. A high floor prunes most of the work.

    Lazy constraints: solve without constraints, add the one that the result breaks most, repeat. An optimum under some
    constraints that meets the others is the optimum under all. With fewer constraints more options are dominated
    (`undominated`), so the programs stay small.
    """
    if program.law:
        return by_depth.improve(program, floor)
    rows: list[int] = []
    limit = 1.0
    while True:
        answer = solve_rows(program.under(rows), limit, floor)
        if answer.solution is None:
            return answer
        share = program.evaluate(answer.solution.choice)[1]
        broken = [row for row in np.argsort(-share) if not within(share[row], 1.0)]
        if not broken:
            return answer
        if broken[0] in rows:
            limit -= SLACK
        else:
            rows = sorted([*rows, int(broken[0])])


class Outlook(NamedTuple):
    """An estimate before a program is solved: programs are solved in the order of falling `promise`; no decoder scores
    more than `bound`."""

    promise: float
    bound: float


def outlook(program: Program) -> Outlook:
    """By the relaxation only, in a tenth of the time of the optimum. Under the measured law solving with a floor takes
    hardly more time, so `promise` is the score of the best uniform decoder."""
    if program.law:
        return Outlook(max(each.score for each in by_depth.plain(program)), math.inf)
    sequences = width_sequences(program)
    bounds, _ = upper_bounds(program, sequences, 1 - fixed_shares(program, sequences))
    return Outlook(float(bounds.max()), float(bounds.max()))


def solve_rows(program: Program, limit: float, floor: float) -> Answer:
    """Branch and bound over sequences of widths, best bound first; each constraint's share at most `limit`."""
    keep = undominated(program)
    small = program.subset(keep)
    sequences = width_sequences(small)  # [S, blocks]
    left = limit - fixed_shares(small, sequences)  # [S, R]
    bounds, loss = upper_bounds(small, sequences, left)  # [S], [O']
    start = smallest_choice(program)
    known, _ = program.evaluate(start)
    best: Solution | None = Solution(start, known)
    if known <= floor * (1 + ROUNDING):
        best, known = None, floor
    unsolved = -math.inf  # the highest bound of sequences that HiGHS failed on
    for rank, index in enumerate(np.argsort(-bounds, kind="stable")):
        if bounds[index] <= known * (1 + ROUNDING):
            break
        for share in (math.inf,) if rank else (NEAR, math.inf):
            spare = bounds[index] - known * (1 + ROUNDING)  # no better decoder has an option of a larger loss
            options = np.flatnonzero(loss <= min(spare, share * bounds[index]))
            try:
                picked, failed = solve_sequence(small, options, sequences[index], left[index], known), False
            except SolverError:
                picked, failed = None, True
            if picked is not None:
                solution = program.solution([int(keep[option]) for option in picked])
                if solution.score > known * (1 + ROUNDING):  # HiGHS meets its floor within a tolerance only
                    best, known = solution, solution.score
            if spare <= share * bounds[index]:
                break
        unsolved = max(unsolved, float(bounds[index])) if failed else unsolved
    return Answer(best, max(known, unsolved))


def undominated(program: Program) -> np.ndarray:
    """Options that no other of the same width dominates in score and every constraint. [O']

    Exact: neighbors depend on an option's width only, so the better one can always replace it.
    """
    keep: list[int] = []
    costs = np.concatenate([program.use, program.peak])  # [2R, O]
    for width in np.unique(program.width):
        members = np.flatnonzero(program.width == width)
        ordered = members[np.argsort(-program.score[members], kind="stable")]
        kept, count = np.empty((len(ordered), len(costs))), 0  # costs of the options kept so far
        for index, own in zip(ordered.tolist(), costs[:, ordered].T, strict=True):
            if not (kept[:count] <= own).all(axis=1).any():
                kept[count], count = own, count + 1
                keep.append(index)
    return np.array(sorted(keep))


def width_sequences(program: Program) -> np.ndarray:
    """Every allowed sequence of width indices. [S, blocks]"""
    sequences: list[tuple[int, ...]] = []
    for first, allowed in enumerate(program.allowed):
        reachable = np.flatnonzero(allowed).tolist()
        sequences += [(first, *rest) for rest in combinations_with_replacement(reachable, program.blocks - 1)]
    return np.array(sequences)


def fixed_shares(program: Program, sequences: np.ndarray) -> np.ndarray:
    """Shares that depend on the widths only: projections, embedding, head. [S, R]"""
    shares = program.ends[:, sequences[:, 0], sequences[:, -1]]  # [R, S]
    for before, after in zip(sequences.T, sequences.T[1:], strict=False):
        shares = shares + program.step[:, before, after]
    return shares.T


def upper_bounds(program: Program, sequences: np.ndarray, left: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(bounds [S], loss [O]) by Lagrangian relaxation: constraints become prices.

    No decoder of a sequence's widths scores more than its bound, and no decoder with an option more than the bound
    minus the option's loss. Any prices give a bound; Nelder-Mead minimizes the largest one. A peak is relaxed to the
    mean over the blocks.
    """
    use = program.use + program.peak / program.blocks  # [R, O]
    members = [np.flatnonzero(program.width == width) for width in range(len(program.allowed))]

    def bounds(prices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        reduced = program.score - prices @ use  # [O]
        best = np.array([reduced[member].max(initial=-np.inf) for member in members])  # [W]
        most = np.where((left >= 0).all(axis=1), best[sequences].sum(axis=1) + left @ prices, -np.inf)
        return most, best[program.width] - reduced

    if not program.constraints:
        return bounds(np.zeros(0))
    unit = float(program.score.max()) * program.blocks
    start = np.full(len(program.constraints), 0.5)
    optimized = minimize(
        lambda prices: bounds(np.abs(prices) * unit)[0].max(), start, method="Nelder-Mead", options={"maxiter": 400}
    )
    return bounds(np.abs(optimized.x) * unit)


def solve_sequence(
    program: Program, among: np.ndarray, widths: np.ndarray, left: np.ndarray, known: float
) -> list[int] | None:
    """The best options out of `among` for given widths that score more than `known`; None where there are none.

    An integer program with one binary per block and option. Raises SolverError.
    """
    choices = [among[program.width[among] == width] for width in widths]
    if not all(len(members) for members in choices):
        return None
    options = np.concatenate(choices)
    block = np.repeat(np.arange(len(choices)), [len(members) for members in choices])
    rows, blocks = len(program.constraints), len(choices)
    unit = float(program.score.max()) or 1.0
    size = len(options) + rows  # binaries, then the peak of each constraint
    score = np.concatenate([program.score[options], np.zeros(rows)])
    one = np.pad((block == np.arange(blocks)[:, None]).astype(float), ((0, 0), (0, rows)))
    use = np.concatenate([program.use[:, options], np.eye(rows)], axis=1)
    peaks = [
        np.concatenate([np.where(block == index, program.peak[row][options], 0), -np.eye(rows)[row]])
        for row in range(rows)
        for index in range(blocks)
    ]
    constraints = [
        LinearConstraint(one, 1, 1),
        LinearConstraint(np.concatenate([use, np.reshape(peaks, (-1, size))]), -np.inf, [*left, *[0] * len(peaks)]),
        LinearConstraint(score[None] / unit, (known / unit) * (1 + ROUNDING), np.inf),
        *order_constraint(widths, choices, size),
    ]
    binary = np.arange(size) < len(options)
    bounds = Bounds(0, np.where(binary, 1, np.inf))

    def run(integrality: np.ndarray | None, *, presolve: bool = True) -> OptimizeResult:
        return milp(
            -score / unit, integrality=integrality, bounds=bounds, constraints=constraints,
            options={"mip_rel_gap": 0.0, "presolve": presolve},
        )  # fmt: skip

    # The linear relaxation first: it proves most sequences infeasible, much faster than the integer program. HiGHS's
    # presolve calls some integer programs infeasible that have an optimum, so nothing is proved by it.
    if run(None, presolve=False).status == INFEASIBLE:
        return None
    result = run(binary)
    if result.status != OPTIMAL:
        result = run(binary, presolve=False)
    if result.status == INFEASIBLE:
        return None
    if result.status != OPTIMAL:
        raise SolverError
    return [int(options[block == index][result.x[: len(options)][block == index].argmax()]) for index in range(blocks)]


def order_constraint(widths: np.ndarray, choices: list[np.ndarray], size: int) -> list[LinearConstraint]:
    """Symmetry breaking: neighboring blocks of one width stand in the order of their option numbers."""
    starts = np.cumsum([0, *(len(members) for members in choices)])
    rows = []
    for index in np.flatnonzero(np.diff(widths) == 0):
        row = np.zeros(size)
        row[starts[index] : starts[index + 1]] = np.arange(len(choices[index]))
        row[starts[index + 1] : starts[index + 2]] = -np.arange(len(choices[index + 1]))
        rows.append(row)
    return [LinearConstraint(np.stack(rows), -np.inf, 0)] if rows else []
