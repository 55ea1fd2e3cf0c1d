"""A good decoder soon: two blocks at a time are exchanged for the best two of a few options."""

from itertools import combinations

import numpy as np

from merino_edge.design.law import EVEN, law_scores
from merino_edge.design.program import ROUNDING, Program, Solution


def exchange(program: Program, start: Solution, among: np.ndarray) -> Solution:
    """Exchanges blocks of `start` for options `among` until no exchange of two gives a better decoder."""
    best = start
    while True:
        before = best
        for places in combinations(range(program.blocks), 2):
            best = exchange_two(program, best, places, among)
        if best is before:
            return best


def exchange_two(program: Program, best: Solution, places: tuple[int, int], among: np.ndarray) -> Solution:
    """The better of `best` and the best decoder that has two of `among` in these places. A table of all pairs."""
    assert program.law
    size = (len(among), len(among))
    pair = np.broadcast_arrays(among[:, None], among[None, :])
    blocks = [np.full(size, option) for option in best.choice]
    blocks[places[0]], blocks[places[1]] = pair
    width = [program.width[block] for block in blocks]
    share = program.ends[:, width[0], width[-1]] + np.max([program.peak[:, block] for block in blocks], axis=0)
    share = share + sum(program.use[:, block] for block in blocks)
    weights, layers = sum(program.score[block] for block in blocks), sum(program.layers[block] for block in blocks)
    units = np.stack([program.unit[block] for block in blocks])
    mean = weights / layers
    fits = (share <= 1).all(axis=0) & (EVEN * mean <= units.min(axis=0)) & (EVEN * units.max(axis=0) <= mean)
    for other in width[1:]:
        fits = fits & program.allowed[width[0], other]
    score = np.where(fits, law_scores(weights, layers, program.law), 0.0)
    place = np.unravel_index(score.argmax(), size)
    if score[place] <= best.score * (1 + ROUNDING):
        return best
    return program.solution([int(block[place]) for block in blocks])
