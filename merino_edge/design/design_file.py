"""design.json: the request, the design and how it was solved. Reading one needs no solver."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from merino_edge.design.score import Scoring
from merino_edge.families.designed import Architecture
from merino_edge.prediction.cost_model import Predicted
from merino_edge.profiles.coefficients import Dialect
from merino_edge.profiles.profile import Backend
from merino_edge.storage.faults import fault_list, refuse_other_schema
from merino_runtime.bundle import QUANTIZED_CACHES
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json, read_json_and_text

SCHEMA = 6
DESIGN = "design.json"  # the usual name; in a checkpoint's folder the one that it was trained from


def quantized(kv: str) -> str:
    if kv not in QUANTIZED_CACHES:
        raise ValueError(f"must be {' or '.join(QUANTIZED_CACHES)}, or null")
    return kv


QuantizedCache = Annotated[str, AfterValidator(quantized)]


class Strict(BaseModel):
    """A file or a part of one: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, indent=2) + "\n"


class Solver(Strict):
    """How the design was found. `bound`: no decoder of the space within the limits has a higher score; `gap`: (bound -
    score) / score. Both are None if nothing was proved. `members`: the number of decoders that were looked at, if all
    were."""

    name: Literal["enumeration", "integer program"]
    gap: float | None
    bound: float | None
    seconds: float
    seed: int
    members: int | None = None


class Considered(Strict):
    """The vocabularies and the formats of weights and cache that were searched; null: the format of the activations."""

    vocab: list[int]
    precision: list[str]
    kv: list[QuantizedCache | None]


class Ratio(Strict):
    """Predicted loss of the design relative to OPT-350M's geometry; low, high: the extremes over the ends of the
    intervals of the score's constants."""

    value: float
    low: float
    high: float


class Training(Strict):
    """The text that a decoder of this size wants."""

    tokens: float | None  # of the text, as given; None: unknown
    right_tokens: float  # for which this size is best, each seen once
    bytes_per_token: float  # of English text with a vocabulary of this size
    most_weights: float | None  # parameters that the given text can train
    most_weights_interval: tuple[float, float] | None  # what they may be
    hours: float | None = None  # of training on this machine, as given


class Design(Strict):
    """design.json, as the next stages read it."""

    schema_version: Annotated[int, Field(alias="schema", ge=SCHEMA, le=SCHEMA)] = SCHEMA
    device: str
    backend: Backend  # of the predicted costs
    dialect: Dialect  # of the graph that they are of
    architecture: Architecture
    precision: str
    kv: QuantizedCache | None = None  # the cache's format; None: that of the activations
    prompt: int
    budget: dict[str, float]  # as requested
    predicted: Predicted
    entropy: float  # the score, in its unit
    scoring: Annotated[Scoring, Field(discriminator="name")]
    loss_ratio: Ratio | None = None  # of the measured score only
    training: Training
    considered: Considered
    solver: Solver


def load_design(path: Path) -> Design:
    """Raises MerinoError with all faults of the file at once, or only for its schema where that is another."""
    content, text = read_json_and_text(str(path), "`merino-edge design -o design.json` writes one.")
    device = content.get("device", "ID") if isinstance(content, dict) else "ID"
    refuse_other_schema(content, SCHEMA, str(path), "merino-edge", "design", "--board", str(device), "-o", str(path))
    try:
        return Design.model_validate_json(text)
    except ValidationError as error:
        raise MerinoError(f"{path} is not a design.json: {fault_list(error)}. Correct it") from error


def read_plan(path: Path) -> Design | Architecture:
    """A design.json, or an architecture object alone. Raises MerinoError where the file is neither."""
    content = read_json(str(path), "Give a model that `merino-edge export` takes, or a design.json.")
    if isinstance(content, dict) and not content.keys().isdisjoint(("architecture", "schema")):
        return load_design(path)
    try:
        return Architecture.model_validate(content)
    except ValidationError as error:
        raise MerinoError(
            f"{path} is neither a design.json nor an architecture: {fault_list(error)}. Correct it"
        ) from error
