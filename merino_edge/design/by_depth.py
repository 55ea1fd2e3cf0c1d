"""The best decoder under the measured law, with a proof: branch and bound over numbers of layers.

For a fixed number of layers the law's score rises with the effective weights, which are a sum over the blocks. So the
optimum is the best of at most 48 sums, one for each number of layers. A Lagrangian relaxation (`prices`) bounds each
sum, and within it each level of the worst block's activations. In the order of falling bounds, the decoders just below
the bound are enumerated (`pairing`) until one fits: no other has more weights. Nodes whose bound is below the best
known score are pruned.

Each layer must be near the mean layer, which limits the options of a decoder of a given number of weights.
"""

import math
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count

import numpy as np

from merino_edge.design.law import EVEN, MeasuredScoring, law_score, least_weights
from merino_edge.design.pairing import Looked, look
from merino_edge.design.prices import UNIT, Bound, Options, best_bound, bound_at
from merino_edge.design.program import ROUNDING, Answer, Program, Solution, smallest_choice, uniform

STEPS = 12  # of the search for a good first decoder
WORK = 200_000_000  # halves and decoders to enumerate at most; beyond it the result is not proved
ENDS = 0.05  # of a decoder's weights
TIGHTER = 0.002  # relative: a bound that falls by less is final
RANGE = 0.25  # of a bound's distance from the weights to exceed


@dataclass(frozen=True)
class Node:
    """Decoders of `layers` layers with at most `most` million weights. `first`: index of the first block's width;
    `level`: of the worst block's activations; None: any. `refined`: whether the prices are optimized for it."""

    layers: int
    most: float
    prices: np.ndarray
    first: int | None = None
    level: int | None = None
    refined: bool = False


class Queue:
    """Nodes in the order of falling bounds on the score."""

    def __init__(self, program: Program) -> None:
        self.law = law_of(program)
        self.heap: list[tuple[float, int, Node]] = []
        self.order = count()

    def push(self, node: Node) -> None:
        if node.most > 0:
            heappush(self.heap, (-law_score(node.most * UNIT, node.layers, self.law), next(self.order), node))

    def pop(self, known: float) -> Node | None:
        """The node of highest bound; None where no bound exceeds the known score."""
        return heappop(self.heap)[2] if self.bound > known * (1 + ROUNDING) else None

    @property
    def bound(self) -> float:
        return -self.heap[0][0] if self.heap else -math.inf


def law_of(program: Program) -> MeasuredScoring:
    assert program.law
    return program.law


def improve(program: Program, floor: float = -math.inf) -> Answer:
    """The best decoder if it scores more than `floor`. Deterministic. The smallest decoder counts even if its layers
    are uneven (by sharing), so that there is an answer where no other decoder fits."""
    first = max(plain(program), key=lambda each: each.score)
    best, known = (first, first.score) if first.score > floor * (1 + ROUNDING) else (None, floor)
    everything, work = Options.of(program), 0
    solution, prices = soon(program, everything, first, known)
    if solution and solution.score > known * (1 + ROUNDING):
        best, known = solution, solution.score
    queue = roots(program, everything, prices, known)
    while work < WORK and (node := queue.pop(known)):
        parts, looked = examined(program, everything, node, known)
        work += looked.work
        if looked.choice:
            solution = program.solution(looked.choice)
            if solution.score > known * (1 + ROUNDING):
                best, known = solution, solution.score
        for part in parts:
            queue.push(part)
    return Answer(best, max(known, queue.bound))


def examined(program: Program, everything: Options, node: Node, known: float) -> tuple[list[Node], Looked]:
    """The node's parts that may hold a better decoder, or the best decoder in it."""
    law = law_of(program)
    least = weights_of(known, node.layers, law)
    if not node.refined:
        return refined(program, everything, node, known), Looked(None, least, 0)
    options = near(program, everything, node, least)
    looked = look(program, options, node.layers, node.prices, node.most, least)
    rest = [] if looked.choice or looked.least <= least else [replace(node, most=looked.least)]
    return rest, looked


def plain(program: Program) -> list[Solution]:
    """The smallest decoder and the uniform ones."""
    return [program.solution(smallest_choice(program)), *uniform(program)]


