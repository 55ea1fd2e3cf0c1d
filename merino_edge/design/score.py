"""The scores by name, with their constants: the measured law with the terms of all axes, and the paper's."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from merino_edge.design import law
from merino_edge.design.axes import attention, ffn, mixer, ngrams, taps, vocabulary, weight_format
from merino_edge.design.paper.score import MERINO, MerinoScoring
from merino_runtime.errors import MerinoError

CONSTANTS: dict[str, law.Constant] = {
    **law.CONSTANTS, **attention.CONSTANTS, **ffn.CONSTANTS, **vocabulary.CONSTANTS, **weight_format.CONSTANTS,
    **mixer.CONSTANTS, **taps.CONSTANTS, **ngrams.CONSTANTS,
}  # fmt: skip


class MeasuredScoring(BaseModel):
    """The default score, as stored in design.json. `constants`: by name, as in CONSTANTS."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["measured"] = "measured"
    constants: dict[str, float] = Field(default_factory=lambda: {name: one.value for name, one in CONSTANTS.items()})

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.constants.keys() != CONSTANTS.keys():
            odd = sorted(self.constants.keys() ^ CONSTANTS.keys())
            raise ValueError(f"constants must be {', '.join(CONSTANTS)}: {', '.join(odd)} is missing or unknown")
        if self.constants["alpha"] <= 0:
            raise ValueError(f"alpha {self.constants['alpha']} must be above 0")
        return self

    def having(self, **constants: float) -> "MeasuredScoring":
        """The same score with other values of some constants."""
        return MeasuredScoring(constants={**self.constants, **constants})


MEASURED = MeasuredScoring()
Scoring = MeasuredScoring | MerinoScoring
DEFAULT = MEASURED  # what `design` maximizes unless --score is given
SCORES: dict[str, Scoring] = {scoring.name: scoring for scoring in (MEASURED, MERINO)}


def score_named(name: str) -> Scoring:
    """Raises MerinoError for a name that is not in the table."""
    if name not in SCORES:
        raise MerinoError(f"--score {name} is not known: choose one of {', '.join(SCORES)}")
    return SCORES[name]
