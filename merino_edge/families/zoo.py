"""The zoo: published models from `zoo.toml`, each with its geometry, parameters, scores and sources.

Each is of a family in the registry and has that family's own geometry. So it can be exported by its id.
"""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, ValidationInfo, model_validator

from merino_edge.families.geometry import Geometry
from merino_edge.families.registry import FAMILIES
from merino_edge.families.rotary import rope_facts
from merino_edge.storage.faults import fault_list
from merino_runtime.errors import MerinoError

FILE = "zoo.toml"

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


def _read_geometry(raw: Any, info: ValidationInfo) -> Geometry:
    """Validate a geometry with the class of the model's family, a field before it."""
    family = FAMILIES.get(info.data.get("family", ""))
    if family is None:
        raise ValueError(f"the family is not one of {', '.join(FAMILIES)}")
    try:
        return family.geometry.model_validate(raw)
    except ValidationError as error:
        raise ValueError(fault_list(error)) from None


class Model(_Facts):
    """One published model. `source` is the geometry's; `note` is for people; `scores` is None if none is known. `chat`:
    whether it was tuned to follow instructions; such models stand first."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9.-]+$")]
    name: str
    hub: str
    family: str
    geometry: Annotated[Geometry, PlainValidator(_read_geometry)]
    source: str
    params: Parameters
    note: str = ""
    chat: bool = False
    scores: Scores | None = None

    def ranking_score(self) -> float | None:
        """Mean accuracy in percent over the tasks in RANKING; None if one is missing."""
        if self.scores is None or not set(RANKING) <= set(self.scores.percent):
            return None
        return sum(self.scores.percent[task] for task in RANKING) / len(RANKING)


class Zoo(_Facts):
    schema_version: Annotated[int, Field(alias="schema", ge=1, le=1)]
    models: Annotated[tuple[Model, ...], Field(strict=False, min_length=1)]

    @model_validator(mode="after")
    def _ids_are_unique(self) -> Self:
        ids = [model.id for model in self.models]
        repeated = sorted({name for name in ids if ids.count(name) > 1})
        if repeated:
            raise ValueError(f"each id stands for one model, and occurs twice: {', '.join(repeated)}")
        return self


@cache
def load_models() -> tuple[Model, ...]:
    """Return all models, those that follow instructions first, else in the file's order."""
    models = parse_zoo((files("merino_edge.families") / FILE).read_text(encoding="utf-8"))
    return tuple(sorted(models, key=lambda model: not model.chat))


def parse_zoo(text: str) -> tuple[Model, ...]:
    """Return the models in the TOML of a zoo. Raise MerinoError with all its faults."""
    try:
        raw = tomllib.loads(text)
        models = [_with_family_switches(raw, entry) for entry in raw.get("models", [])]
        return Zoo.model_validate({"schema": raw.get("schema"), "models": models}).models
    except tomllib.TOMLDecodeError as error:
        raise MerinoError(f"{FILE} is not a TOML file: {error}. Correct it") from error
    except ValidationError as error:
        raise MerinoError(f"{FILE} is not valid: {fault_list(error)}. Correct it") from error


def model(name: str) -> Model:
    """Return a model by its id, which must exist."""
    return next(published for published in load_models() if published.id == name)


def exportable_models() -> dict[str, Model]:
    """Return the models by id."""
    return {published.id: published for published in load_models()}


def _with_family_switches(raw: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """Return one model of the file with what its family shares, the full reference of its scores, and the geometry's
    form of `rope_scaling`, which is written as in config.json."""
    filled = dict(entry)
    shared = raw.get("families", {}).get(entry.get("family"), {})
    filled["geometry"] = geometry = {**shared, **entry.get("geometry", {})}
    if "rope_scaling" in geometry:
        words = {"rope_theta": geometry["rope_theta"], **geometry["rope_scaling"]}
        turned = geometry.get("rotated", geometry["head_size"])
        filled["geometry"] = {**geometry, **rope_facts(words, turned, geometry["context"])}
    if "scores" in entry:
        percent = dict(entry["scores"])
        key = percent.pop("source", None)
        filled["scores"] = {"source": raw.get("sources", {}).get(key), "percent": percent}
    return filled
