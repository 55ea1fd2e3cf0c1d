"""What a user may leave open beside the decoder itself: vocabulary and weight format; one variant per combination.

Each variant is a space and a workload of its own, solved by itself; the one of most worth (`credit`) wins.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from merino_edge.design import exact
from merino_edge.design.budget import Budgets, broken, positive, refusal
from merino_edge.design.credit import credit
from merino_edge.design.entropy import Scoring
from merino_edge.design.measures import ALSO, with_demands
from merino_edge.design.space import Program, Solution, Space, least, scaled, tabulate
from merino_edge.families.operators import CPU_FORMATS, FAST_ISA
from merino_edge.prediction.cost_model import CostModel, Regime, cost_model
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.board import ARM_FEATURES, X86_FEATURES
from merino_runtime.errors import MerinoError

NARROW = 256  # below this width a head has 32 channels, so that a layer keeps at least a few heads (ours)
MOST_VARIANTS = 64

Solve = Callable[[Program, float], Solution | None]  # a program and a score that is to be exceeded


@dataclass(frozen=True)
class Variant:
    """One combination of what was left open, with the decoders to choose from and what they are to run.

    `regime`: under which their costs add up; a search tries all.
    """

    space: Space
    model: CostModel
    regime: Regime | None = None  # None: any

    @property
    def precision(self) -> str:
        return self.model.shape.precision

    @property
    def credit(self) -> float:
        return credit(self.space.vocab, self.precision)


class Found(NamedTuple):
    """The decoder of most worth: which variant's, its program and the choice in it."""

    variant: Variant
    program: Program
    solution: Solution

    @property
    def worth(self) -> float:
        return self.solution.score * self.variant.credit


def combinations(
    space: Space, profile: DeviceProfile, shape: InferenceShape, vocabs: Sequence[int], precisions: Sequence[str]
) -> list[Variant]:
    """A variant per vocabulary and format, the largest and the finest first: they win where nothing else decides."""
    if len(vocabs) * len(precisions) > MOST_VARIANTS:
        raise MerinoError(f"{len(vocabs)} vocabularies x {len(precisions)} formats: give at most {MOST_VARIANTS}")
    return [
        Variant(replace(space, vocab=vocab), cost_model(profile, replace(shape, precision=precision)))
        for precision in sorted(set(precisions), key=list(CPU_FORMATS).index)
        for vocab in sorted(set(vocabs), reverse=True)
    ]


def fast_formats(profile: DeviceProfile) -> list[str]:
    """The formats that the board's runtime does not refuse as slow."""
    return [precision for precision in CPU_FORMATS if not missing_isa(profile, precision)]


def missing_isa(profile: DeviceProfile, precision: str) -> tuple[str, ...]:
    """What the format needs of the board's own architecture and the board lacks: the runtime's rule."""
    known = {"aarch64": ARM_FEATURES, "x86_64": X86_FEATURES}.get(profile.arch, {})
    return tuple(name for name in FAST_ISA[precision] if name in known.values() and name not in profile.isa)


def search(
    variants: Sequence[Variant],
    given: Mapping[str, float],
    scoring: Scoring,
    solve: Solve,
) -> Found:
    """The best of the variants that fit. Raises MerinoError where none does.

    The one that may be worth most is solved first, and one that cannot be worth more than what is known not at all.
    """
    best: Found | None = None
    fitting = encode_all(variants, given, scoring)
    bounds = [variant.credit * exact.upper_bound(program) for variant, program in fitting] if len(fitting) > 1 else [0]
    for index in sorted(range(len(fitting)), key=lambda index: -bounds[index]):
        if best and bounds[index] <= best.worth:
            break
        variant, program = fitting[index]
        floor = best.worth / variant.credit if best else -float("inf")
        found = settle(variant, program, given, scoring, solve, floor)
        if found and (best is None or found.worth > best.worth):
            best = found
    assert best is not None
    return best


