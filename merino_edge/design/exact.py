"""The best decoder of a space, with a proof: widths by enumeration, the rest by integer programming on scipy's HiGHS.

Widths that never shrink and grow by a limited factor are few (hundreds of sequences). A Lagrangian relaxation bounds
the score of each; best bound first, HiGHS then chooses ratio, depth and sharing of its blocks, until no sequence left
can beat what is known. Ours (the paper searches by evolution only).
"""

import math
from itertools import combinations_with_replacement

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp, minimize

from merino_edge.design.space import Program, Solution, smallest_choice
from merino_edge.prediction.limits import within

SLACK = 2e-6  # twice HiGHS's feasibility tolerance: taken off the limits if a solution oversteps them by that much
ROUNDING = 1e-9  # relative: a score this much above another is the same


def solve(program: Program) -> Solution:
    """Maximise the score. Deterministic; raises nothing, since `encode` has made sure that a solution exists."""
    found = improve(program, -math.inf)
    assert found is not None
    return found


def improve(program: Program, floor: float) -> Solution | None:
    """The best decoder where it scores more than `floor`, else None; a high floor makes most of the work needless.

    Budgets come in one at a time, as the best decoder without them breaks them: what is best under some of the budgets
    and keeps the others is best under all, and every budget left out makes more options comparable, the program small.
    """
    rows: list[int] = []
    limit = 1.0
    while True:
        found = solve_rows(program.with_budgets(rows), limit, floor)
        if found is None:
            return None
        share = program.evaluate(found.choice)[1]
        broken = [row for row in np.argsort(-share) if not within(share[row], 1.0)]
        if not broken:
            return found
        if broken[0] in rows:
            limit -= SLACK
        else:
            rows = sorted([*rows, int(broken[0])])


def upper_bound(program: Program) -> float:
    """A score that no decoder exceeds, in a tenth of the time that the best one takes."""
    small = program.subset(undominated(program))
    sequences = width_sequences(small)
    return float(upper_bounds(small, sequences, 1 - fixed_shares(small, sequences)).max())


def solve_rows(program: Program, limit: float, floor: float) -> Solution | None:
    """The program as it stands, each budget's share at most `limit`; best first over sequences of widths."""
    keep = undominated(program)
    small = program.subset(keep)
    sequences = width_sequences(small)  # [S, blocks]
    left = limit - fixed_shares(small, sequences)  # [S, R]
    bounds = upper_bounds(small, sequences, left)  # [S]
    start = smallest_choice(program)
    known, _ = program.evaluate(start)
    best: tuple[int, ...] | None = start
    if known <= floor * (1 + ROUNDING):
        best, known = None, floor
    for index in np.argsort(-bounds, kind="stable"):
        if bounds[index] <= known * (1 + ROUNDING):
            break
        picked = solve_sequence(small, sequences[index], left[index], known)
        if picked is not None:
            choice = tuple(int(keep[option]) for option in picked)
            score, _ = program.evaluate(choice)
            if score > known * (1 + ROUNDING):  # HiGHS keeps its floor within a tolerance only
                best, known = choice, score
    return None if best is None else Solution(best, known, known)


def undominated(program: Program) -> np.ndarray:
    """Options that no other of the same width beats in score and in every budget at once. [O']

    Exact: neighbours see an option's width only, so the better one may always stand in its place.
    """
    keep: list[int] = []
    costs = np.concatenate([program.use, program.peak])  # [2R, O]
    for width in np.unique(program.width):
        members = np.flatnonzero(program.width == width)
        kept: list[int] = []
        for index in members[np.argsort(-program.score[members], kind="stable")]:
            if not kept or not (costs[:, kept] <= costs[:, [index]]).all(axis=0).any():
                kept.append(int(index))
        keep += kept
    return np.array(sorted(keep))


def width_sequences(program: Program) -> np.ndarray:
    """Every allowed sequence of width indices. [S, blocks]"""
    found: list[tuple[int, ...]] = []
    for first, allowed in enumerate(program.allowed):
        reachable = np.flatnonzero(allowed).tolist()
        found += [(first, *rest) for rest in combinations_with_replacement(reachable, program.blocks - 1)]
    return np.array(found)


