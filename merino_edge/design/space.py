"""The space of decoders, and the one encoding of it that both solvers share.

A decoder is one option (width, FFN ratio, depth, shared) per block. Score and budgets are sums over the blocks, plus
terms between neighbours (the projection where the width changes) and between the two ends (embedding, way back, head).
Peak activation memory is the one maximum. So a `Program` is a handful of arrays, and a solver knows nothing of models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from merino_edge.design.budget import Budgets, broken, refusal, require_watts
from merino_edge.design.entropy import Scoring, block_score
from merino_edge.design.measures import additive_measure, fixed_measure, with_demands
from merino_edge.families.merino.architecture import (
    Architecture,
    Block,
    block_operators,
    end_operators,
    transition_operators,
)
from merino_edge.families.operators import BLOCKS, Operator, embed
from merino_edge.prediction.cost_model import CostModel, Regime
from merino_runtime.errors import MerinoError

TABLES = ("embed", "head")  # the operators whose size is the vocabulary's


@dataclass(frozen=True)
class Space:
    """Widths in steps of 64, ratios in steps of 0.5, four blocks: recalled (so are ten layers at most, here twelve).

    Sharing is known. `blocks` is how many there are, neither more nor fewer (ours): the effectiveness is each block's
    own, so a search that was free to add blocks would always take the most.

    `growth` (ours) is how much wider than the first block the last may be. The embedding is as wide as the first block
    and is the head too, so it caps the rank of the logits (the softmax bottleneck, Yang et al. 2018), which the score
    does not see: without the cap a tight budget on time is met by an embedding of 64 channels.
    """

    widths: tuple[int, ...] = tuple(range(64, 1025, 64))
    ffn_ratios: tuple[float, ...] = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
    depths: tuple[int, ...] = tuple(range(1, 13))
    growth: float = 2.0
    blocks: int = 4
    vocab: int = 50257
    head_size: int = 64
    narrow_head_size: int | None = 32  # of a decoder with narrow blocks; None: as the others

    def options(self) -> list[Block]:
        """Every block; those left out whose rows blocks of quantised weights do not divide."""
        return [
            Block(width=width, ffn_ratio=ratio, depth=depth, shared=shared)
            for width in self.widths
            for ratio in self.ffn_ratios
            if width * ratio % BLOCKS[-1] == 0
            for depth in self.depths
            for shared in (False, True)
            if depth > 1 or not shared
        ]

    @property
    def largest_table(self) -> Operator:
        return embed(self.vocab, max(self.widths))


def spaced(step: int, blocks: int, vocab: int, head_size: int | None = None) -> Space:
    """Widths from 64 to 1024 in steps of 64 or 32. Without a head size: 64 and 32 in turn, or 32 where steps need it.

    Raises MerinoError where heads do not divide the widths.
    """
    if head_size is not None and step % head_size:
        raise MerinoError(f"--head-size {head_size} does not divide widths in steps of {step}: take 32, or steps of 64")
    return Space(
        widths=tuple(range(64, 1025, step)), blocks=blocks, vocab=vocab,
        head_size=head_size or step, narrow_head_size=None if head_size else 32,
    )  # fmt: skip


@dataclass(frozen=True)
class Program:
    """What a solver sees. O options, R budgets, W widths; all budgets scaled so that their limit is 1.

    Attributes:
        options: one block each. [O]
        width: index of each option's width. [O]
        score: [O]
        use: share of each budget an option takes. [R, O]
        step: share that a width change takes, from the row's width to the column's. [R, W, W]
        ends: share that embedding and head take, by first and last width. [R, W, W]
        allowed: whether a decoder may begin with the row's width and end with the column's. [W, W]
        peak: share of the budget that the worst block alone takes: activations, in the memory budget. [R, O]
        names: of the budgets. [R]
        fixed: what is taken whatever is chosen, in the budgets' own units. [R]
        limits: of the budgets, in their own units, less what is fixed. [R]
    """

    options: tuple[Block, ...]
    width: np.ndarray
    score: np.ndarray
    use: np.ndarray
    step: np.ndarray
    ends: np.ndarray
    allowed: np.ndarray
    peak: np.ndarray
    names: tuple[str, ...]
    fixed: np.ndarray
    limits: np.ndarray
    blocks: int

    def evaluate(self, choice: Sequence[int]) -> tuple[float, np.ndarray]:
        """(score, share of each budget [R]) of one option per block."""
        picked = list(choice)
        widths = self.width[picked]
        share = self.use[:, picked].sum(axis=1) + self.peak[:, picked].max(axis=1)
        share = share + self.step[:, widths[:-1], widths[1:]].sum(axis=1) + self.ends[:, widths[0], widths[-1]]
        return float(self.score[picked].sum()), share

    def with_budgets(self, rows: list[int]) -> "Program":
        """The same program under some of its budgets. [R']"""
        return replace(
            self,
            use=self.use[rows],
            step=self.step[rows],
            ends=self.ends[rows],
            peak=self.peak[rows],
            names=tuple(self.names[row] for row in rows),
            fixed=self.fixed[rows],
            limits=self.limits[rows],
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
        )


class Solution(NamedTuple):
    """One option per block; `bound` is a score that no decoder of the space can exceed, None where none is proved."""

    choice: tuple[int, ...]
    score: float
    bound: float | None


def encode(
    space: Space, budgets: Budgets, model: CostModel, scoring: Scoring, regime: Regime | None = None
) -> Program:
    """The program of a space under budgets on a board, of decoders in `regime` there (None: the default one).

    Raises MerinoError where no decoder of the space fits.
    """
    regime = regime or model.default_regime()
    given = with_demands(budgets.given(), model, regime, space.largest_table)
    program = tabulate(space, tuple(given), model, scoring, regime)
    need = least(program)
    if broken(budgets.given(), need):
        raise refusal(budgets.given(), [need])
    if broken(given, need):
        raise MerinoError(f"no decoder of this space is {regime.residency}: search all regimes")
    return scaled(program, given)


def tabulate(
    space: Space, names: tuple[str, ...], model: CostModel, scoring: Scoring, regime: Regime
) -> Program:
    """The program before its limits are known: shares in the budgets' own units, as if each limit were 1."""
    if "j_per_token" in names:
        require_watts(model.profile)
    options, score = scored_options(replace(space, vocab=2), scoring)
    position = {width: index for index, width in enumerate(space.widths)}
    use, peak, step, ends = cost_tables(space, names, model, regime)
    widths = np.array(space.widths)
    return Program(
        options=options,
        width=np.array([position[block.width] for block in options]),
        score=score,
        use=use, step=step, ends=ends, peak=peak,
        allowed=(widths[:, None] <= widths) & (widths <= space.growth * widths[:, None]),
        names=names,
        fixed=np.array([fixed_measure(name, model) for name in names]),
        limits=np.ones(len(names)),
        blocks=space.blocks,
    )


def least(program: Program) -> dict[str, float]:
    """What the smallest decoder takes of each budget, in its own unit; of a program whose limits are not known yet."""
    _, use = program.evaluate(smallest_choice(program))
    return dict(zip(program.names, (use + program.fixed).tolist(), strict=True))


def scaled(program: Program, given: Mapping[str, float]) -> Program:
    """Divide by the limits, less what is taken whatever is chosen; the smallest decoder must be within them."""
    limits = np.array([given[name] for name in program.names]) - program.fixed
    return replace(
        program,
        use=program.use / limits[:, None],
        step=program.step / limits[:, None, None],
        ends=program.ends / limits[:, None, None],
        peak=program.peak / limits[:, None],
        limits=limits,
    )


def cost_tables(
    space: Space, names: tuple[str, ...], model: CostModel, regime: Regime
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`use`, `peak` [R, O], `step`, `ends` [R, W, W] in the budgets' own units; 0 for widths that never meet."""
    use, peak, step, back = body_tables(replace(space, vocab=2), names, model, regime)
    measures = [additive_measure(name, model, regime) for name in names]
    tables = [[op for op in end_operators(width, width, space.vocab) if op.kind in TABLES] for width in space.widths]
    table = np.array([[measure(ops) for ops in tables] for measure in measures])  # [R, W], by the first width
    return use, peak, step, table.reshape(len(names), len(space.widths))[:, :, None] + back


@lru_cache(maxsize=64)
def body_tables(
    space: Space, names: tuple[str, ...], model: CostModel, regime: Regime
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Without embedding and head: `use`, `peak` [R, O], `step`, and the way from the last width back [R, W, W].

    A prefill's last layer goes on with one position. What that spares is taken off the way back, which knows its width
    and not its FFN, so a decoder whose last FFN is not the narrowest is counted a little high.
    """
    measures = [additive_measure(name, model, regime) for name in names]
    layer: dict[tuple[int, float, bool], np.ndarray] = {}
    held_mb: dict[tuple[int, float], float] = {}  # activations

    def total(operators: list[Operator]) -> np.ndarray:  # [R]
        return np.array([measure(operators) for measure in measures]).reshape(len(measures))

    def spared(width: int) -> np.ndarray:  # [R]
        block = Block(width=width, ffn_ratio=min(space.ffn_ratios), depth=1)
        whole, last = (list(block_operators(block, space.head_size, last=last)) for last in (False, True))
        return total(whole) - total(last)

    for width in space.widths:
        for ratio in space.ffn_ratios:
            ops = list(block_operators(Block(width=width, ffn_ratio=ratio, depth=2, shared=True), space.head_size))
            half = len(ops) // 2  # the second use stores nothing
            layer[width, ratio, True], layer[width, ratio, False] = total(ops[:half]), total(ops[half:])
            held_mb[width, ratio] = model.activation_mb(ops[:half])
    options = space.options()
    use = np.array([
        layer[b.width, b.ffn_ratio, True] + (b.depth - 1) * layer[b.width, b.ffn_ratio, not b.shared] for b in options
    ]).T.reshape(len(names), len(options))
    memory = np.array([[float(name == "memory_mb")] for name in names]).reshape(len(names), 1)
    peak = memory * np.array([held_mb[b.width, b.ffn_ratio] for b in options])
    step, back = np.zeros((2, len(names), len(space.widths), len(space.widths)))
    spares = [spared(width) for width in space.widths]
    for row, low in enumerate(space.widths):
        for column, high in enumerate(space.widths):
            if low <= high <= space.growth * low:
                step[:, row, column] = total(list(transition_operators(low, high)))
                way = [op for op in end_operators(low, high, 2) if op.kind not in TABLES]
                back[:, row, column] = total(way) - spares[column]
    return use, peak, step, back


@lru_cache(maxsize=8)
def scored_options(space: Space, scoring: Scoring) -> tuple[tuple[Block, ...], np.ndarray]:
    """The options and their scores [O], which do not depend on what they cost."""
    options = tuple(space.options())
    return options, np.array([block_score(b.width, b.ffn_width, b.depth, b.shared, scoring) for b in options])


def smallest_choice(program: Program) -> tuple[int, ...]:
    """The decoder that is smallest in every budget: they grow with width, ratio and depth, and shrink by sharing."""
    sizes = [(block.width, block.ffn_ratio, block.depth, not block.shared) for block in program.options]
    return (sizes.index(min(sizes)),) * program.blocks


def architecture(space: Space, program: Program, choice: Sequence[int], context: int) -> Architecture:
    return Architecture(
        blocks=tuple(program.options[index] for index in choice),
        vocab=space.vocab,
        head_size=space.head_size,
        context=context,
    )
