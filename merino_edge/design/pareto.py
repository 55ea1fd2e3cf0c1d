"""The front of entropy against one budget of a board: the optimum at each of a series of limits, with its proof.

Left to others: the solver (`design.designer`), the picture (`front_plot`).
"""

from collections.abc import Callable
from dataclasses import replace
from decimal import ROUND_CEILING, Context
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from merino_edge.design.budget import Budgets, option
from merino_edge.design.designer import Design, Strict, check_request, design
from merino_edge.design.recommend import existing_entropy, measured
from merino_edge.design.space import Space
from merino_edge.families import zoo
from merino_edge.families.merino.architecture import Architecture, Block
from merino_edge.prediction.cost_model import CostModel, cost_model
from merino_edge.prediction.predicted import Predicted
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.errors import MerinoError

SCHEMA = 1
Axis = Literal["decode_ms", "memory_mb"]
MARKED = ("opt-125m", "opt-350m", "gpt2", "pythia-70m", "pythia-160m", "smollm-135m")
FEWEST, MOST = 2, 100  # points


class Mark(Strict):
    """An existing model beside the front, by the same score and the same predictions."""

    id: str
    name: str
    entropy: float
    predicted: Predicted


class Front(Strict):
    """pareto.json. `budget` holds at every point; `default_limit` is the board's own budget on the axis."""

    schema_version: Annotated[int, Field(alias="schema", ge=SCHEMA, le=SCHEMA)] = SCHEMA
    device: str
    device_name: str
    against: Axis
    precision: str
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
    budgets: Budgets,
    against: Axis,
    points: int,
    *,
    space: Space,
    context: int,
    prompt: int,
    precision: str = "fp32",
    progress: Callable[[float], None] = lambda _: None,
) -> Front:
    """The optimum at `points` limits on `against`, log-spaced from the smallest decoder to where more gives nothing.

    `budgets` hold at every point; without one on memory the board's own does, or all it has free where memory is the
    axis. `progress` is told each limit before it is solved.
    """
    check_request(precision, context, prompt, space.vocab)
    if not FEWEST <= points <= MOST:
        raise MerinoError(f"--points {points} is not allowed: choose {FEWEST} to {MOST}")
    if against in budgets.given():
        raise MerinoError(
            f"{option(against)} is what the front runs over: leave it out, or choose another --against"
        )
    fixed = always(budgets, profile, against)

    def solve(ceiling: Budgets) -> Design:
        return design(profile, ceiling, space=space, context=context, prompt=prompt, precision=precision)

    model = cost_model(profile, InferenceShape(precision, context, prompt))
    least = measured(model.predict(smallest(space, context).operators), against)
    ceiling = profile.memory.free_mb.value if against == "memory_mb" else None
    top = solve(fixed if ceiling is None else replace(fixed, memory_mb=ceiling))
    limits = spaced(least, getattr(top.predicted, against), points, ceiling)
    found = []
    for limit in limits:
        progress(limit)
        found.append(solve(replace(fixed, **{against: limit})))
    return Front(
        device=profile.id,
        device_name=profile.name,
        against=against,
        precision=precision,
        context=context,
        prompt=prompt,
        vocab=space.vocab,
        budget=fixed.given(),
        default_limit=getattr(profile.budget, against),
        points=tuple(found),
        models=marks(model, space.blocks),
    )


def always(budgets: Budgets, profile: DeviceProfile, against: Axis) -> Budgets:
    """What holds at every point. A decoder that does not fit the board's memory is no point of its front."""
    if against == "memory_mb":
        return budgets
    filled = budgets.with_board_defaults(profile)
    return filled if "decode_ms" in budgets.given() else replace(filled, decode_ms=None)


def smallest(space: Space, context: int) -> Architecture:
    block = Block(width=min(space.widths), ffn_ratio=min(space.ffn_ratios), depth=min(space.depths))
    return Architecture(
        blocks=(block,) * space.blocks, vocab=space.vocab, head_size=space.head_size, context=context
    )


def spaced(least: float, most: float, points: int, ceiling: float | None) -> list[float]:
    """Rising limits of four digits, rounded up so that what is meant to fit does, and never above `ceiling`."""
    up = Context(prec=4, rounding=ROUND_CEILING)
    limits = [float(up.create_decimal(float(value))) for value in np.geomspace(least, max(least, most), points)]
    return sorted({limit if ceiling is None else min(limit, ceiling) for limit in limits})


def marks(model: CostModel, blocks: int) -> tuple[Mark, ...]:
    """The models of MARKED whose context is long enough."""
    found = []
    for each in map(zoo.model, MARKED):
        if each.geometry.context >= model.shape.context:
            predicted = model.predict(each.geometry.operators)
            found.append(
                Mark(
                    id=each.id, name=each.name, entropy=existing_entropy(each.geometry, blocks), predicted=predicted
                )
            )
    return tuple(found)
