"""The best decoder of a space, with a proof: a mixed-integer linear program on scipy's HiGHS.

Binary x[i, o] says that block i is option o. Continuous y[i, a, b] and z[a, b] are the widths of neighbours and of the
two ends; they follow from x, since their sums over one side must equal the widths of the other. Ours (the paper
searches by evolution only).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from merino_edge.design.space import Program

SLACK = 2e-6  # twice HiGHS's feasibility tolerance: taken off the limits if a solution oversteps them by that much


class Solution(NamedTuple):
    """One option per block; `bound` is a score that no decoder of the space can exceed, None where none is proved."""

    choice: tuple[int, ...]
    score: float
    bound: float | None


class Layout(NamedTuple):
    """Where the variables stand in the vector: x, then y and z as one pair block per neighbour, then the peaks."""

    options: int
    pairs: list[tuple[int, int]]  # the allowed (a, b); neighbours of a decoder with allowed ends are allowed too
    blocks: int
    peaks: int

    def x(self, block: int, option: int) -> int:
        return block * self.options + option

    def pair(self, block: int, index: int) -> int:
        """y of the neighbours (block, block + 1); z where block is the last."""
        return self.blocks * self.options + block * len(self.pairs) + index

    def peak(self, row: int) -> int:
        return self.blocks * (self.options + len(self.pairs)) + row

    @property
    def size(self) -> int:
        return self.peak(self.peaks)


def solve(program: Program) -> Solution:
    """Maximise the score. Deterministic; raises nothing, since `encode` has made sure that a solution exists.

    Budgets come in one at a time, as the best decoder without them breaks them: what is best under some of the budgets
    and keeps the others is best under all, and every budget left out makes more options comparable, the program small.
    """
    rows: list[int] = []
    limit = 1.0
    while True:
        found = solve_rows(program.with_budgets(rows), limit)
        share = program.evaluate(found.choice)[1]
        broken = [row for row in np.argsort(-share) if share[row] > 1]
        if not broken:
            return found
        if broken[0] in rows:
            limit -= SLACK
        else:
            rows = sorted([*rows, int(broken[0])])


def solve_rows(program: Program, limit: float) -> Solution:
    """The program as it stands, each budget's share at most `limit`."""
    keep = undominated(program)
    small = program.subset(keep)
    pairs = [(int(a), int(b)) for a, b in np.argwhere(small.allowed)]
    layout = Layout(len(keep), pairs, small.blocks, len(small.names))
    objective = np.zeros(layout.size)
    for block in range(small.blocks):
        objective[layout.x(block, 0) : layout.x(block, 0) + layout.options] = -small.score
    binary = np.zeros(layout.size)
    binary[: small.blocks * layout.options] = 1
    upper = np.ones(layout.size)
    result = milp(
        objective,
        integrality=binary,
        bounds=Bounds(np.zeros(layout.size), upper),
        constraints=[flow_constraint(small, layout), budget_constraint(small, layout, limit)],
        options={"mip_rel_gap": 0.0},
    )
    assert result.x is not None, result.message
    picked = result.x[: small.blocks * layout.options].reshape(small.blocks, -1).argmax(axis=1)
    choice = tuple(int(keep[index]) for index in picked)
    score, _ = program.evaluate(choice)
    return Solution(choice, score, max(score, -float(result.mip_dual_bound)))


def undominated(program: Program) -> np.ndarray:
    """Options that no other of the same width beats in score and in every budget at once. [O']

    Exact: neighbours see an option's width only, so the better one may always stand in its place.
    """
    keep = []
    costs = np.concatenate([program.use, program.peak])  # [2R, O]
    for width in np.unique(program.width):
        members = np.flatnonzero(program.width == width)
        order = members[np.argsort(-program.score[members], kind="stable")]
        kept: list[int] = []
        for index in order:
            cheaper = (costs[:, kept] <= costs[:, [index]]).all(axis=0) if kept else np.array([])
            if not cheaper.any():
                kept.append(int(index))
        keep += kept
    return np.array(sorted(keep))


def flow_constraint(program: Program, layout: Layout) -> LinearConstraint:
    """One option per block; a pair's sums over one side equal the other side's width."""
    entries: list[tuple[int, int, float]] = []
    rows = 0
    for block in range(program.blocks):
        entries += [(rows, layout.x(block, option), 1.0) for option in range(layout.options)]
        rows += 1
    targets = np.zeros(program.blocks)
    targets[:] = 1
    for block in range(program.blocks):
        ends = block == program.blocks - 1
        left, right = (0, block) if ends else (block, block + 1)
        for side, member in ((0, left), (1, right)):
            for width in sorted({int(width) for width in program.width}):
                members = np.flatnonzero(program.width == width)
                entries += [(rows, layout.x(member, int(option)), -1.0) for option in members]
                entries += [
                    (rows, layout.pair(block, index), 1.0)
                    for index, pair in enumerate(layout.pairs)
                    if pair[side] == width
                ]
                rows += 1
    target = np.concatenate([targets, np.zeros(rows - program.blocks)])
    return LinearConstraint(matrix(entries, rows, layout.size), target, target)


def budget_constraint(program: Program, layout: Layout, limit: float) -> LinearConstraint:
    """Each budget's shares add up to at most 1; the peak is at least that of each block."""
    entries: list[tuple[int, int, float]] = []
    uppers: list[float] = []
    for row in range(len(program.names)):
        entries += list(budget_row(program, layout, row, len(uppers)))
        uppers.append(limit)
        for block in range(program.blocks):
            entries += [
                (len(uppers), layout.x(block, option), float(program.peak[row, option]))
                for option in range(layout.options)
            ]
            entries.append((len(uppers), layout.peak(row), -1.0))
            uppers.append(0.0)
    return LinearConstraint(matrix(entries, len(uppers), layout.size), -np.inf, np.array(uppers))


def budget_row(program: Program, layout: Layout, row: int, at: int) -> Iterator[tuple[int, int, float]]:
    for block in range(program.blocks):
        for option in range(layout.options):
            yield at, layout.x(block, option), float(program.use[row, option])
        table = program.ends if block == program.blocks - 1 else program.step
        for index, (a, b) in enumerate(layout.pairs):
            yield at, layout.pair(block, index), float(table[row, a, b])
    yield at, layout.peak(row), 1.0


def matrix(entries: list[tuple[int, int, float]], rows: int, columns: int) -> coo_array:
    row, column, value = zip(*entries, strict=True) if entries else ((), (), ())
    return coo_array((value, (row, column)), shape=(rows, columns))
