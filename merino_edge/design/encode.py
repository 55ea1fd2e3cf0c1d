"""Encodes a space and limits on a board as a `Program`: cost tables that the constraints sum up.

The tables do not depend on the limits, so that a Pareto front and a refusal reuse them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from merino_edge.design.budgets import Term, broken, refusal, require_predictable
from merino_edge.design.constraints import constraints, leaves_residency, needs
from merino_edge.design.law import MeasuredScoring
from merino_edge.design.program import Program, scaled, smallest_choice
from merino_edge.design.score import Scoring, block_amount, layer_amount
from merino_edge.design.space import Space
from merino_edge.families.designed import (
    Architecture,
    Block,
    block_operators,
    end_operators,
    transition_operators,
)
from merino_edge.families.operators import Operator
from merino_edge.prediction.cost_model import CostModel
from merino_edge.prediction.latency import Regime
from merino_runtime.errors import MerinoError

TABLES = ("embed", "head")  # the operators whose size depends on the vocabulary


def encode(
    space: Space, limits: Mapping[str, float], model: CostModel, scoring: Scoring, regime: Regime | None = None
) -> Program:
    """The program of decoders within `limits` under `regime` (None: the model's default one).

    Raises MerinoError where no decoder of the space fits.
    """
    program = tabulate(space, limits, model, scoring, regime or model.default_regime())
    amounts = least(program)
    need = needs(program.constraints, amounts)
    if broken(limits, need):
        raise refusal(limits, [need], model.profile)
    if leaves_residency(program.constraints, amounts):
        raise MerinoError("no decoder of this space has the regime's residency: search all regimes")
    return scaled(program)


def tabulate(
    space: Space, limits: Mapping[str, float], model: CostModel, scoring: Scoring, regime: Regime
) -> Program:
    """The program in the budgets' units, feasible or not."""
    require_predictable(limits, model.profile)
    rows = constraints(limits, model, regime, space.largest_table)
    options, score, unit = scored_options(replace(space, vocab=2), scoring)
    law = scoring if isinstance(scoring, MeasuredScoring) else None
    position = {width: index for index, width in enumerate(space.widths)}
    use, peak, step, ends = cost_tables(space, tuple(each.term for each in rows), model, regime)
    widths = np.array(space.widths)
    return Program(
        options=options,
        width=np.array([position[block.width] for block in options]),
        score=score,
        use=use, step=step, ends=ends, peak=peak,
        allowed=((law is not None) | (widths[:, None] <= widths)) & (widths <= space.growth * widths[:, None]),
        constraints=rows,
        blocks=space.blocks,
        layers=np.array([block.depth for block in options]),
        shared=np.array([block.shared for block in options]),
        unit=unit,
        law=law,
    )  # fmt: skip


def least(program: Program) -> list[float]:
    """The smallest decoder's amount of each constraint, in its unit. [R]"""
    _, use = program.evaluate(smallest_choice(program))
    return [float(amount) + each.fixed for each, amount in zip(program.constraints, use, strict=True)]


def cost_tables(
    space: Space, terms: tuple[Term, ...], model: CostModel, regime: Regime
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`use`, `peak` [R, O], `step`, `ends` [R, W, W] in the budgets' units; 0 for pairs of widths not allowed."""
    options, widths = len(space.options()), len(space.widths)
    use, peak = np.zeros((2, len(terms), options))
    step, ends = np.zeros((2, len(terms), widths, widths))
    tables = [[op for op in end_operators(width, width, space.vocab) if op.kind in TABLES] for width in space.widths]
    for row, term in enumerate(terms):
        same = alike(term, model, regime)
        use[row], peak[row], step[row], back = term_tables(replace(space, vocab=2), term, model, same)
        ends[row] = np.array([term.cost(model, same, ops) for ops in tables])[:, None] + back
    return use, peak, step, ends


def alike(term: Term, model: CostModel, regime: Regime) -> Regime:
    """The first regime in which the term costs the same."""
    same = (each for each in model.regimes() if all(getattr(each, n) == getattr(regime, n) for n in term.depends))
    return next(same, regime)


@lru_cache(maxsize=256)
def term_tables(
    space: Space, term: Term, model: CostModel, regime: Regime
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`use`, `peak` [O] and `step` of one term, and the projection back from the last width [W, W].

    A prefill's last layer computes only one position after its attention. The saving is subtracted from the projection
    back, whose table has the width but not the FFN ratio. It is the narrowest FFN's saving, so other decoders are
    slightly overestimated.
    """

    def total(operators: list[Operator]) -> float:
        return term.cost(model, regime, operators)

    def saved(width: int) -> float:
        block = Block(width=width, ffn_ratio=min(space.ffn_ratios), depth=1)
        whole, last = (list(block_operators(block, space.head_size, last=last)) for last in (False, True))
        return total(whole) - total(last)

    def ending(first: int, last: int) -> float:
        """The final norm and the projection back."""
        return total([op for op in end_operators(first, last, 2) if op.kind not in TABLES])

    layers = layers_of(space)
    first, repeat = (np.array([total(ops) for ops in uses])[layers.of] for uses in (layers.first, layers.repeat))  # [O]
    use = first + layers.more * np.where(layers.shared, repeat, first)
    peak = np.array([model.activation_mb(ops) if term.has_peak else 0.0 for ops in layers.first])[layers.of]
    step, back = np.zeros((2, len(space.widths), len(space.widths)))
    savings = np.array([saved(width) for width in space.widths])
    if space.padded:  # a change of width costs so little that each block is charged the dearest one
        dearest = total(list(transition_operators(min(space.widths), max(space.widths), padded=True)))
        ends = np.array([ending(width, width) for width in space.widths])  # the way back is a change
        return use, peak, step, back + (space.blocks * dearest + ends - savings)
    for row, low in enumerate(space.widths):
        for column, high in enumerate(space.widths):
            if low <= high <= space.growth * low:
                step[row, column] = total(list(transition_operators(low, high)))
                back[row, column] = ending(low, high) - savings[column]
    return use, peak, step, back


class Layers(NamedTuple):
    """The different layers of a space, and which of them each option repeats.

    Attributes:
        first, repeat: operators of a layer with its own weights, and of a repeated use, which stores none.
        of, more, shared: index of each option's layer, its further uses, and whether these share weights. [O]
    """

    first: list[list[Operator]]
    repeat: list[list[Operator]]
    of: np.ndarray
    more: np.ndarray
    shared: np.ndarray


@lru_cache(maxsize=8)
def layers_of(space: Space) -> Layers:
    options = space.options()
    shapes = [(block.width, block.ffn_ratio, block.kv_heads) for block in options]
    place = {shape: index for index, shape in enumerate(dict.fromkeys(shapes))}
    twice = [
        list(block_operators(
            Block(width=width, ffn_ratio=ratio, depth=2, shared=True, kv_heads=kv_heads), space.head_size
        ))
        for width, ratio, kv_heads in place
    ]  # fmt: skip
    return Layers(
        first=[ops[: len(ops) // 2] for ops in twice],
        repeat=[ops[len(ops) // 2 :] for ops in twice],
        of=np.array([place[shape] for shape in shapes]),
        more=np.array([block.depth - 1 for block in options]),
        shared=np.array([block.shared for block in options]),
    )


@lru_cache(maxsize=8)
def scored_options(space: Space, scoring: Scoring) -> tuple[tuple[Block, ...], np.ndarray, np.ndarray]:
    """The options, their scores, and the score of one layer of each. [O]"""
    options = space.options()
    return (
        options,
        np.array([block_amount(block, space.head_size, scoring) for block in options]),
        np.array([layer_amount(block, space.head_size, scoring) for block in options]),
    )


def architecture(space: Space, program: Program, choice: Sequence[int], context: int) -> Architecture:
    return Architecture(
        blocks=tuple(program.options[index] for index in choice),
        vocab=space.vocab,
        head_size=space.head_size,
        context=context,
        width_change="padding" if space.padded else "projection",
    )
