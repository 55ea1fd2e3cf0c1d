"""The best decoder of the paper's space, by integer programs.

The paper searches by evolution, which proves nothing. Here one binary for each block and option chooses the blocks, and
variables for pairs of widths follow from them. Each option is charged with what it costs in its place. A solution is
checked by the cost model and cut off if it exceeds a limit within the solver's tolerance. What the solver does not
settle leaves a gap.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp

from merino_edge.design.budgets import BUDGETS_BY_NAME, amount, refusal, shares_over
from merino_edge.design.costs import KV_BYTES, OPENING_MB, READ_MB, WEIGHTS_MB, AtThreads, Costs, table
from merino_edge.design.paper.score import MerinoScoring, total_score
from merino_edge.design.paper.space import PaperSpace
from merino_edge.families.designed import Architecture, Block, block_operators, end_operators, transition_operators
from merino_edge.families.operators import Operator, embed
from merino_edge.prediction.cost_model import CostModel
from merino_edge.profiles.coefficients import MEMORY
from merino_runtime.io.board import MB

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
    """The variables of a program: for each block its options, then for each two neighbors and for the two ends the
    pairs of widths that they may have. N variables, Q columns of `costs`."""

    option: np.ndarray  # its index in the space; -1, -2 ...: a pair of widths, by the two blocks that it joins [N]
    blocks: np.ndarray  # of an option its block, twice; of a pair those of its two sides [N, 2]
    widths: np.ndarray  # likewise [N, 2]
    score: np.ndarray  # [N]
    amounts: np.ndarray  # [N, Q]
    peak: np.ndarray  # MB of the largest activations [N]


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
    # Shared layers take less memory, and layers of their own may take less time: of each block either may be smaller.
    smallest = [
        space.architecture(blocks, model.shape.context) for blocks in product(space.smallest(), repeat=space.blocks)
    ]
    fitting = [arch for arch in smallest if keeps(arch, model, limits)]
    if not fitting:
        predicted = [(arch, one) for arch in smallest for one in model.predict_each(arch.operators)]
        needs = [[amount(BUDGETS_BY_NAME[name], one) for _, one in predicted] for name in limits]
        words = f"vocabulary {space.vocab}, {model.shape.precision}"
        raise refusal(limits, np.array(needs), lambda index: f"{predicted[index][0].shape()}, {words}", model.profile)
    variables, options = variables_of(space, model, scoring), space.options()
    phases = len({BUDGETS_BY_NAME[name].phase for name in limits} - {None})
    cases = [rows_of(variables, model, case, limits, phases) for case in cases_of(model, phases)]
    programs = [Program(variables, *rows) for rows in cases if rows is not None]
    known = total_score(fitting[0].blocks, space.head_size, scoring)
    best = Solution(fitting[0], known, known)
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
        return table(model, operators, prefill=True).sum(axis=0)

    @cache
    def of_block(block: Block, last: bool) -> np.ndarray:
        if block.depth <= 3:
            return total(list(block_operators(block, space.head_size, last=last)))
        two, three = (of_block(block.model_copy(update={"depth": depth}), last) for depth in (2, 3))
        return two + (block.depth - 2) * (three - two)  # each further layer costs the same

    def peak(block: Block) -> float:
        return model.on.activation_mb(list(block_operators(block.model_copy(update={"depth": 1}), space.head_size)))

    options, last, none = space.options(), space.blocks - 1, np.zeros(total([embed(2, 32)]).shape)
    pairs = [(low, high) for low in space.widths for high in space.widths if low <= high <= space.growth * low]
    # Of each variable: option, blocks, widths, score, amounts, peak.
    listed: list[tuple[int, tuple[int, int], tuple[int, int], float, np.ndarray, float]] = []
    for index, block in enumerate(options):
        score, width = total_score([block], space.head_size, scoring), (block.width, block.width)
        listed += [
            (index, (place, place), width, score, of_block(block, place == last), peak(block))
            for place in range(last + 1)
        ]
    for place in range(last):
        steps = [list(transition_operators(*pair)) for pair in pairs]
        listed += [
            (-1 - place, (place, place + 1), pair, 0.0, total(step) if step else none, 0.0)
            for pair, step in zip(pairs, steps, strict=True)
        ]
    listed += [(-1 - last, (0, last), pair, 0.0, total(list(end_operators(*pair, space.vocab))), 0.0) for pair in pairs]
    return Variables(*(np.array(part) for part in zip(*listed, strict=True)))


def cases_of(model: CostModel, phases: int) -> list[Case]:
    """Every case that a search must try. `phases`: how many of decode and prefill have a limit on their latency. Two
    thread counts take more memory, and serve only limits on both."""
    threads = model.thread_counts
    if not phases:
        return [Case(0, 0, math.inf)]
    return [
        Case(decode, prefill, most_mb)
        for decode, one in enumerate(threads) for prefill, other in enumerate(threads)
        if phases == 2 or decode == prefill
        for most_mb in [*sorted({one.resident_mb, one.streaming_mb, other.resident_mb} - {0.0}), math.inf]
    ]  # fmt: skip


class Piece(Costs):
    """Costs of variables in a case, by the first or the second of two sums: a step in a partial residency with a share
    of its reads from memory or with none, memory at the end of a prompt or while the backend opens."""

    def __init__(self, model: CostModel, amounts: np.ndarray, peak: np.ndarray, case: Case, first: bool):
        super().__init__(model, lambda number: amounts[:, number], peak)
        self.case, self.first = case, first

    def _missed(self, threads: int) -> np.ndarray:
        at = self.model.thread_counts[threads]
        if self.first and at.resident_mb < self.case.most_mb <= at.streaming_mb:
            return np.asarray(at.streaming_mb / (at.streaming_mb - at.resident_mb))
        return np.asarray(float(self.case.most_mb > at.streaming_mb))

    def _decode_ms(self, threads: int) -> np.ndarray:
        """In a partial residency reads up to the resident edge are spared, once in a decoder."""
        at = self.model.thread_counts[threads]
        partial = self.first and at.resident_mb < self.case.most_mb <= at.streaming_mb
        spared_ms = at.resident_mb * MB * 1e-9 * at.us_per_unit[MEMORY] if partial else 0.0
        return super()._decode_ms(threads) - self.model.upper_decode * self._missed(threads) * spared_ms

    def _memory_mb(self, sessions: int) -> np.ndarray:
        others = (sessions - 1) * self.column(WEIGHTS_MB) + self.model.on.runtime_mb
        in_use = self.column(WEIGHTS_MB) + self.column(KV_BYTES) / MB + self.peak
        return others + (in_use if self.first else self.column(OPENING_MB))


def rows_of(
    variables: Variables, model: CostModel, case: Case, limits: Mapping[str, float], phases: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Shares of each limit's room that variables take, and that a MB of activations takes. [limits, N] and [limits].
    None if there is no room."""
    nothing, none, one = np.zeros_like(variables.amounts), 0 * variables.peak, 1 + 0 * variables.peak

    def of(name: str, first: bool, amounts: np.ndarray, peak: np.ndarray) -> np.ndarray:
        at = AtThreads(Piece(model, amounts, peak, case, first), case.decode, case.prefill)
        return np.broadcast_to(BUDGETS_BY_NAME[name].of(at), peak.shape)

    rows, per_mb = [], []
    for name, limit in limits.items():
        for first in (True, False):
            fixed = of(name, first, nothing, none)  # of any decoder, however small
            if limit <= fixed[0]:
                return None
            rows.append((of(name, first, variables.amounts, none) - fixed) / (limit - fixed))
            per_mb.append((of(name, first, nothing, one) - fixed)[0] / (limit - fixed[0]))
    if phases and math.isfinite(case.most_mb):
        rows.append(variables.amounts[:, READ_MB] / case.most_mb)
        per_mb.append(0.0)
    return np.array(rows), np.array(per_mb)


