"""Uniform decoders: one width, FFN ratio and number of KV heads, no shared weights. Baseline and start of a search."""

from collections.abc import Iterator

import numpy as np

from merino_edge.design.program import Program, Solution
from merino_edge.prediction.limits import most_within


def uniform(program: Program) -> Iterator[Solution]:
    """The best uniform decoder of each number of layers within the limits, in blocks of nearly equal depth."""
    deepest = int(program.layers.max())
    options = np.full((int(program.shape.max()) + 1, deepest + 2), -1)  # of each shape and depth; -1: none
    for (shape, depth), option in program.place.items():
        options[shape, depth] = option
    for layers in range(program.blocks, program.blocks * deepest + 1):
        depth, more = divmod(layers, program.blocks)
        chosen = options[:, [depth + (block < more) for block in range(program.blocks)]]  # [shapes, blocks]
        chosen = chosen[(chosen >= 0).all(axis=1)]
        width = program.width[chosen[:, 0]]
        share = program.use[:, chosen].sum(axis=2) + program.peak[:, chosen].max(axis=2)
        share = share + program.ends[:, width, width] + (program.blocks - 1) * program.step[:, width, width]
        chosen = chosen[(share <= most_within(1.0)).all(axis=0)]
        if len(chosen):  # for a fixed number of layers the score rises with the weights
            yield program.solution(chosen[program.score[chosen].sum(axis=1).argmax()].tolist())
