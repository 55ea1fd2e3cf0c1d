"""Search over vocabulary and weight format: one variant per combination, the highest comparison score wins.

Each variant has its own space and cost model and is solved separately. The comparison score is score x bytes of text
per token x equivalent share of parameters (own choice). The score of a decoder ignores vocabulary and format, so under
any limit the smallest vocabulary and the fewest bits would win. Three measured effects oppose that. A token of a larger
vocabulary is more text. Under the measured law, an embedding smaller than the best one raises the loss. Fewer bits
raise the perplexity. The measurements are in docs/search.md.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from merino_edge.design import exact
from merino_edge.design.budgets import refusal
from merino_edge.design.constraints import kept, leaves_residency, needs, regimes
from merino_edge.design.encode import least, tabulate
from merino_edge.design.exact import Answer
from merino_edge.design.law import LAYER_WEIGHTS, MeasuredScoring
from merino_edge.design.program import Program, Solution, scaled
from merino_edge.design.score import Scoring
from merino_edge.design.space import Space
from merino_edge.prediction.cost_model import CostModel, cost_model
from merino_edge.prediction.formats import formats_of
from merino_edge.prediction.latency import Regime
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.errors import MerinoError

NARROW = 256  # below this width heads have 32 channels, so that a layer has more than a few (own choice)
MOST_VARIANTS = 64

Solve = Callable[[Program, float], Answer]  # of a program and a floor, the score to exceed
# Bytes of held-out text per token: byte-level BPE trained on 13 MB of stories and novels, the mean over three texts
# (bench/experiments/fertility.py, bench/results/fertility.json). 257 entries are the bytes and an end of text.
BYTES_PER_TOKEN = {
    257: 1.0, 512: 2.1328, 1024: 2.7057, 2048: 3.1278, 4096: 3.4567, 8192: 3.7294, 16384: 3.9204, 32768: 4.0643,
    50257: 4.1648,
}  # fmt: skip
# Perplexity of the embedded model in each format, 20,000 held-out tokens, the board's runtime.
PERPLEXITY = {"fp32": 9.727, "int8": 9.731, "int4": 9.926}
LOSS_EXPONENT = 0.076  # loss falls with parameters to this power (Kaplan et al. 2020, arXiv 2001.08361)
# Weights of the best embedding beside N others: BEST_EMBEDDING (N / OTHER_WEIGHTS)^EMBEDDING_EXPONENT. Decoders of 33 M
# weights and more, trained with equal compute (Tao et al. 2024, arXiv 2407.13623).
BEST_EMBEDDING, OTHER_WEIGHTS, EMBEDDING_EXPONENT = 3.15e6, 33e6, 0.835


def bytes_per_token(vocab: int) -> float:
    """Bytes of text per token, linear in the logarithm of the vocabulary between the measured sizes, and constant
    beyond the largest."""
    sizes = sorted(BYTES_PER_TOKEN)
    size = min(max(vocab, sizes[0]), sizes[-1])
    above = next(index for index, known in enumerate(sizes) if known >= size)
    low, high = sizes[max(0, above - 1)], sizes[above]
    part = math.log(size / low) / math.log(high / low) if high > low else 1.0
    return BYTES_PER_TOKEN[low] + part * (BYTES_PER_TOKEN[high] - BYTES_PER_TOKEN[low])


def equivalent_parameters(precision: str, exponent: float = LOSS_EXPONENT) -> float:
    """Share of a model's parameters at which a float32 model has the same loss as the model in this format.

    0.997 for int8, 0.890 for int4; 1 for a format whose perplexity was not measured.
    """
    full = math.log(PERPLEXITY["fp32"])
    return (full / math.log(PERPLEXITY.get(precision, PERPLEXITY["fp32"]))) ** (1 / exponent)


def comparison_factor(vocab: int, precision: str, exponent: float = LOSS_EXPONENT) -> float:
    """Bytes of text per token, times the format's equivalent share. `exponent`: of the law of loss."""
    return bytes_per_token(vocab) * equivalent_parameters(precision, exponent)