class Program:
    """The integer program of a case: a binary for each option that fits alone and that no other of its width dominates
    in its place, a variable for each pair of widths, and the MB of the largest activations."""

    def __init__(self, variables: Variables, rows: np.ndarray, per_mb: np.ndarray):
        costs, alone = np.concatenate([rows, variables.peak[None]]), (rows <= 1 + ROUNDING).all(axis=0)
        kept = [np.flatnonzero(variables.option < 0)]
        for block, width in np.unique(np.stack([variables.blocks[:, 0], variables.widths[:, 0]]), axis=1).T:
            place = (variables.blocks[:, 0] == block) & (variables.widths[:, 0] == width) & (variables.option >= 0)
            kept.append(undominated(variables.score, costs, np.flatnonzero(place & alone)))
        variables = Variables(*(part[np.concatenate(kept)] for part in variables))
        option, blocks, widths = variables.option, variables.blocks, variables.widths
        own, count = option >= 0, len(option)
        one = [own & (blocks[:, 0] == block) for block in range(blocks.max() + 1)]
        # A pair of widths is chosen where the block on each of its sides has that width.
        links = [
            1.0 * ((option == pair) & (widths[:, side] == width))
            - (own & (blocks[:, 0] == blocks[option == pair][0, side]) & (widths[:, 0] == width))
            for pair in np.unique(option[~own]) for side in (0, 1) for width in np.unique(widths)
        ]  # fmt: skip
        use = np.concatenate([rows[:, np.concatenate(kept)], per_mb[:, None]], axis=1)
        peaks = [np.append(np.where(block, variables.peak, 0), -1) for block in one]
        self.option, self.scale = np.append(option, -1), float(variables.score.max(initial=0)) or 1.0
        self.objective = np.append(-variables.score / self.scale, 0)
        self.constraints = [
            LinearConstraint(np.pad(np.array(one, float), ((0, 0), (0, 1))), 1, 1),
            LinearConstraint(np.pad(np.reshape(links, (-1, count)), ((0, 0), (0, 1))), 0, 0),
            LinearConstraint(use, -np.inf, 1), LinearConstraint(np.array(peaks), -np.inf, 0),
        ]  # fmt: skip

    def run(self, *, integer: bool) -> OptimizeResult:
        """Without HiGHS's presolve, which calls some programs infeasible that have an optimum."""
        binary = self.option >= 0
        return milp(
            self.objective, integrality=binary if integer else None, bounds=Bounds(0, np.where(binary, 1, np.inf)),
            constraints=self.constraints, options={"mip_rel_gap": 0.0, "presolve": False},
        )  # fmt: skip

    def relaxed(self) -> float:
        """A bound of the score, by the linear relaxation."""
        result = self.run(integer=False)
        if result.status == OPTIMAL:
            return -result.fun * self.scale
        return -math.inf if result.status == INFEASIBLE else math.inf

    def solve(self, keeps: Callable[[list[int]], bool]) -> tuple[list[int] | None, float]:
        """The options of the best blocks that keep the limits, and a bound of the score. None if none are known."""
        for _ in range(MOST_CUTS):
            result = self.run(integer=True)
            if result.status != OPTIMAL:
                return None, -math.inf if result.status == INFEASIBLE else math.inf
            chosen = (self.option >= 0) & (result.x > 0.5)
            if keeps(self.option[chosen].tolist()):
                return self.option[chosen].tolist(), (ABSOLUTE_GAP - result.mip_dual_bound) * self.scale
            self.constraints.append(LinearConstraint(1.0 * chosen[None], -np.inf, chosen.sum() - 1))
        return None, math.inf


def undominated(score: np.ndarray, costs: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Members that no other dominates in score and every cost: the better one can replace it, since its neighbors
    depend on its width only. costs: [rows, N]"""
    keep: list[int] = []
    for index in members[np.argsort(-score[members], kind="stable")].tolist():
        if not (costs[:, keep] <= costs[:, index, None]).all(axis=0).any():
            keep.append(index)
    return np.array(keep, int)
