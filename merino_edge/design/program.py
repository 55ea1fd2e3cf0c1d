"""A space under constraints as arrays, for both solvers.

A decoder is one option per block. Score and constraints are sums over the blocks, plus terms between neighbors (the
projection where the width changes) and between the two ends (embedding, projection back, head). Only peak activation
memory is a maximum.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from merino_edge.design.constraints import Constraint
from merino_edge.design.law import MeasuredScoring, law_score
from merino_edge.design.space import size
from merino_edge.families.designed import Block
from merino_edge.prediction.limits import most_within, within

ROUNDING = 1e-9  # relative difference up to which scores count as equal


@dataclass(frozen=True)
class Program:
    """The solvers' input. O options, R constraints, W widths. Amounts are shares of each constraint's room, so that the
    limit is 1; from `encode.tabulate` they are in the budgets' units.

    Attributes:
        options: one block each. [O]
        width: index of each option's width. [O]
        score: [O]
        use: share of an option. [R, O]
        step: share of a width change, from the row's width to the column's. [R, W, W]
        ends: share of embedding and head, by first and last width. [R, W, W]
        allowed: whether a decoder may begin with the row's width and end with the column's. [W, W]
        peak: share of an option's activations in a limit on memory; only the largest counts. [R, O]
        constraints: [R]
        blocks: options in one decoder.
        layers: of each option, repeated uses counted. [O]
        shared: whether an option's layers share their weights. [O]
        unit: score of one layer. [O]
        law: if given, the score is the law's of the sums of `score` and `layers`, widths may shrink, and `allowed`
            applies to the first width and each other one.
    """

    options: tuple[Block, ...]
    width: np.ndarray
    score: np.ndarray
    use: np.ndarray
    step: np.ndarray
    ends: np.ndarray
    allowed: np.ndarray
    peak: np.ndarray
    constraints: tuple[Constraint, ...]
    blocks: int
    layers: np.ndarray
    shared: np.ndarray
    unit: np.ndarray
    law: MeasuredScoring | None

    @cached_property
    def shape(self) -> np.ndarray:
        """Each option's shape, numbered: width, FFN ratio and number of KV heads. [O]"""
        shapes: dict[tuple, int] = {}
        return np.array([
            shapes.setdefault((block.width, block.ffn_ratio, block.kv_heads), len(shapes)) for block in self.options
        ])

    @cached_property
    def every_depth(self) -> bool:
        """Whether a block may have each number of layers up to the largest."""
        return len(np.unique(self.layers)) == self.layers.max()

    @cached_property
    def place(self) -> dict[tuple[int, int], int]:
        """The unshared option of a shape and a number of layers."""
        return {
            (int(shape), block.depth): index
            for index, (shape, block) in enumerate(zip(self.shape, self.options, strict=True)) if not block.shared
        }  # fmt: skip

    def evaluate(self, choice: Sequence[int]) -> tuple[float, np.ndarray]:
        """(score, share of each constraint [R]) of one option per block."""
        picked = list(choice)
        widths = self.width[picked]
        share = self.use[:, picked].sum(axis=1) + self.peak[:, picked].max(axis=1)
        share = share + self.step[:, widths[:-1], widths[1:]].sum(axis=1) + self.ends[:, widths[0], widths[-1]]
        amount = float(self.score[picked].sum())
        return (law_score(amount, float(self.layers[picked].sum()), self.law) if self.law else amount), share

    def fits(self, choice: Sequence[int]) -> bool:
        """Whether the decoder meets all constraints of a program in shares."""
        return all(within(each, 1.0) for each in self.evaluate(choice)[1])

    def solution(self, choice: Sequence[int]) -> "Solution":
        return Solution(tuple(choice), self.evaluate(choice)[0])

    def under(self, rows: list[int]) -> "Program":
        """The same program under some of its constraints, by their rows. [R']"""
        return replace(
            self,
            use=self.use[rows],
            step=self.step[rows],
            ends=self.ends[rows],
            peak=self.peak[rows],
            constraints=tuple(self.constraints[row] for row in rows),
        )

    def subset(self, keep: np.ndarray) -> "Program":
        """The same program with fewer options; `keep` is a list of indices. [O']"""
        return replace(
            self,
            options=tuple(self.options[index] for index in keep),
            width=self.width[keep],
            score=self.score[keep],
            use=self.use[:, keep],
            peak=self.peak[:, keep],
            layers=self.layers[keep],
            shared=self.shared[keep],
            unit=self.unit[keep],
        )


class Solution(NamedTuple):
    """One option per block, and its score."""

    choice: tuple[int, ...]
    score: float


def smallest_choice(program: Program) -> tuple[int, ...]:
    """The decoder that is smallest in every constraint."""
    sizes = [size(block) for block in program.options]
    return (sizes.index(min(sizes)),) * program.blocks


def uniform(program: Program) -> Iterator[Solution]:
    """The best uniform decoder of each number of layers within the limits, in blocks of nearly equal depth. Uniform:
    one width, FFN ratio and number of KV heads, no shared weights. Baseline and start of a search."""
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


def scaled(program: Program) -> Program:
    """Amounts in the budgets' units become shares of each constraint's room, which must be positive."""
    room = np.array([constraint.room for constraint in program.constraints])
    return replace(
        program,
        use=program.use / room[:, None],
        step=program.step / room[:, None, None],
        ends=program.ends / room[:, None, None],
        peak=program.peak / room[:, None],
    )


class SolverError(Exception):
    """HiGHS neither solved the program nor proved it infeasible."""


class Answer(NamedTuple):
    """A solver's result for a program and a floor.

    Attributes:
        solution: the best known decoder that scores more than the floor; None where there is none.
        bound: upper bound of the score, if above the floor.
    """

    solution: Solution | None
    bound: float

    @property
    def proved(self) -> bool:
        """Whether the solution is known to be optimal."""
        return self.solution is not None and self.bound <= self.solution.score * (1 + ROUNDING)
