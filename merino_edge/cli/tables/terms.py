"""Words of tables for what is not said anywhere else on the screen: how to read a shape, what entropy is, whose costs
these are."""

from collections.abc import Callable
from typing import NamedTuple

from merino_edge.design.law import MeasuredScoring
from merino_edge.design.score import Scoring
from merino_edge.profiles.profile import DeviceProfile

SHAPE = (
    "shape: width x FFN ratio x layers of each block; k: heads of keys and values, where queries have more; s: the"
    " block's layers share their weights"
)
ENTROPY = "entropy: what the search maximises, in nats of randomly drawn layers, weighted: see docs/search.md"
LAW = (
    "effective weights x effectiveness: twice as much is 2^-alpha of the loss, by a law measured on published decoders:"
    " see docs/search.md"
)


class ScoreTerms(NamedTuple):
    """How a score is spoken of: in a sentence, in a row of a table, its amounts, what it means."""

    name: str
    row: str
    amount: Callable[[float], str]
    meaning: str


def score_terms(scoring: Scoring) -> ScoreTerms:
    if isinstance(scoring, MeasuredScoring):
        name = "effective weights x effectiveness"
        return ScoreTerms(name, name, lambda value: f"{value / 1e6:,.1f} M", LAW)
    return ScoreTerms("entropy", "entropy (weighted nats)", lambda value: f"{value:,.0f}", ENTROPY)


def on_backend(profile: DeviceProfile, name: str) -> str:
    """The board, by its name or id; where it has several backends, with the one that the costs are of."""
    return f"{name} on {profile.backend}" if len(profile.backends) > 1 else name


def other_backends(profile: DeviceProfile) -> str:
    """How to ask for the costs in the board's other backends; nothing where it has one alone."""
    others = [f"--backend {name}" for name in profile.backends if name != profile.backend]
    return f" ({', '.join(others)} for the other)" if others else ""
