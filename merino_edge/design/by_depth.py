"""The best decoder under the measured law, with a proof: branch and bound over integer programs of D layers each.

For a fixed number of layers the law's score rises with the effective weights, which are a sum over the blocks. So the
optimum for D layers is that of an integer linear program (`depth_program`), and the optimum of all is the best of at
most 48. Best bound first: linear relaxations bound each D and each first width, and reduced costs leave out options
that no better decoder has. What is bounded below the best known score is never solved. Better decoders become known
early: exchanges of two blocks improve uniform ones.

What is not linear is branched on: the activations of the worst block, and that no layer is far from the mean one.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from heapq import heappop, heappush
from itertools import count

import numpy as np

from merino_edge.design.depth_program import Node, Relaxed, Rows, priced, relax, solve
from merino_edge.design.exchange import exchange
from merino_edge.design.law import EVEN, MeasuredScoring, even, law_score, least_weights
from merino_edge.design.program import ROUNDING, Answer, Program, Solution, SolverError, smallest_choice
from merino_edge.design.uniform import uniform
from merino_edge.prediction.limits import within

SLACK = 2e-6  # twice HiGHS's feasibility tolerance: limits are lowered by it where a solution oversteps one
CANDIDATES = 160  # options that are exchanged before an integer program is solved


def improve(program: Program, floor: float = -math.inf) -> Answer:
    """The best decoder if it scores more than `floor`. Deterministic. The smallest decoder counts though its layers be
    uneven, which only shared ones can be: where no other fits, it is the answer."""
    rows = Rows.of(program)
    plain = [program.solution(smallest_choice(program)), *uniform(program)]
    first = max(plain, key=lambda each: each.score)
    better = first.score > floor * (1 + ROUNDING)
    best, known, unsolved = (first if better else None), (first.score if better else floor), -math.inf
    queue = Queue(program)
    for node, weights in roots(program, rows, known):
        queue.push(node, weights)
    while item := queue.pop(known):
        bound, node, relaxed, since = item
        if relaxed is None or since < known:
            node = without_small(program, node, known)
            relaxed = relax(program, rows, node)
            if relaxed is None:
                continue
            queue.push(node, relaxed.weights, relaxed, known)
        elif node.first is None:
            node = without_large(program, node, relaxed.weights)
            for width in np.unique(program.width[node.among]).tolist():
                queue.push(replace(node, first=width), relaxed.weights - relaxed.first_loss[width])
        elif best and (found := exchanged(program, [best, *plain], node, relaxed)).score > known * (1 + ROUNDING):
            best, known = found, found.score
            queue.push(node, relaxed.weights, relaxed, since)
        else:
            try:
                choice = best_of(program, rows, node, relaxed, known)
            except SolverError:
                unsolved = max(unsolved, bound)
                continue
            parts = branches(program, node, choice) if choice else []
            for part in parts:
                queue.push(part, relaxed.weights)
            if choice and not parts:
                found = program.solution(choice)
                if found.score > known * (1 + ROUNDING):  # HiGHS keeps its floor within a tolerance only
                    best, known = found, found.score
    return Answer(best, max(known, unsolved))


def upper_bound(program: Program) -> float:
    """A score that no decoder exceeds: the highest bound of a number of layers, by the relaxations alone."""
    rows, least = Rows.of(program), program.solution(smallest_choice(program)).score
    queue = Queue(program)
    for node, weights in roots(program, rows, -math.inf):
        queue.push(node, weights)
    while item := queue.pop(-math.inf):
        bound, node, relaxed, _ = item
        if relaxed:
            return max(bound, least)
        if relaxed := relax(program, rows, node):
            queue.push(node, relaxed.weights, relaxed)
    return least


class Queue:
    """Nodes by falling bounds on the score, each with its relaxation, and the score that was known at that time."""

    def __init__(self, program: Program) -> None:
        self.law = law_of(program)
        self.heap: list[tuple[float, int, Node, Relaxed | None, float]] = []
        self.order = count()

    def push(self, node: Node, weights: float, relaxed: Relaxed | None = None, known: float = -math.inf) -> None:
        """`weights`: effective weights that no decoder of the node exceeds."""
        weights = min(weights, node.most)
        if weights > 0:
            bound = law_score(weights, node.layers, self.law)
            heappush(self.heap, (-bound, next(self.order), node, relaxed, known))

    def pop(self, known: float) -> tuple[float, Node, Relaxed | None, float] | None:
        """The node of highest bound; None where no decoder left is better than the known one."""
        if not self.heap or -self.heap[0][0] <= known * (1 + ROUNDING):
            return None
        bound, _, node, relaxed, since = heappop(self.heap)
        return -bound, node, relaxed, since


def law_of(program: Program) -> MeasuredScoring:
    assert program.law
    return program.law


def depth(program: Program, solution: Solution) -> int:
    return int(program.layers[list(solution.choice)].sum())


def roots(program: Program, rows: Rows, known: float) -> Iterator[tuple[Node, float]]:
    """All decoders of each number of layers, with a bound on their effective weights: by the prices of one relaxation,
    which cost a thousandth of its time."""
    most = program.blocks * float(program.score.max())
    everything = np.arange(len(program.options))
    nodes = [
        without_small(program, Node(layers, everything, program.peak.min(axis=1)), known)
        for layers in range(program.blocks * int(program.layers.min()), program.blocks * int(program.layers.max()) + 1)
    ]
    nodes = [node for node in nodes if len(node.among)]
    middle = relax(program, rows, nodes[len(nodes) // 3]) if nodes else None
    for node in nodes:
        yield node, min(most, priced(program, rows, node, middle.prices)) if middle else most


def exchanged(program: Program, starts: list[Solution], node: Node, relaxed: Relaxed) -> Solution:
    """The best decoder that exchanges make of the first and of the one with as many layers as the node."""
    among = node.among[np.argsort(relaxed.loss, kind="stable")[:CANDIDATES]]
    alike = min(starts, key=lambda each: abs(depth(program, each) - node.layers))
    return max((exchange(program, start, among) for start in (starts[0], alike)), key=lambda each: each.score)


def without_small(program: Program, node: Node, known: float) -> Node:
    """Without options whose layers are too small beside those of a decoder that is better than the known one."""
    if known <= 0:
        return node
    least = least_weights(known, node.layers, law_of(program))
    among = node.among[program.unit[node.among] >= EVEN * least / node.layers]
    return replace(node, among=among)


def without_large(program: Program, node: Node, weights: float) -> Node:
    """Without options whose layers are too large beside those of a decoder of so many effective weights."""
    mean = weights / node.layers
    return replace(node, among=node.among[EVEN * program.unit[node.among] <= mean * (1 + SLACK)])


def best_of(program: Program, rows: Rows, node: Node, relaxed: Relaxed, known: float) -> list[int] | None:
    """The decoder of most effective weights in the node that scores more than `known`; None where there is none.

    Raises SolverError where HiGHS fails.
    """
    least = least_weights(known, node.layers, law_of(program)) if known > 0 else 0.0
    least = max(least, node.least * (1 - SLACK))
    weights = min(relaxed.weights, node.most)
    if weights <= least * (1 + ROUNDING):
        return None
    near = node.among[relaxed.loss <= relaxed.weights - least * (1 + ROUNDING)]
    among = without_large(program, replace(node, among=near), weights).among
    return solve(program, rows, node, among, least) if len(among) else None


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
