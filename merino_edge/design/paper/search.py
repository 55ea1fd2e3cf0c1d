"""The best decoder of the paper's space, by integer programs.

The paper searches by evolution, which proves nothing. Here one binary for each block and option chooses the blocks, and
variables for pairs of widths follow from them. Each option is charged with what it costs in its place. A solution is
checked by the cost model and cut off if it exceeds a limit within the solver's tolerance. What the solver does not
settle leaves a gap.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache, lru_cache, partial
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp

from merino_edge.design import costs as columns
from merino_edge.design.budgets import BUDGETS_BY_NAME, Budget, amount, refusal, shares_over
from merino_edge.design.paper.score import MerinoScoring, total_score
from merino_edge.design.paper.space import PaperSpace
from merino_edge.families.designed import Architecture, Block, block_operators, end_operators, transition_operators
from merino_edge.families.operators import Operator
from merino_edge.prediction.cost_model import CostModel
from merino_edge.profiles.coefficients import MEMORY
from merino_runtime.io.board import MB as BYTES_PER_MB

ROUNDING = 1e-9  # relative difference up to which scores count as equal
ABSOLUTE_GAP = 1e-6  # of the objective, at which HiGHS stops and calls its solution optimal
MOST_CUTS = 200
OPTIMAL, INFEASIBLE = 0, 2  # milp's status; 1, 3 and 4 (a limit, unbounded, other) settle nothing


class Solution(NamedTuple):
    """The best known decoder; no decoder of the space within the limits scores more than `bound`."""

    architecture: Architecture
    score: float
    bound: float


class Variables(NamedTuple):
    """The variables of a program: for each block its options, then for each two neighbors and for the two ends the pairs
    of widths that they may have. N variables, Q columns of `costs`.

    Attributes:
        option: index of the option in the space; -1, -2 ...: a pair of widths, by the two blocks that it joins. [N]
        blocks, widths: of an option its block and its width, twice; of a pair those of its two sides. [N, 2]
        score, amounts, peak: peak is in MB, of the largest activations. [N], [N, Q], [N]
    """

    option: np.ndarray
    blocks: np.ndarray
    widths: np.ndarray
    score: np.ndarray
    amounts: np.ndarray
    peak: np.ndarray


class Case(NamedTuple):
    """Thread counts, by their index, and a range of a step's reads, which ends at `most_mb`.

    In a case each cost is the larger of two sums over the variables. In the range that a decoder's reads lie in, these
    are its costs exactly; in a higher range they are no lower.
    """

    decode: int
    prefill: int
    most_mb: float


def solve(space: PaperSpace, model: CostModel, limits: Mapping[str, float], scoring: MerinoScoring) -> Solution:
    """The decoder of highest score within `limits`. Raises MerinoError if there is none."""
    smallest = space.architecture((space.smallest(),) * space.blocks, model.shape.context)
    if not keeps(smallest, model, limits):
        needs = [[amount(BUDGETS_BY_NAME[name], one) for one in model.predict_each(smallest.operators)] for name in limits]
        words = f"{smallest.shape()}, vocabulary {space.vocab}, {model.shape.precision}"
        raise refusal(limits, np.array(needs), lambda _: words, model.profile)
    variables, options = variables_of(space, model, scoring), space.options()
    phases = len({BUDGETS_BY_NAME[name].phase for name in limits} - {None})
    programs = [program_of(variables, rows) for case in cases_of(model, phases) if (
        rows := rows_of(variables, model, case, limits, phases)) is not None]  # fmt: skip
    known = total_score(smallest.blocks, space.head_size, scoring)
    best = Solution(smallest, known, known)
    for relaxed, program in sorted(((program.relaxed(), program) for program in programs), key=lambda pair: -pair[0]):
        picked, bound = None, relaxed
        if relaxed > best.score * (1 + ROUNDING):
            picked, bound = program.solve(lambda chosen: keeps(built(space, options, chosen, model), model, limits))
        best = best._replace(bound=max(best.bound, min(bound, relaxed)))
        if picked is not None:
            arch = built(space, options, picked, model)
            score = total_score(arch.blocks, space.head_size, scoring)
            best = Solution(arch, score, max(best.bound, score)) if score > best.score else best
    return best


def keeps(arch: Architecture, model: CostModel, limits: Mapping[str, float]) -> bool:
    """Whether a decoder keeps the limits at some thread counts, by the cost model itself."""
    return any(not shares_over(limits, predicted) for predicted in model.predict_each(arch.operators))


def built(space: PaperSpace, options: list[Block], picked: list[int], model: CostModel) -> Architecture:
    return space.architecture(tuple(options[index] for index in picked), model.shape.context)


@lru_cache(maxsize=8)
def variables_of(space: PaperSpace, model: CostModel, scoring: MerinoScoring) -> Variables:
    def total(operators: list[Operator]) -> np.ndarray:
        return columns.table(model, operators, prefill=True).sum(axis=0)

    @cache
    def of_block(block: Block, last: bool) -> np.ndarray:
        if block.depth <= 3:
            return total(list(block_operators(block, space.head_size, last=last)))
        two, three = (of_block(block.model_copy(update={"depth": depth}), last) for depth in (2, 3))
        return two + (block.depth - 2) * (three - two)  # each further layer costs the same

    def peak(block: Block) -> float:
        return model.activation_mb(list(block_operators(block.model_copy(update={"depth": 1}), space.head_size)))

    options, ends = space.options(), [(low, high) for low in space.widths for high in space.widths]
    scores = [total_score([block], space.head_size, scoring) for block in options]
    peaks = [peak(block) for block in options]
    # (option, blocks, widths, score, amounts, peak) of each variable
    listed: list[tuple[int, tuple[int, int], tuple[int, int], float, np.ndarray, float]] = []
    for place in range(space.blocks):
        last = place == space.blocks - 1
        listed += [
            (index, (place, place), (block.width, block.width), scores[index], of_block(block, last), peaks[index])
            for index, block in enumerate(options)
        ]  # fmt: skip
    none = np.zeros(len(listed[0][4]))
    for place in range(space.blocks - 1):
        steps = [(pair, list(transition_operators(*pair))) for pair in ends if pair[0] <= pair[1] <= space.growth * pair[0]]
        listed += [
            (-1 - place, (place, place + 1), pair, 0.0, total(operators) if operators else none, 0.0) for pair, operators in steps
        ]
    listed += [
        (-space.blocks, (0, space.blocks - 1), pair, 0.0, total(list(end_operators(*pair, space.vocab))), 0.0)
        for pair in ends if pair[0] <= pair[1] <= space.growth * pair[0]
    ]  # fmt: skip
    return Variables(*(np.array(part) for part in zip(*listed, strict=True)))


def cases_of(model: CostModel, phases: int) -> list[Case]:
    """Every case that a search must try. `phases`: how many of decode and prefill have a limit on their latency. Two
    thread counts take more memory, and serve only limits on both."""
    threads = model.on.thread_counts
    if not phases:
        return [Case(0, 0, math.inf)]
    return [
        Case(decode, prefill, most_mb)
        for decode, one in enumerate(threads) for prefill, other in enumerate(threads)
        if phases == 2 or decode == prefill
        for most_mb in [*sorted({one.resident_mb, one.streaming_mb, other.resident_mb} - {0.0}), math.inf]
    ]  # fmt: skip


def rows_of(
    variables: Variables, model: CostModel, case: Case, limits: Mapping[str, float], phases: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Shares of each limit's room that variables take, and those that their activations take, of which the largest
    counts. [limits, N] twice. None if there is no room."""
    rows, peaks, nothing = [], [], np.zeros_like(variables.amounts)
    for name, limit in limits.items():
        for first in (True, False):
            one = partial(linear, model, case, BUDGETS_BY_NAME[name], first)
            room = limit - float(one(nothing[0], fixed=True))
            if room <= 0:
                return None
            rows.append(one(variables.amounts) / room)
            peaks.append(one(nothing, peak=variables.peak) / room)
    if phases and math.isfinite(case.most_mb):
        rows.append(variables.amounts[:, columns.READ_MB] / case.most_mb)
        peaks.append(0 * variables.peak)
    return np.array(rows), np.array(peaks)