def encode_all(
    variants: Sequence[Variant], given: Mapping[str, float], scoring: Scoring
) -> list[tuple[Variant, Program]]:
    """The variants whose smallest decoder keeps all budgets, ready to solve. Raises MerinoError where none does."""
    needs: list[dict[str, float]] = []
    fitting: list[tuple[Variant, Program]] = []
    for variant in in_regimes(variants, given):
        limits, program = tabulated(variant, given, scoring)
        need = least(program)
        if not broken(limits, need):
            fitting.append((variant, scaled(program, limits)))
        if "cache_mb" not in broken(limits, need):  # else the smallest decoder is in another regime
            needs.append(of_budgets(need))
    if not fitting:
        raise refusal(given, needs)
    return fitting


def of_budgets(need: Mapping[str, float]) -> dict[str, float]:
    """What budgets must allow: the largest of the sums that one limits (`with_demands`)."""
    return {
        name: max(value, *(need.get(f"{also}{name}", value) for also in ALSO)) for name, value in need.items()
    }


def in_regimes(variants: Sequence[Variant], given: Mapping[str, float]) -> list[Variant]:
    """Each variant once for each regime that the budgets tell apart."""
    return [
        replace(variant, regime=regime)
        for variant in variants
        for regime in ([variant.regime] if variant.regime else telling_regimes(variant.model, given))
    ]


def telling_regimes(model: CostModel, budgets: Mapping[str, float]) -> list[Regime]:
    """Of regimes that budgets of these names do not tell apart, one: with one thread count, memory is least."""
    decode, prefill = bool({"decode_ms", "j_per_token"} & set(budgets)), "prefill_ms" in budgets
    single = [regime for regime in model.regimes() if regime.sessions == 1]
    if not decode and not prefill:
        return single[-1:]
    return model.regimes() if decode and prefill else single


def tabulated(
    variant: Variant, given: Mapping[str, float], scoring: Scoring
) -> tuple[dict[str, float], Program]:
    """What is demanded of the variant's decoders in its regime, and the program before those limits are known."""
    assert variant.regime is not None
    limits = with_demands(given, variant.model, variant.regime, variant.space.largest_table)
    return limits, tabulate(variant.space, tuple(limits), variant.model, scoring, variant.regime)


def settle(
    variant: Variant, program: Program, given: Mapping[str, float], scoring: Scoring,
    solve: Solve, floor: float,
) -> Found | None:
    """Solve as it stands; where that leads to narrow blocks, solve again with smaller heads, if those fit."""
    solution = solve(program, floor)
    if solution is None:
        return None
    found = Found(variant, program, solution)
    narrowest = min(program.options[index].width for index in solution.choice)
    size = variant.space.narrow_head_size
    if narrowest >= NARROW or size is None or size == variant.space.head_size:
        return found
    smaller = replace(variant, space=replace(variant.space, head_size=size))
    limits, program = tabulated(smaller, given, scoring)
    if broken(limits, least(program)):  # more heads have more scores to hold
        return found
    program = scaled(program, limits)
    solution = solve(program, floor)
    return None if solution is None else Found(smaller, program, solution)


def asked_budgets(
    named: Mapping[str, float | None], variants: Sequence[Variant], profile: DeviceProfile, scoring: Scoring
) -> Budgets:
    """The budgets as a user gave them, with the board's own where it gave none.

    Raises MerinoError for one that is no positive number; it names the smallest value that would do instead.
    """
    given = {name: value for name, value in named.items() if value is not None}
    if all(positive(value) for value in given.values()):
        return Budgets(**given).with_board_defaults(profile)
    rest = Budgets(**{name: value for name, value in given.items() if positive(value)}).with_board_defaults(profile)
    given = {**rest.given(), **{name: value for name, value in given.items() if not positive(value)}}
    wanted = {name: value if positive(value) else 1e-9 for name, value in given.items()}
    tried = [tabulated(each, wanted, scoring) for each in in_regimes(variants, wanted)]
    needs = [(limits, least(program)) for limits, program in tried]
    raise refusal(given, [of_budgets(need) for limits, need in needs if "cache_mb" not in broken(limits, need)])
