"""Prediction intervals of latencies: the range of a measurement, at a confidence.

The profile has the distribution of the errors (`profiles.coefficients.LatencyError`, fitted by `calibration.errors`).
Imports no pydantic, since the command line imports the default and the range of the confidence at its start.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

from merino_runtime.errors import MerinoError

if TYPE_CHECKING:
    from merino_edge.profiles.coefficients import LatencyError

DEFAULT_CONFIDENCE = 0.8  # a tenth of the latencies lies above the upper bound, so nine budgets of ten are kept
LEAST_CONFIDENCE, MOST_CONFIDENCE = 0.5, 0.999  # a probe has too few decoders to estimate rarer errors

Interval = tuple[float, float]  # (low, high)


def percent(confidence: float) -> str:
    return f"{100 * confidence:g}%"


ALLOWED = f"{percent(LEAST_CONFIDENCE)} to {percent(MOST_CONFIDENCE)}, such as {percent(DEFAULT_CONFIDENCE)}"


def check_confidence(confidence: float) -> None:
    """Raise MerinoError for a confidence outside the range."""
    if not LEAST_CONFIDENCE <= confidence <= MOST_CONFIDENCE:
        raise MerinoError(f"a confidence of {percent(confidence)} is not allowed: choose {ALLOWED}")


class Factors(NamedTuple):
    """Prediction interval of measured / predicted latency, with equal probability below and above."""

    low: float
    high: float

    def of(self, predicted: float) -> Interval:
        return self.low * predicted, self.high * predicted


def factors(error: "LatencyError | None", confidence: float) -> Factors | None:
    """Return the two-sided interval of this confidence; None if no error was measured."""
    check_confidence(confidence)
    if error is None:
        return None
    from scipy.special import stdtrit  # reading a design needs no scipy

    half = error.scale * float(stdtrit(error.degrees_of_freedom, (1 + confidence) / 2))
    return Factors(math.exp(error.center - half), math.exp(error.center + half))
