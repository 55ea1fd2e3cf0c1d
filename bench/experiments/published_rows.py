"""Read `device_profiles/published`: per board, the speeds that others published for it, and how each was measured.

A row is one speed of one phase. `use` is empty for a row that judges predictions, `fitted` for one that the profile was
set from, and `left out` for one whose setting is partly unknown; `note` says why. `bytes` is the size of the weights in
the file, `twice` says that the file holds a tied embedding twice, and `read_bytes` replaces both if the source counts
what a step reads. `tokens` is the length of the prompt, or of the answer.
"""

import json
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from merino_edge.families.geometry import Geometry
from merino_edge.families.registry import FAMILIES
from merino_edge.families.zoo import exportable_models

FOLDER = Path(__file__).resolve().parents[2] / "device_profiles" / "published"
SHORT = 128  # tokens, if the source does not state a length
# Bits per weight of files whose size the source does not state.
BITS = {"F16": 16, "Q8_0": 8.5, "Q6_K": 6.56, "Q5_K_M": 5.7, "Q4_K_M": 4.85, "Q4_0": 4.5, "IQ4_NL": 4.5, "q4f16_ft": 4}
# Models that are not in the catalog, by name.
GEOMETRIES = tomllib.loads(Path(__file__).with_name("geometries.toml").read_text())


class Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Source(Facts):
    """Where rows were published, and what they have in common."""

    url: str
    date: str
    engine: str
    version: str
    setting: str


class Row(Facts):
    """One published speed; the module's docstring defines the fields."""

    source: str
    model: str
    format: str
    bytes: Annotated[int, Field(gt=0)] | None = None
    read_bytes: Annotated[int, Field(gt=0)] | None = None
    twice: bool = False
    threads: Annotated[int, Field(gt=0)] | None = None
    backend: Literal["cpu", "gpu"] = "cpu"
    phase: Literal["decode", "prefill"]
    tokens: Annotated[int, Field(gt=0)] | None = None
    tok_s: Annotated[float, Field(gt=0, strict=False)]
    memory_clock: float = 1.0
    use: Literal["", "fitted", "left out"] = ""
    note: str = ""

    @model_validator(mode="after")
    def _setting_is_known(self) -> "Row":
        known = (self.threads or self.backend == "gpu") and self.model in {*exportable_models(), *GEOMETRIES}
        if self.use != "left out" and not (known and (self.bytes or self.read_bytes or self.format in BITS)):
            raise ValueError("a row of unknown threads, format or geometry is left out")
        if self.use == "left out" and not self.note:
            raise ValueError("a row that is left out says why")
        return self


class Board(Facts):
    schema_version: Annotated[int, Field(alias="schema", ge=1, le=1)]
    board: str
    rows: Annotated[tuple[Row, ...], Field(strict=False)]
    sources: dict[str, Source]

    @model_validator(mode="after")
    def _has_sources(self) -> "Board":
        if strangers := {row.source for row in self.rows} ^ set(self.sources):
            raise ValueError(f"sources and rows differ in {sorted(strangers)}")
        return self


def read_boards() -> list[Board]:
    """Return the boards with published speeds, by name."""
    return [Board.model_validate(tomllib.loads(path.read_text())) for path in sorted(FOLDER.glob("*.toml"))]


@cache
def geometry(model: str) -> Geometry:
    """Return the geometry of a row's model."""
    if model in GEOMETRIES:
        known = GEOMETRIES[model]
        return FAMILIES[known["family"]].geometry.model_validate_json(json.dumps(known["geometry"]))
    return exportable_models()[model].geometry


Key = tuple[str, str, str]  # board, backend, model


def halves(boards: list[Board]) -> tuple[set[Key], set[Key]]:
    """Split the models of each board and backend into those that profiles are fitted to and those that judge them.

    A model with a row that the profile was set from is fitted to. Then the models, those with most rows first, go to
    the half that has fewer rows so far, first to the fit.
    """
    fit, judge = set[Key](), set[Key]()
    for board in boards:
        used = [row for row in board.rows if row.use != "left out"]
        for backend in ("cpu", "gpu"):
            rows = Counter(row.model for row in used if row.backend == backend)
            set_from = {row.model for row in used if row.backend == backend and row.use == "fitted"}
            sizes = {True: 0, False: 0}  # by whether the half is fitted to
            for model in sorted(rows, key=lambda name: (name not in set_from, -rows[name], name)):
                fitted = model in set_from or sizes[True] <= sizes[False]
                sizes[fitted] += rows[model]
                (fit if fitted else judge).add((board.board, backend, model))
    return fit, judge
