"""The catalogue: `models.toml`, read into frozen models and judged as a whole.

Left to others: counts (`catalogue.geometry`), predictions (`design.costs`), verdicts (`design.recommend`).
"""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from merino_edge.families.uniform import Geometry
from merino_edge.storage.faults import fault_list
from merino_runtime.errors import MerinoError

FILE = "zoo.toml"

Task = Literal["hellaswag", "piqa", "winogrande", "openbookqa", "arc_easy", "arc_challenge", "arc_mean", "lambada"]
TASKS: tuple[Task, ...] = get_args(Task)
RANKING: tuple[Task, ...] = ("hellaswag", "piqa", "winogrande")  # what every source with more than one task has


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Parameters(_Facts):
    """As published. `exact`: counted to the last one; else a rounded figure."""

    value: Annotated[int, Field(gt=0)]
    exact: bool
    source: str


class Scores(_Facts):
    """Zero-shot accuracy in percent, all by one harness; `source` is the full reference."""

    source: str
    percent: dict[Task, Annotated[float, Field(gt=0, lt=100)]]


class Model(_Facts):
    """One published model. `source` is of the geometry; `note` for people; `scores` is None where we know of none."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9.-]+$")]
    name: str
    hub: str
    family: str
    geometry: Geometry
    source: str
    params: Parameters
    note: str = ""
    scores: Scores | None = None

    def ranking_score(self) -> float | None:
        """Mean of the tasks in RANKING, in percent; None where one is missing."""
        if self.scores is None or not set(RANKING) <= set(self.scores.percent):
            return None
        return sum(self.scores.percent[task] for task in RANKING) / len(RANKING)


class Catalogue(_Facts):
    schema_version: Annotated[int, Field(alias="schema", ge=1, le=1)]
    models: Annotated[tuple[Model, ...], Field(strict=False, min_length=1)]

    @model_validator(mode="after")
    def _ids_are_unique(self) -> Self:
        ids = [model.id for model in self.models]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"each id stands for one model, found twice: {', '.join(twice)}")
        return self


@cache
def load_models() -> tuple[Model, ...]:
    """The shipped catalogue, in the file's order."""
    return parse_catalogue((files("merino_edge.families") / FILE).read_text(encoding="utf-8"))


def parse_catalogue(text: str) -> tuple[Model, ...]:
    """The models in a catalogue's TOML. Raises MerinoError with all its faults."""
    try:
        raw = tomllib.loads(text)
        models = [_spread(raw, each) for each in raw.get("models", [])]
        return Catalogue.model_validate({"schema": raw.get("schema"), "models": models}).models
    except tomllib.TOMLDecodeError as error:
        raise MerinoError(f"the catalogue is not a TOML file: {error}") from error
    except ValidationError as error:
        raise MerinoError(f"the catalogue is not valid: {fault_list(error)}") from error


def model(name: str) -> Model:
    """A model by its id."""
    return next(each for each in load_models() if each.id == name)


def _spread(raw: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """One model with what its family says of all its members filled in, and its scores' source by its full name."""
    family = raw.get("families", {}).get(entry.get("family"), {})
    usual = {"position_offset": 0, "query_key_norm": False, "final_norm": True}
    geometry = {**usual, **family, **entry.get("geometry", {})}
    geometry.setdefault("kv_heads", geometry.get("heads"))
    geometry.setdefault("embed_width", geometry.get("width"))
    if "head_size" not in geometry and geometry.get("heads"):
        geometry["head_size"] = geometry["width"] // geometry["heads"]
    filled = {**entry, "geometry": geometry}
    if "scores" in entry:
        percent = dict(entry["scores"])
        key = percent.pop("source", None)
        filled["scores"] = {"source": raw.get("sources", {}).get(key), "percent": percent}
    return filled
