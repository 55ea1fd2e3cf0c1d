"""When a predicted amount keeps a limit: the one rule that searches, refusals, verdicts and predictions share."""

import math

TOLERANCE = 1e-12  # relative: the same terms summed in another order differ by less


def positive(limit: float) -> bool:
    """Whether a limit can be kept at all: neither NaN, infinite, zero nor negative."""
    return math.isfinite(limit) and limit > 0


def most_within(limit: float) -> float:
    """The largest amount that keeps `limit`."""
    return limit * (1 + TOLERANCE)


def within(amount: float, limit: float) -> bool:
    """Whether `amount` keeps `limit`; nothing keeps a limit that is not positive."""
    return positive(limit) and amount <= most_within(limit)
