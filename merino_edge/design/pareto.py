"""Pareto front of the measured score against one budget of a board: the best decoder at each of a series of limits."""

from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Context
from typing import Annotated

import numpy as np
from pydantic import Field

from merino_edge.design.axes import vocabulary
from merino_edge.design.budgets import BUDGETS_BY_NAME, amount, requested, with_board_defaults
from merino_edge.design.design_file import Considered, Design, QuantizedCache, Strict
from merino_edge.design.designer import caches_of, cost_models, design
from merino_edge.design.enumeration import least_need
from merino_edge.design.existing import existing_score
from merino_edge.design.score import DEFAULT
from merino_edge.design.space import SPACE, Space
from merino_edge.families import zoo
from merino_edge.prediction.cost_model import CostModel, Predicted, cost_model
from merino_edge.prediction.formats import fast_formats
from merino_edge.prediction.intervals import DEFAULT_CONFIDENCE
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.profile import Backend, DeviceProfile
from merino_runtime.errors import MerinoError

SCHEMA = 4
MARKED = ("opt-125m", "opt-350m", "gpt2", "pythia-70m", "pythia-160m")


class Mark(Strict):
    """An existing model in the picture of the front, by the same score and predictions."""

    id: str
    name: str
    entropy: float
    predicted: Predicted


class Front(Strict):
    """pareto.json. `budget` holds at every point; `default_limit` is the board's own budget on the axis; `precision`
    and `kv` are the formats of the existing models, those of the last point."""

    schema_version: Annotated[int, Field(alias="schema", ge=SCHEMA, le=SCHEMA)] = SCHEMA
    device: str
    device_name: str
    backend: Backend
    against: str
    precision: str
    kv: QuantizedCache | None = None  # the cache's format; None: that of the activations
    context: int
    prompt: int
    considered: Considered
    budget: dict[str, float]
    default_limit: float
    points: tuple[Design, ...]  # rising limits
    models: tuple[Mark, ...]


def front(
    profile: DeviceProfile, limits: Mapping[str, float], against: str, points: int, *, context: int, prompt: int,
    space: Space = SPACE, vocabs: Sequence[int] = (), precisions: Sequence[str] = (),
    kvs: Sequence[str | None] | None = None, confidence: float = DEFAULT_CONFIDENCE,
) -> Front:  # fmt: skip
    """The best decoder at `points` limits on the budget `against`, log-spaced from the smallest decoder's value to the
    limit above which no decoder is better.

    `limits` apply at every point, and by default the board's own limit on memory; a memory axis ends at the board's
    free memory. `vocabs`, `precisions`, `kvs`, `confidence`: as of `design`.
    """
    vocabs, precisions = vocabs or vocabulary.VOCABS, precisions or fast_formats(profile)
    kvs = caches_of(profile) if kvs is None else kvs
    models = cost_models(profile, precisions, kvs, context, prompt, vocabs, confidence)
    axis = BUDGETS_BY_NAME[against]
    if against in limits:
        raise MerinoError(f"{axis.option} is the axis of the front: leave it out, or choose another --against")
    assert axis.default, f"{against}: an axis of a front is a budget on which profiles have a limit"
    fixed = with_board_defaults(requested(limits), profile, axis)

    def best(ceilings: Mapping[str, float]) -> Design:
        return design(
            profile, ceilings, context=context, prompt=prompt, space=space, vocabs=vocabs, precisions=precisions,
            kvs=kvs, confidence=confidence,
        )  # fmt: skip

    ceiling = axis.most(profile) if axis.most else None
    top = best(fixed if ceiling is None else {**fixed, against: ceiling})
    least = least_need(space, models, vocabs, fixed, against)
    rising = log_spaced(least, amount(axis, top.predicted), points, ceiling)
    shape = InferenceShape(top.precision, context, prompt, top.kv)
    return Front(
        device=profile.id, device_name=profile.name, backend=profile.backend, against=against,
        precision=top.precision, kv=top.kv, context=context, prompt=prompt, considered=top.considered, budget=fixed,
        default_limit=axis.default(profile), points=tuple(best({**fixed, against: limit}) for limit in rising),
        models=marks(cost_model(profile, shape, confidence)),
    )  # fmt: skip


def log_spaced(least: float, most: float, points: int, ceiling: float | None) -> list[float]:
    """Rising limits of four digits, at most `ceiling`; rounded up, so that the first decoder fits."""
    up = Context(prec=4, rounding=ROUND_CEILING)
    limits = [float(up.create_decimal(float(value))) for value in np.geomspace(least, max(least, most), points)]
    return sorted({limit if ceiling is None else min(limit, ceiling) for limit in limits})


def marks(model: CostModel) -> tuple[Mark, ...]:
    """The models of MARKED whose context is long enough."""
    shape, models = model.shape, []
    for marked in map(zoo.model, MARKED):
        if marked.geometry.context >= shape.context:
            score = existing_score(marked.geometry, DEFAULT, shape.precision, shape.kv)
            assert score is not None, "the measured score is defined for any decoder"
            predicted = model.predict(marked.geometry.operators)
            models.append(Mark(id=marked.id, name=marked.name, entropy=score, predicted=predicted))
    return tuple(models)
