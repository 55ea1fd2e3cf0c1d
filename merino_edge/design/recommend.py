"""Published models that fit a board's budgets, each in its best weight format, and designs for the same budgets.

All predictions assume this project's exporter and runtime, for the same inference shape.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from merino_edge.design.budgets import BUDGETS_BY_NAME, predictable, shares_over, surely_over
from merino_edge.design.design_file import Design
from merino_edge.design.designer import design
from merino_edge.design.score import MEASURED, existing_score
from merino_edge.design.space import SPACE, Space
from merino_edge.families.zoo import Model, load_models
from merino_edge.prediction.cost_model import CostModel, Predicted, cost_model
from merino_edge.prediction.formats import cache_on, formats_of, refused_words
from merino_edge.prediction.intervals import DEFAULT_CONFIDENCE
from merino_edge.prediction.limits import positive
from merino_edge.prediction.shape import InferenceShape, check_lengths
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.errors import MerinoError


@dataclass(frozen=True)
class Verdict:
    """One model in one weight format."""

    precision: str
    kv: str | None  # the cache's format
    predicted: Predicted
    over: dict[str, float]  # predicted value over limit, for each budget that it may exceed
    surely: bool  # whether it exceeds one even if the prediction is too high by its error
    refused: str  # why the board's runtime does not run the format; empty where it does

    @property
    def fits(self) -> bool:
        return not self.over and not self.refused

    @property
    def borderline(self) -> bool:
        """Only a measurement on the board can say whether it fits."""
        return bool(self.over) and not self.surely and not self.refused

    @property
    def excess(self) -> tuple[bool, bool, float]:
        """Sort key: distance from fitting."""
        return bool(self.refused), self.surely, max(self.over.values(), default=1.0)


@dataclass(frozen=True)
class Candidate:
    """A published model with a verdict per format, the backend's preferred one first."""

    model: Model
    long_enough: bool  # whether its context reaches the requested one
    verdicts: tuple[Verdict, ...]

    @property
    def fits(self) -> bool:
        return self.long_enough and any(verdict.fits for verdict in self.verdicts)

    @property
    def borderline(self) -> bool:
        return self.long_enough and not self.fits and self.chosen.borderline

    @property
    def chosen(self) -> Verdict:
        """The first format that fits; where none does, the nearest to fitting."""
        fitting = [verdict for verdict in self.verdicts if verdict.fits]
        return fitting[0] if fitting else min(self.verdicts, key=lambda verdict: verdict.excess)

    @property
    def entropy(self) -> float | None:
        """The search's score, in the chosen format."""
        return existing_score(self.model.geometry, MEASURED, self.chosen.precision, self.chosen.kv)


@dataclass(frozen=True)
class FormatDesign:
    """The design in one weight format; `reason`: why there is none."""

    precision: str
    design: Design | None
    reason: str = ""


@dataclass(frozen=True)
class Recommendation:
    device: str
    backend: str
    context: int
    prompt: int
    budget: dict[str, float]
    candidates: tuple[Candidate, ...]  # the best first
    designs: tuple[FormatDesign, ...]


def recommend(
    profile: DeviceProfile, limits: Mapping[str, float], *, context: int, prompt: int, space: Space = SPACE,
    confidence: float = DEFAULT_CONFIDENCE,
) -> Recommendation:  # fmt: skip
    """Every model of the zoo in every format of the profile's backend, judged by `limits`, and a design per format
    within the same limits.

    A model fits if the upper bounds of its prediction intervals at `confidence` keep the limits, and is refused if a
    lower bound breaks one; between them it is borderline. A design keeps the upper bounds.
    """
    formats = formats_of(profile)
    check_lengths(context, prompt)
    limits = predictable(limits, profile)
    if bad := [BUDGETS_BY_NAME[name].given(limit) for name, limit in limits.items() if not positive(limit)]:
        raise MerinoError(
            f"a budget must be a positive number, not {', '.join(bad)}: give a larger value or leave it out"
        )
    costs = [cost_model(profile, InferenceShape(precision, context, prompt), confidence) for precision in formats]
    candidates = [judge(model, costs, limits) for model in load_models()]
    designs = [design_at(model, limits, space) for model in costs]
    return Recommendation(
        device=profile.id, backend=profile.backend, context=context, prompt=prompt, budget=limits,
        candidates=ranked(candidates), designs=tuple(designs),
    )  # fmt: skip


def judge(model: Model, costs: Sequence[CostModel], limits: Mapping[str, float]) -> Candidate:
    """Predict the model in each format. `costs`: one cost model per weight format, with a float cache."""
    verdicts = []
    for floats in costs:
        profile, precision = floats.profile, floats.shape.precision
        shape = replace(floats.shape, kv=cache_on(profile, model.geometry, precision))
        predicted = cost_model(profile, shape, floats.confidence).predict(model.geometry.operators)
        over, surely = shares_over(limits, predicted), surely_over(limits, predicted)
        verdicts.append(Verdict(precision, shape.kv, predicted, over, surely, refused_words(profile, precision)))
    long_enough = model.geometry.context >= costs[0].shape.context
    return Candidate(model, long_enough, tuple(verdicts))


def design_at(costs: CostModel, limits: Mapping[str, float], space: Space) -> FormatDesign:
    shape, precision = costs.shape, costs.shape.precision
    if refused := refused_words(costs.profile, precision):
        return FormatDesign(precision, None, refused)
    try:
        return FormatDesign(precision, design(
            costs.profile, limits, space=space, context=shape.context, prompt=shape.prompt, precisions=[precision],
            confidence=costs.confidence,
        ))  # fmt: skip
    except MerinoError as error:
        return FormatDesign(precision, None, str(error))


def ranked(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Models that fit: those tuned to follow instructions first, by published score, then those without a score by
    size. Behind them the borderline ones likewise, then the others by distance from fitting."""

    def rank(candidate: Candidate) -> tuple[Any, ...]:
        model, score = candidate.model, candidate.model.ranking_score()
        if candidate.fits or candidate.borderline:
            size = candidate.chosen.predicted.params
            return candidate.borderline, not model.chat, score is None, -(score or 0.0), -size
        return 2, not candidate.long_enough, *candidate.chosen.excess

    return tuple(sorted(candidates, key=rank))
