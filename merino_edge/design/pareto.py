"""Pareto front of the measured score against one budget of a board: a proved optimum at each of a series of limits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import ROUND_CEILING, Context
from typing import Annotated

import numpy as np
from pydantic import Field

from merino_edge.design import encode
from merino_edge.design.budgets import (
    BUDGETS_BY_NAME,
    Budget,
    amount,
    board_defaults,
    known,
    requested,
    require_possible,
)
from merino_edge.design.constraints import leaves_residency, needs
from merino_edge.design.design_file import Design, QuantizedCache, Strict
from merino_edge.design.designer import check_request, design, open_variants
from merino_edge.design.existing import existing_score
from merino_edge.design.score import DEFAULT
from merino_edge.design.space import Space
from merino_edge.design.variants import Variant, encoded, in_regimes
from merino_edge.families import zoo
from merino_edge.prediction.cost_model import CostModel, Predicted, cost_model
from merino_edge.prediction.formats import formats_of
from merino_edge.prediction.intervals import DEFAULT_CONFIDENCE
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.profile import Backend, DeviceProfile
from merino_runtime.errors import MerinoError

SCHEMA = 3
MARKED = ("opt-125m", "opt-350m", "gpt2", "pythia-70m", "pythia-160m")
FEWEST, MOST = 2, 100  # points
COUNTED = 1.03  # largest overestimate of a search, which charges each block the dearest change of width


class Mark(Strict):
    """An existing model in the picture of the front, by the same score and predictions."""

    id: str
    name: str
    entropy: float
    predicted: Predicted


class Front(Strict):
    """pareto.json. `budget` holds at every point; `default_limit` is the board's own budget on the axis."""

    schema_version: Annotated[int, Field(alias="schema", ge=SCHEMA, le=SCHEMA)] = SCHEMA
    device: str
    device_name: str
    backend: Backend
    against: str
    precision: str
    kv: QuantizedCache | None = None  # the cache's format; None: that of the activations
    context: int
    prompt: int
    vocab: int
    budget: dict[str, float]
    default_limit: float
    points: tuple[Design, ...]  # rising limits
    models: tuple[Mark, ...]

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, indent=2) + "\n"


def front(
    profile: DeviceProfile,
    limits: Mapping[str, float],
    against: str,
    points: int,
    *,
    space: Space,
    context: int,
    prompt: int,
    precision: str | None = None,
    kv: str | None = None,
    confidence: float = DEFAULT_CONFIDENCE,
    progress: Callable[[float], None] = lambda _: None,
) -> Front:
    """The optimum at `points` limits on the budget `against`, log-spaced from the smallest decoder's value to the limit
    above which the optimum does not improve.

    `limits` apply at every point, and by default the board's own limit on memory; a memory axis ends at the board's
    free memory. The upper bound of a latency's prediction interval at `confidence` must meet the limit. `precision`: by
    default the backend's preferred one. `kv`: the format of the cache, by default that of the activations. `progress`
    gets each limit before it is solved.
    """
    precision = precision or formats_of(profile)[0]
    check_request(profile, precision, context, prompt, space.vocab, kv)
    if not FEWEST <= points <= MOST:
        raise MerinoError(f"--points {points} is not allowed: choose {FEWEST} to {MOST}")
    axis = BUDGETS_BY_NAME[against]
    if against in limits:
        raise MerinoError(f"{axis.option} is the axis of the front: leave it out, or choose another --against")
    if axis.default is None:
        raise MerinoError(
            f"{axis.option} is no axis of a front, since profiles have no limit on it: choose another --against"
        )
    fixed = always(requested(limits), profile, axis)

    def solve(ceilings: Mapping[str, float]) -> Design:
        return design(
            profile, ceilings, space=space, context=context, prompt=prompt, precision=precision, kv=kv,
            confidence=confidence,
        )  # fmt: skip

    model = cost_model(profile, InferenceShape(precision, context, prompt, kv), confidence)
    least = smallest_limit(against, open_variants(
        profile, replace(space, padded=True), context, prompt, (space.vocab,), (precision,), confidence, kv
    ))  # fmt: skip
    ceiling = axis.most(profile) if axis.most else None
    top = solve(fixed if ceiling is None else {**fixed, against: ceiling})
    designs = []
    for limit in log_spaced(least, COUNTED * amount(axis, top.predicted), points, ceiling):
        progress(limit)
        designs.append(solve({**fixed, against: limit}))
    return Front(
        device=profile.id,
        device_name=profile.name,
        backend=profile.backend,
        against=against,
        precision=precision,
        kv=kv,
        context=context,
        prompt=prompt,
        vocab=space.vocab,
        budget=fixed,
        default_limit=axis.default(profile),
        points=tuple(designs),
        models=marks(model, space.blocks),
    )


def always(limits: Mapping[str, float], profile: DeviceProfile, axis: Budget) -> dict[str, float]:
    """The limits at every point: the user's, and by default the board's own limit on memory."""
    own = {
        budget.name: budget.default(profile)
        for budget in board_defaults() if budget.default and budget.most and budget != axis
    }  # fmt: skip
    complete = known({**own, **limits})
    require_possible(complete, profile)
    return complete


def smallest_limit(name: str, variants: Sequence[Variant]) -> float:
    """The smallest limit on a budget at which a decoder fits."""
    smallest = []
    for variant in in_regimes(variants, {name: 1.0}):
        program = encoded(variant, {name: 1.0}, DEFAULT)
        amounts = encode.least(program)
        if not leaves_residency(program.constraints, amounts):
            smallest.append(needs(program.constraints, amounts)[name])
    return min(smallest)


def log_spaced(least: float, most: float, points: int, ceiling: float | None) -> list[float]:
    """Rising limits of four digits, at most `ceiling`; rounded up, so that the first decoder fits."""
    up = Context(prec=4, rounding=ROUND_CEILING)
    limits = [float(up.create_decimal(float(value))) for value in np.geomspace(least, max(least, most), points)]
    return sorted({limit if ceiling is None else min(limit, ceiling) for limit in limits})


def marks(model: CostModel, blocks: int) -> tuple[Mark, ...]:
    """The models of MARKED whose context is long enough."""
    models = []
    for each in map(zoo.model, MARKED):
        if each.geometry.context >= model.shape.context:
            predicted = model.predict(each.geometry.operators)
            entropy = existing_score(each.geometry, blocks, DEFAULT)
            assert entropy is not None, f"{each.id} has no score"
            models.append(Mark(id=each.id, name=each.name, entropy=entropy, predicted=predicted))
    return tuple(models)