def fixed_shares(program: Program, sequences: np.ndarray) -> np.ndarray:
    """Shares that the widths alone take: projections, embedding, head. [S, R]"""
    shares = program.ends[:, sequences[:, 0], sequences[:, -1]]  # [R, S]
    for before, after in zip(sequences.T, sequences.T[1:], strict=False):
        shares = shares + program.step[:, before, after]
    return shares.T


def upper_bounds(program: Program, sequences: np.ndarray, left: np.ndarray) -> np.ndarray:
    """A score that no decoder of these widths exceeds: prices on the budgets in place of the budgets. [S]

    Any prices give a bound; those that make the largest one small are sought. A peak is at least the blocks' mean.
    """
    use = program.use + program.peak / program.blocks  # [R, O]
    members = [program.width == width for width in range(len(program.allowed))]

    def bounds(prices: np.ndarray) -> np.ndarray:  # [S]
        worth = program.score - prices @ use  # [O]
        best = np.array([worth[member].max() if member.any() else -np.inf for member in members])  # [W]
        return np.where((left >= 0).all(axis=1), best[sequences].sum(axis=1) + left @ prices, -np.inf)

    if not len(program.names):
        return bounds(np.zeros(0))
    unit = float(program.score.max()) * program.blocks
    start = np.full(len(program.names), 0.5)
    found = minimize(
        lambda scale: bounds(np.abs(scale) * unit).max(), start, method="Nelder-Mead", options={"maxiter": 400}
    )
    return bounds(np.abs(found.x) * unit)


def solve_sequence(program: Program, widths: np.ndarray, left: np.ndarray, known: float) -> list[int] | None:
    """The best options for given widths that score more than `known`, or None: one binary per block and option."""
    choices = [np.flatnonzero(program.width == width) for width in widths]
    options = np.concatenate(choices)
    block = np.repeat(np.arange(len(choices)), [len(members) for members in choices])
    rows, blocks = len(program.names), len(choices)
    unit = float(program.score.max()) or 1.0
    size = len(options) + rows  # binaries, then the peak of each budget
    score = np.concatenate([program.score[options], np.zeros(rows)])
    one = np.pad((block == np.arange(blocks)[:, None]).astype(float), ((0, 0), (0, rows)))
    budget = np.concatenate([program.use[:, options], np.eye(rows)], axis=1)
    peaks = [
        np.concatenate([np.where(block == index, program.peak[row][options], 0), -np.eye(rows)[row]])
        for row in range(rows)
        for index in range(blocks)
    ]
    constraints = [
        LinearConstraint(one, 1, 1),
        LinearConstraint(np.concatenate([budget, np.reshape(peaks, (-1, size))]), -np.inf, [*left, *[0] * len(peaks)]),
        LinearConstraint(score[None] / unit, (known / unit) * (1 + ROUNDING), np.inf),
        *order_constraint(widths, choices, size),
    ]
    binary = np.arange(size) < len(options)
    bounds = Bounds(0, np.where(binary, 1, np.inf))
    for whole in (False, True):  # fractions first: most sequences are no better even so, and that is found much sooner
        result = milp(
            -score / unit, integrality=binary if whole else None, bounds=bounds, constraints=constraints,
            options={"mip_rel_gap": 0.0},
        )  # fmt: skip
        if result.x is None:
            return None
    return [int(options[block == index][result.x[: len(options)][block == index].argmax()]) for index in range(blocks)]


def order_constraint(widths: np.ndarray, choices: list[np.ndarray], size: int) -> list[LinearConstraint]:
    """Blocks of one width are interchangeable: of their orders only the one by option number is looked at."""
    starts = np.cumsum([0, *(len(members) for members in choices)])
    rows = []
    for index in np.flatnonzero(np.diff(widths) == 0):
        row = np.zeros(size)
        row[starts[index] : starts[index + 1]] = np.arange(len(choices[index]))
        row[starts[index + 1] : starts[index + 2]] = -np.arange(len(choices[index + 1]))
        rows.append(row)
    return [LinearConstraint(np.stack(rows), -np.inf, 0)] if rows else []