def even_prices(program: Program, first: Solution) -> np.ndarray:
    """Prices that make each limit worth the same share of a decoder's weights, in millions."""
    rows = len(program.constraints)
    return np.full(rows, float(program.score[list(first.choice)].sum()) / UNIT / max(1, rows))


def soon(
    program: Program, everything: Options, first: Solution, known: float
) -> tuple[Solution | None, np.ndarray]:
    """A good decoder with as many layers as the first, and the best prices for that number of layers."""
    prices = even_prices(program, first)
    node = Node(int(program.layers[list(first.choice)].sum()), math.inf, prices)
    for step in range(STEPS):
        parts, looked = examined(program, everything, node, known)
        if looked.choice:
            return program.solution(looked.choice), prices
        if not parts:
            break
        node = max(parts, key=lambda each: each.most)
        prices = prices if step else node.prices
    return None, prices


def roots(program: Program, everything: Options, prices: np.ndarray, known: float) -> Queue:
    """A node for each number of layers, bounded by these prices."""
    queue = Queue(program)
    fewest, deepest = (program.blocks * int(each) for each in (program.layers.min(), program.layers.max()))
    for layers in range(fewest, deepest + 1):
        node = Node(layers, math.inf, prices)
        options = near(program, everything, node, weights_of(known, layers, queue.law))
        queue.push(replace(node, most=bound_at(options, layers, prices).weights))
    return queue


def weights_of(known: float, layers: int, law: MeasuredScoring) -> float:
    """The weights, in millions, above which a decoder of `layers` layers scores more than `known`."""
    return least_weights(known * (1 + ROUNDING), layers, law) / UNIT if known > 0 else 0.0


def near(program: Program, everything: Options, node: Node, least: float) -> Options:
    """The options possible in a decoder of the node with at least `least` weights: near the mean layer, allowed by the
    first width, and with activations within the level."""
    unit = everything.unit * node.layers
    keep = (unit >= EVEN * least * (1 - ROUNDING)) & (EVEN * unit <= node.most * (1 + ROUNDING))
    if node.first is not None:
        keep &= program.allowed[node.first, everything.width]
    if node.level is not None:
        keep &= everything.level <= node.level
    options = replace(everything.some(keep), first=node.first)
    return options if node.level is None else options.at_level(node.level)


def refined(program: Program, everything: Options, node: Node, known: float) -> list[Node]:
    """The node with optimized prices, or its parts; only those that may hold a better decoder."""
    least = weights_of(known, node.layers, law_of(program))
    node, bound, options = tightened(program, everything, node, least)
    if node.most <= least:
        return []
    if node.level is not None:
        return [replace(node, refined=True)]
    if to_divide(options, node):
        return by_first_width(program, everything, node, least)
    return [
        replace(node, level=level, most=min(node.most, float(bound.levels[level])))
        for level in np.unique(options.level).tolist() if bound.levels[level] > least
    ]  # fmt: skip


def tightened(program: Program, everything: Options, node: Node, least: float) -> tuple[Node, Bound, Options]:
    """The node with a lower bound and its prices, and the options possible near that bound.

    Decoders in a small range of weights just below the bound have few options, since each layer is near the mean one.
    Where prices prove the range empty, the bound falls to its lower end.
    """
    start = least
    while True:
        options = near(program, everything, node, start)
        bound = best_bound(options, node.layers, node.prices, start)
        lower = min(node.most, max(bound.weights, start))
        falls = lower <= node.most * (1 - TIGHTER)
        node = replace(node, most=lower, prices=bound.prices)
        if lower <= least or not falls and start > least or to_divide(options, node):
            return node, bound, options
        start = max(least, min(lower - RANGE * (lower - least), lower * (1 - RANGE / 10)))
        if not falls and start == least:
            return node, bound, options


def to_divide(options: Options, node: Node) -> bool:
    """Whether the costs of embedding and head differ so much by the first width that a mixture loosens the bound."""
    if node.first is not None or node.level is not None or not len(options.index):
        return False
    return float(np.ptp(node.prices @ options.ends[0])) > ENDS * node.most


def by_first_width(program: Program, everything: Options, node: Node, least: float) -> list[Node]:
    parts = []
    for width in range(len(program.allowed)):
        part = replace(node, first=width)
        bound = bound_at(near(program, everything, part, least), node.layers, node.prices)
        parts.append(replace(part, most=min(node.most, bound.weights)))
    return [part for part in parts if part.most > least]