def embedding_share(vocab: int, weights: float, law: MeasuredScoring) -> float:
    """Share of its effective weights at which a decoder of the best vocabulary has the same loss.

    (n / n*)^(n* / N) for an embedding of n weights where n* are best, 1 above n*: the only power of n whose optimum, at
    equal total weights, is the published n* (own choice). The embedding is as wide as the law's best decoder of N
    weights, so that the share depends on N only.
    """
    width = (weights * math.exp(law.aspect) / LAYER_WEIGHTS) ** (1 / 3)  # N = 12 E^2 D, E / D = e^a*
    best = BEST_EMBEDDING * (weights / OTHER_WEIGHTS) ** EMBEDDING_EXPONENT
    return min(1.0, vocab * width / best) ** (best / weights)


@dataclass(frozen=True)
class Variant:
    """One vocabulary and weight format. `regime`: in which its costs are additive; a search tries all."""

    space: Space
    model: CostModel
    regime: Regime | None = None  # None: any
    law: MeasuredScoring | None = None  # by which the score counts weights; None: the score is an entropy

    @property
    def precision(self) -> str:
        return self.model.shape.precision

    def compared(self, score: float) -> float:
        """The comparison score of a score; it is monotonic."""
        if score <= 0:
            return 0.0
        exponent = self.law.alpha if self.law else LOSS_EXPONENT
        share = embedding_share(self.space.vocab, score, self.law) if self.law else 1.0
        return score * comparison_factor(self.space.vocab, self.precision, exponent) * share

    def score_of(self, compared: float) -> float:
        """The inverse of `compared`."""
        low, high = 0.0, 1.0
        while self.compared(high) < compared:
            low, high = high, 2 * high
        while low < (middle := (low + high) / 2) < high:
            low, high = (middle, high) if self.compared(middle) < compared else (low, middle)
        return high


class Optimum(NamedTuple):
    """The decoder of highest comparison score. `bound`: upper bound of it over all variants."""

    variant: Variant
    program: Program
    solution: Solution
    bound: float

    @property
    def proved(self) -> bool:
        """Whether it is the best of all variants."""
        return self.bound <= self.comparison_score

    @property
    def comparison_score(self) -> float:
        return self.variant.compared(self.solution.score)


def combinations(
    space: Space, profile: DeviceProfile, shape: InferenceShape, vocabs: Sequence[int], precisions: Sequence[str],
    confidence: float, law: MeasuredScoring | None = None,
) -> list[Variant]:
    """A variant per vocabulary and format, the largest vocabulary and the backend's preferred format first: the first
    wins a tie."""
    if len(vocabs) * len(precisions) > MOST_VARIANTS:
        raise MerinoError(f"{len(vocabs)} vocabularies x {len(precisions)} formats: give at most {MOST_VARIANTS}")
    return [
        Variant(
            replace(space, vocab=vocab), cost_model(profile, replace(shape, precision=precision), confidence),
            law=law,
        )
        for precision in sorted(set(precisions), key=formats_of(profile).index)
        for vocab in sorted(set(vocabs), reverse=True)
    ]


def search(variants: Sequence[Variant], limits: Mapping[str, float], scoring: Scoring, solve: Solve) -> Optimum:
    """The best decoder of all variants within `limits`. Raises MerinoError where none fits.

    Branch and bound over the variants: the most promising one is solved first, and one whose bound is not above the
    best known comparison score is not solved at all.
    """
    best: Optimum | None = None
    proved = 0.0  # no decoder of the solved variants has a higher comparison score than this or the best
    fitting = encode_all(variants, limits, scoring)
    outlooks = [exact.outlook(program) if len(fitting) > 1 else exact.Outlook(0, math.inf) for _, program in fitting]
    for index in sorted(range(len(fitting)), key=lambda index: -fitting[index][0].compared(outlooks[index].promise)):
        variant, program = fitting[index]
        if best and variant.compared(outlooks[index].bound) <= best.comparison_score:
            continue
        floor = variant.score_of(best.comparison_score) if best else -float("inf")
        solved = solve_variant(variant, program, limits, scoring, solve, floor)
        proved = max(proved, variant.compared(solved.answer.bound))
        if solved.answer.solution is None:
            continue
        candidate = Optimum(solved.variant, solved.program, solved.answer.solution, 0.0)
        if best is None or candidate.comparison_score > best.comparison_score:
            best = candidate
    assert best is not None
    known = best.comparison_score
    return best._replace(bound=proved if proved > known * (1 + exact.ROUNDING) else known)


