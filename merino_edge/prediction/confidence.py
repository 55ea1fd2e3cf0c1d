"""The confidence of prediction intervals: its default and its range. Loads no pydantic, since the command line reads it
at its start."""

from merino_runtime.errors import MerinoError

DEFAULT_CONFIDENCE = 0.9
LEAST_CONFIDENCE, MOST_CONFIDENCE = 0.5, 0.999  # a probe's few decoders say nothing of rarer errors


def percent(confidence: float) -> str:
    return f"{100 * confidence:g}%"


ALLOWED = f"{percent(LEAST_CONFIDENCE)} to {percent(MOST_CONFIDENCE)}, such as {percent(DEFAULT_CONFIDENCE)}"


def check_confidence(confidence: float) -> None:
    """Raises MerinoError for a confidence that no interval is made for."""
    if not LEAST_CONFIDENCE <= confidence <= MOST_CONFIDENCE:
        raise MerinoError(f"--confidence {percent(confidence)} is not allowed: choose {ALLOWED}")