def linear(
    model: CostModel, case: Case, budget: Budget, first: bool, amounts: np.ndarray, *, peak: np.ndarray | float = 0.0,
    fixed: bool = False,
) -> np.ndarray:  # fmt: skip
    """A budget's amounts by the first or the second of the two sums: memory at the end of a prompt or while the backend
    opens, a step with a share of its reads from memory or with none. amounts: [..., Q]; returns [...].

    `peak`: MB of activations, at the end of a prompt. `fixed`: with what any decoder takes, however small; in a partial
    residency reads up to the resident edge are spared.
    """
    threads = model.on.thread_counts
    one, other = threads[case.decode], threads[case.prefill]
    step, whole = columns.LATENCIES + 2 * case.decode, columns.LATENCIES + 2 * (len(threads) + case.prefill)
    share, spared_ms = float(case.most_mb > one.streaming_mb), 0.0
    if one.resident_mb < case.most_mb <= one.streaming_mb and first:
        share = one.streaming_mb / (one.streaming_mb - one.resident_mb)
        spared_ms = share * one.resident_mb * BYTES_PER_MB * 1e-6 * one.us_per_unit[MEMORY] / 1e3
    decode_ms = model.upper_decode * (amounts[..., step] + share * amounts[..., step + 1] - fixed * spared_ms)
    prefill_ms = amounts[..., whole] + (case.most_mb > other.resident_mb) * amounts[..., whole + 1]
    weights, opening = amounts[..., columns.WEIGHTS_MB], amounts[..., columns.OPENING_MB]
    peaked = weights + amounts[..., columns.KV_BYTES] / BYTES_PER_MB + peak if first else opening
    return np.asarray(budget.of(SimpleNamespace(
        decode_ms=decode_ms, prefill_ms=model.upper_prefill * prefill_ms,
        memory_mb=(case.decode != case.prefill) * weights + peaked + fixed * model.runtime_mb,
        flops_g=amounts[..., columns.FLOPS] / 1e9, params=amounts[..., columns.PARAMS],
        weight_bytes=amounts[..., columns.WEIGHT_BYTES], kv_bytes=amounts[..., columns.KV_BYTES],
        file_mb=amounts[..., columns.FILE_MB] + fixed * model.file_mb(()),
        j_per_token=(model.joules(1.0) or 0.0) * decode_ms,
    )))  # fmt: skip


