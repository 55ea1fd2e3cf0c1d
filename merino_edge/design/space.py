"""The space of decoders, and the one encoding of it that both solvers share.

A decoder is one option (width, FFN ratio, depth, shared) per block. Score and budgets are sums over the blocks, plus
terms between neighbours (the projection where the width changes) and between the two ends (embedding, way back, head).
Peak activation memory is the one maximum. So a `Program` is a handful of arrays, and a solver knows nothing of models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from merino_edge.architecture import (
    Architecture,
    Block,
    block_operators,
    end_operators,
    layer_operators,
    transition_operators,
)
from merino_edge.design import costs
from merino_edge.design.budget import LABELS, Budgets, option
from merino_edge.design.costs import Workload
from merino_edge.design.entropy import Scoring, block_score
from merino_edge.operators import Operator, activation_bytes, flops, kv_bytes, params, weight_bytes
from merino_edge.profiles import DeviceProfile
from merino_runtime.board import MB as BYTES_PER_MB
from merino_runtime.errors import MerinoError


@dataclass(frozen=True)
class Space:
    """Widths in steps of 64, ratios in steps of 0.5, up to ten layers, four blocks: recalled; sharing: known.

    `growth` (ours) is how much wider than the first block the last may be. The embedding is as wide as the first block
    and is the head too, so it caps the rank of the logits (the softmax bottleneck, Yang et al. 2018), which the score
    does not see: without the cap a tight budget on time is met by an embedding of 64 channels.
    """

    widths: tuple[int, ...] = tuple(range(64, 1025, 64))
    ffn_ratios: tuple[float, ...] = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
    depths: tuple[int, ...] = tuple(range(1, 11))
    growth: float = 2.0
    blocks: int = 4
    vocab: int = 50257
    head_size: int = 64


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
        limits: of the budgets, in their own units, less what is taken whatever is chosen. [R]
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


def encode(space: Space, budgets: Budgets, profile: DeviceProfile, work: Workload, scoring: Scoring) -> Program:
    """The program of a space under budgets on a board. Raises MerinoError where no decoder of the space fits."""
    given = budgets.given()
    measures = [additive_measure(name, profile, work) for name in given]
    options = [
        Block(width=width, ffn_ratio=ratio, depth=depth, shared=shared)
        for width in space.widths
        for ratio in space.ffn_ratios
        for depth in space.depths
        for shared in (False, True)
        if depth > 1 or not shared
    ]
    position = {width: index for index, width in enumerate(space.widths)}
    use, step, ends = cost_tables(space, options, measures)
    peak = np.array([
        [peak_measure(name, block, space.head_size, work) for block in options] for name in given
    ]).reshape(len(given), len(options))
    fixed = np.array([profile.performance.runtime_mb.value if name == "memory_mb" else 0.0 for name in given])
    widths = np.array(space.widths)
    program = Program(
        options=tuple(options),
        width=np.array([position[block.width] for block in options]),
        score=np.array([block_score(b.width, b.ffn_width, b.depth, b.shared, scoring) for b in options]),
        use=use, step=step, ends=ends, peak=peak,
        allowed=(widths[:, None] <= widths) & (widths <= space.growth * widths[:, None]),
        names=tuple(given),
        limits=np.array(list(given.values())) - fixed,
        blocks=space.blocks,
    )
    return scaled(program, fixed)


def additive_measure(name: str, profile: DeviceProfile, work: Workload) -> Callable[[list[Operator]], float]:
    """The function of a budget that adds up over operators, in the budget's own unit."""
    measures: dict[str, Callable[[list[Operator]], float]] = {
        "decode_ms": lambda ops: costs.decode_ms(ops, profile, work.precision, work.context),
        "prefill_ms": lambda ops: costs.prefill_ms(ops, profile, work.precision, work.prompt),
        "memory_mb": lambda ops: (weight_bytes(ops, work.precision) + kv_bytes(ops, work.context)) / BYTES_PER_MB,
        "flops_g": lambda ops: flops(ops) / 1e9,
        "params_m": lambda ops: params(ops) / 1e6,
    }
    return measures[name]


def peak_measure(name: str, block: Block, head_size: int, work: Workload) -> float:
    """MB of activations at the worst operator of a block; nothing for any other budget."""
    if name != "memory_mb":
        return 0.0
    layer = layer_operators(block.width, block.ffn_width, block.width // head_size)
    return activation_bytes(layer, work.prompt) / BYTES_PER_MB


def cost_tables(
    space: Space, options: list[Block], measures: list[Callable[[list[Operator]], float]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`use` [R, O], `step` and `ends` [R, W, W] in the budgets' own units."""
    layer: dict[tuple[int, float, bool], np.ndarray] = {}

    def layer_use(block: Block, own: bool) -> np.ndarray:  # [R]
        key = (block.width, block.ffn_ratio, own)
        if key not in layer:
            single = Block(width=block.width, ffn_ratio=block.ffn_ratio, depth=2, shared=True)
            ops = list(block_operators(single, space.head_size))
            half = len(ops) // 2
            layer[key] = np.array([measure(ops[:half] if own else ops[half:]) for measure in measures])
        return layer[key]

    def pair_use(build: Callable[[int, int], list[Operator]]) -> np.ndarray:  # [R, W, W]
        table = [[[measure(build(a, b)) for b in space.widths] for a in space.widths] for measure in measures]
        return np.array(table).reshape(len(measures), len(space.widths), len(space.widths))

    use = np.array([
        layer_use(block, True) + (block.depth - 1) * layer_use(block, not block.shared) for block in options
    ]).T.reshape(len(measures), len(options))
    step = pair_use(lambda before, after: list(transition_operators(before, after)))
    ends = pair_use(lambda first, last: list(end_operators(first, last, space.vocab)))
    return use, step, ends


def scaled(program: Program, fixed: np.ndarray) -> Program:
    """Divide by the limits, after making sure that the smallest decoder is within them."""
    _, least = program.evaluate(smallest_choice(program))
    too_small = [
        f"{option(name)} {limit + taken:g} is below {ceil_digits(need + taken):g}, the smallest that would do"
        f" ({LABELS[name]})"
        for name, limit, taken, need in zip(program.names, program.limits, fixed, least, strict=True)
        if need > limit
    ]
    if too_small:
        raise MerinoError(
            "no decoder of this space fits: " + "; ".join(too_small)
            + ". Raise that budget, or take fewer --blocks, a smaller --vocab or a shorter --context"
        )
    limits = program.limits[:, None]
    return replace(
        program,
        use=program.use / limits,
        step=program.step / limits[:, :, None],
        ends=program.ends / limits[:, :, None],
        peak=program.peak / limits,
    )


def smallest_choice(program: Program) -> tuple[int, ...]:
    """The decoder that is smallest in every budget: they grow with width, ratio and depth, and shrink by sharing."""
    sizes = [(block.width, block.ffn_ratio, block.depth, not block.shared) for block in program.options]
    return (sizes.index(min(sizes)),) * program.blocks


def ceil_digits(value: float, digits: int = 4) -> float:
    """Round up to four significant digits, so that the number told is one that does."""
    unit = 10.0 ** (np.floor(np.log10(value)) - digits + 1)
    return float(np.ceil(value / unit - 1e-9) * unit)


def architecture(space: Space, program: Program, choice: Sequence[int], context: int) -> Architecture:
    return Architecture(
        blocks=tuple(program.options[index] for index in choice),
        vocab=space.vocab,
        head_size=space.head_size,
        context=context,
    )