def encode_all(
    variants: Sequence[Variant], limits: Mapping[str, float], scoring: Scoring
) -> list[tuple[Variant, Program]]:
    """The programs of all variants and regimes whose smallest decoder fits, without dominated regimes, in which no
    decoder costs less than in another. Raises MerinoError where there is none."""
    needed: list[dict[str, float]] = []
    fitting: list[tuple[Variant, Program]] = []
    for variant in in_regimes(variants, limits):
        program = encoded(variant, limits, scoring)
        amounts = least(program)
        if kept(program.constraints, amounts):
            fitting.append((variant, scaled(program)))
        if not leaves_residency(program.constraints, amounts):  # else another regime covers it
            needed.append(needs(program.constraints, amounts))
    if not fitting:
        raise refusal(limits, needed, variants[0].model.profile)
    return [
        (variant, program) for index, (variant, program) in enumerate(fitting)
        if not any(
            same_decoders(variant, other) and no_cheaper(program, better)
            and (place < index or not no_cheaper(better, program))  # of equal ones the first stays
            for place, (other, better) in enumerate(fitting) if place != index
        )
    ]  # fmt: skip


def same_decoders(one: Variant, other: Variant) -> bool:
    """Whether they differ in the regime only."""
    return (one.space, one.precision) == (other.space, other.precision)


def no_cheaper(program: Program, other: Program) -> bool:
    """Whether each decoder takes at least as much of each limit as in the other program: then the other is enough."""
    first, second = ([(each.budget, each.limit) for each in which.constraints] for which in (program, other))
    return first == second and all(
        bool((one >= two).all()) for one, two in zip(costs(program), costs(other), strict=True)
    )


def costs(program: Program) -> tuple[np.ndarray, ...]:
    return program.use, program.peak, program.step, program.ends


def in_regimes(variants: Sequence[Variant], limits: Mapping[str, float]) -> list[Variant]:
    """Each variant in each regime to try."""
    return [
        replace(variant, regime=regime)
        for variant in variants
        for regime in ([variant.regime] if variant.regime else regimes(variant.model, limits))
    ]


def encoded(variant: Variant, limits: Mapping[str, float], scoring: Scoring) -> Program:
    """The variant's program in the budgets' units, feasible or not."""
    assert variant.regime is not None
    return tabulate(variant.space, limits, variant.model, scoring, variant.regime)


class Solved(NamedTuple):
    """The answer of `solve` for a variant, and the program that was solved."""

    variant: Variant
    program: Program
    answer: Answer


def solve_variant(
    variant: Variant, program: Program, limits: Mapping[str, float], scoring: Scoring, solve: Solve, floor: float
) -> Solved:
    """Solve the program. If the result has narrow blocks, solve again with smaller heads, if a decoder then fits."""
    solved = Solved(variant, program, solve(program, floor))
    size = variant.space.narrow_head_size
    if solved.answer.solution is None or size is None or size == variant.space.head_size:
        return solved
    if min(program.options[index].width for index in solved.answer.solution.choice) >= NARROW:
        return solved
    smaller = replace(variant, space=replace(variant.space, head_size=size))
    program = encoded(smaller, limits, scoring)
    if not kept(program.constraints, least(program)):  # more heads have more scores to hold
        return solved
    program = scaled(program)
    answer = solve(program, floor)
    if not solved.answer.proved:  # with the true optimum the heads might have stayed as they were
        answer = answer._replace(bound=max(answer.bound, solved.answer.bound))
    return Solved(smaller, program, answer)