class Program(NamedTuple):
    """An integer program: the variables, then the peak of each limit. `option`: -1 for those that are no option."""

    option: np.ndarray
    objective: np.ndarray
    constraints: list[LinearConstraint]
    scale: float  # the score of an objective of -1

    def run(self, cuts: list[LinearConstraint], *, integer: bool) -> OptimizeResult:
        """Without HiGHS's presolve, which calls some programs infeasible that have an optimum."""
        binary = self.option >= 0
        return milp(
            self.objective, integrality=binary if integer else None, bounds=Bounds(0, np.where(binary, 1, np.inf)),
            constraints=[*self.constraints, *cuts], options={"mip_rel_gap": 0.0, "presolve": False},
        )  # fmt: skip

    def relaxed(self) -> float:
        """A bound of the score, by the linear relaxation."""
        result = self.run([], integer=False)
        if result.status == OPTIMAL:
            return -result.fun * self.scale
        return -math.inf if result.status == INFEASIBLE else math.inf

    def solve(self, keeps: Callable[[list[int]], bool]) -> tuple[list[int] | None, float]:
        """The options of the best blocks that keep the limits, and a bound of the score. None if none are known."""
        cuts: list[LinearConstraint] = []
        while len(cuts) < MOST_CUTS:
            result = self.run(cuts, integer=True)
            if result.status != OPTIMAL:
                return None, -math.inf if result.status == INFEASIBLE else math.inf
            chosen = np.flatnonzero((self.option >= 0) & (result.x > 0.5))
            picked = self.option[chosen].tolist()
            if keeps(picked):
                return picked, (ABSOLUTE_GAP - result.mip_dual_bound) * self.scale
            cuts.append(LinearConstraint(np.isin(np.arange(len(self.option)), chosen)[None].astype(float), -np.inf, len(chosen) - 1))
        return None, math.inf


def program_of(variables: Variables, case: tuple[np.ndarray, np.ndarray]) -> Program:
    """The program of a case, of the options that fit alone and that no other of the same width dominates in their
    place."""
    alone = (variables.option >= 0) & (case[0] <= 1 + ROUNDING).all(axis=0)
    kept = np.concatenate([np.flatnonzero(variables.option < 0), *(
        undominated(variables, np.concatenate(case), np.flatnonzero(alone & (variables.blocks[:, 0] == block)))
        for block in range(variables.blocks.max() + 1)
    )]).astype(int)  # fmt: skip
    option, blocks, widths, score = (part[kept] for part in variables[:4])
    rows, peaks = (part[:, kept] for part in case)
    limits, own = len(rows), option >= 0
    one = [own & (blocks[:, 0] == block) for block in range(blocks.max() + 1)]
    # A pair of widths is chosen where the block on each of its sides has that width.
    links = [
        ((option == pair) & (widths[:, side] == width)).astype(float)
        - (own & (blocks[:, 0] == blocks[option == pair][0, side]) & (widths[:, 0] == width))
        for pair in np.unique(option[~own]) for side in (0, 1) for width in np.unique(widths)
    ]
    tops = [
        np.concatenate([np.where(one[block], peaks[row], 0), -np.eye(limits)[row]])
        for row in range(limits) for block in range(len(one)) if peaks[row].any()
    ]  # fmt: skip

    def padded(matrix: list[np.ndarray]) -> np.ndarray:
        return np.pad(np.array(matrix, float), ((0, 0), (0, limits)))

    constraints = [
        LinearConstraint(padded(one), 1, 1), LinearConstraint(np.concatenate([rows, np.eye(limits)], axis=1), -np.inf, 1),
        *([LinearConstraint(padded(links), 0, 0)] if links else []),
        *([LinearConstraint(np.array(tops), -np.inf, 0)] if tops else []),
    ]  # fmt: skip
    scale = float(score.max(initial=0.0)) or 1.0
    return Program(
        np.concatenate([option, np.full(limits, -1)]), np.concatenate([-score / scale, np.zeros(limits)]), constraints, scale
    )


def undominated(variables: Variables, costs: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Members that no other of the same width dominates in score and every cost: the better one can replace it, since
    its neighbors depend on its width only. costs: [rows, N]"""
    keep: list[int] = []
    for width in np.unique(variables.widths[members, 0]):
        same = members[variables.widths[members, 0] == width]
        kept = np.empty((0, len(costs)))
        for index in same[np.argsort(-variables.score[same], kind="stable")].tolist():
            if not (kept <= costs[:, index]).all(axis=1).any():
                kept = np.concatenate([kept, costs[:, index][None]])
                keep.append(index)
    return np.array(keep)
