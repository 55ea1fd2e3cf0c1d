"""The zoo: published models from `zoo.toml`, each with its geometry, parameters, scores and sources.

Each is of a family in the registry and has that family's own geometry. So it can be exported by its id.
"""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationInfo

from merino_edge.families.geometry import Geometry
from merino_edge.families.registry import FAMILIES
from merino_edge.families.rotary import rope_facts

Task = Literal["hellaswag", "piqa", "winogrande", "openbookqa", "arc_easy", "arc_challenge", "arc_mean", "lambada"]
RANKING: tuple[Task, ...] = ("hellaswag", "piqa", "winogrande")  # in every source that has several tasks


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Parameters(_Facts):
    """The number of parameters as published; `exact` where it is not rounded."""

    value: Annotated[int, Field(gt=0)]
    exact: bool
    source: str


class Scores(_Facts):
    """Zero-shot accuracy in percent, measured by one harness; `source` is the full reference."""

    source: str
    percent: dict[Task, Annotated[float, Field(gt=0, lt=100)]]


def geometry_of_family(raw: Any, info: ValidationInfo) -> Geometry:
    """Validate a geometry with the class of the model's family, a field before it."""
    return FAMILIES[info.data["family"]].geometry.model_validate(raw)


class Model(_Facts):
    """One published model. `source` is the geometry's; `note` is for people; `scores` is None if none is known. `chat`:
    whether it was tuned to follow instructions; such models stand first. `use`: what its card says that it can do, and
    in which languages."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9.-]+$")]
    name: str
    hub: str
    family: str
    geometry: Annotated[Geometry, PlainValidator(geometry_of_family)]
    source: str
    params: Parameters
    note: str = ""
    chat: bool = False
    use: str = ""
    scores: Scores | None = None

    def ranking_score(self) -> float | None:
        """Mean accuracy in percent over the tasks in RANKING; None if one is missing."""
        if self.scores is None or not set(RANKING) <= set(self.scores.percent):
            return None
        return sum(self.scores.percent[task] for task in RANKING) / len(RANKING)


@cache
def load_models() -> tuple[Model, ...]:
    """Return all models, those that follow instructions first, else in the file's order."""
    raw = tomllib.loads((files("merino_edge.families") / "zoo.toml").read_text(encoding="utf-8"))
    models = [Model.model_validate(with_family_switches(raw, entry)) for entry in raw["models"]]
    return tuple(sorted(models, key=lambda model: not model.chat))


def model(name: str) -> Model:
    """Return a model by its id, which must exist."""
    return next(published for published in load_models() if published.id == name)


def exportable_models() -> dict[str, Model]:
    """Return the models by id."""
    return {published.id: published for published in load_models()}


def with_family_switches(raw: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """Return one model of the file with what its family shares, the full reference of its scores, and the geometry's
    form of `rope_scaling`, which is written as in config.json."""
    filled = dict(entry)
    filled["geometry"] = geometry = {**raw["families"].get(entry["family"], {}), **entry["geometry"]}
    if "rope_scaling" in geometry:
        words = {"rope_theta": geometry["rope_theta"], **geometry["rope_scaling"]}
        turned = geometry.get("rotated", geometry["head_size"])
        filled["geometry"] = {**geometry, **rope_facts(words, turned, geometry["context"])}
    if "scores" in entry:
        percent = dict(entry["scores"])
        key = percent.pop("source")
        filled["scores"] = {"source": raw["sources"][key], "percent": percent}
    return filled
