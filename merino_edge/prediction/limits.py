"""Decide whether a predicted amount meets a limit: one rule for searches, refusals, verdicts and predictions. Imports
no pydantic, because the command line imports it at its start."""

import math
from typing import Any

TOLERANCE = 1e-12  # relative: the same terms summed in another order differ by less
# The watts of the whole busy board, which a limit on energy needs: paths in the profile's file.
WATTS = {"onnxruntime": "power.stress_w", "tensorrt": "performance.tensorrt.busy_w"}


def positive(limit: float) -> bool:
    """Return whether a limit can be met at all: not NaN, infinite, zero or negative."""
    return math.isfinite(limit) and limit > 0


def most_within(limit: Any) -> Any:
    """Return the largest amount that meets `limit`, a number or an array."""
    return limit * (1 + TOLERANCE)


def within(amount: float, limit: float) -> bool:
    """Return whether `amount` meets `limit`; no amount meets a limit that is not positive."""
    return positive(limit) and bool(amount <= most_within(limit))
