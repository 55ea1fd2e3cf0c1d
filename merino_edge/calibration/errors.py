"""Fit the errors of predictions of held-out decoders, as a distribution per weight format and phase.

A search prefers decoders that are predicted too fast. So the errors of decoders that a search picked are used, and the
probe's own decoders only if too few of those were measured.

log(measured / predicted) = center + scale x Student's t, fitted by maximum likelihood (Lange, Little and Taylor,
"Robust statistical modeling using the t distribution", JASA 84, 1989). Its tails absorb rows that another program
disturbed, which would widen a normal distribution for all. Formats with few decoders share one distribution. Scale and
degrees of freedom are those of a prediction interval (Hahn and Meeker, "Statistical Intervals", 1991). The sample size
is the number of decoders, because rows of one decoder are not independent.
"""

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

import numpy as np
from scipy.stats import t

from merino_edge.calibration.fit import Decoder, DesignTime, Row, ThreadFit, shape_of
from merino_edge.calibration.probe import Measurement, Probe, facts
from merino_edge.profiles.coefficients import FORMS

PHASES = ("decode", "prefill")
LEAST_DECODERS = 3  # of one format; fewer give no distribution
LEAST_ALONE = 7  # decoders of one format for a distribution of its own
TAILS = (3.0, 4.0, 6.0, 9.0, 15.0, 30.0)  # degrees of freedom to try
TURNS = 100  # of expectation maximization
LEAST_SCALE = 1e-4  # coefficients have four digits

Errors = dict[Decoder, list[float]]  # log(measured / predicted) by decoder


def latency_errors(fits: Mapping[int, ThreadFit], probes: Sequence[Probe]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return format -> `decode_error`, `prefill_error` -> keys of `LatencyError`, if it could be fitted.

    fits: of each thread count, to the joined probes. A row of several probes gives one error per probe, so that
    differences between probes widen the interval.
    """
    # 1. The ms of each row of a whole decoder, one per probe.
    measured_ms: dict[tuple[Any, ...], list[float]] = {}
    for row in (row for probe in probes for row in probe.measurements if row.kind == "decoder"):
        measured_ms.setdefault(facts(row), []).append(row.ms)
    # 2. The errors of held-out decoders: of the probe's own, and of measured designs.
    own: list[tuple[Row, float]] = [
        (row, error + log(ms / row.ms)) for row, error in at_best_threads(fits) for ms in measured_ms[facts(row)]
    ]
    designs = [
        (design, error) for fit in fits.values() for design, error in fit.held_out
        if isinstance(design, DesignTime) and not design.extrapolated
    ]  # fmt: skip
    # 3. Their distributions. The designs' replace the probe's.
    errors: dict[str, dict[str, dict[str, Any]]] = {form: {} for form in FORMS}
    for phase in PHASES:
        for of, rows in (("probe", own), ("designs", designs)):
            by_format: dict[str, Errors] = {}
            for timed, error in rows:
                if (timed.tokens == 1) == (phase == "decode"):
                    by_format.setdefault(timed.format, {}).setdefault(shape_of(timed), []).append(error)
            for form, distribution in distributions(by_format).items():
                count = len(by_format[form])
                errors[form][f"{phase}_error"] = {**distribution, "of": of, "decoders": count}
    return errors


def at_best_threads(fits: Mapping[int, ThreadFit]) -> list[tuple[Measurement, float]]:
    """Return the held-out rows of each decoder that resemble a prediction: prefills, and decode steps at the probe's
    fullest cache, at the thread count that a prediction chooses, the one of least decode latency."""
    fullest: dict[tuple[str, Decoder], tuple[int, float, int]] = {}
    for threads, fit in fits.items():
        for row, error in fit.rows:
            if isinstance(row, Measurement) and row.kind == "decoder" and row.tokens == 1:
                key, rank = (row.format, shape_of(row)), (-row.past, row.ms * (1 + error), threads)
                fullest[key] = min(rank, fullest.get(key, rank))
    held_out = []
    for threads, fit in fits.items():
        for row, error in fit.held_out:
            if isinstance(row, DesignTime):
                continue
            past, _, best = fullest.get((row.format, shape_of(row)), (0, 0.0, 0))
            if threads == best and (row.tokens > 1 or row.past == -past):
                held_out.append((row, error))
    return held_out


def distributions(by_format: Mapping[str, Errors]) -> dict[str, dict[str, float]]:
    """Return format -> keys of `LatencyError`, for formats with enough decoders. Formats with few decoders share a
    distribution."""
    of_decoders = {form: list(errors.values()) for form, errors in by_format.items() if len(errors) >= LEAST_DECODERS}
    own = {form: distribution(errors) for form, errors in of_decoders.items() if len(errors) >= LEAST_ALONE}
    pooled = [errors for form, decoders in of_decoders.items() if form not in own for errors in decoders]
    return dict.fromkeys(of_decoders, distribution(pooled) if pooled else {}) | own


def distribution(decoders: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return the keys of `LatencyError`, from the errors of each decoder.

    The maximum-likelihood scale is too small for a prediction for two reasons, both corrected as for a normal
    distribution: the center is fitted to the same errors, and has an uncertainty of its own.
    """
    count, errors = len(decoders), np.concatenate(decoders)
    tails = [*(tail for tail in TAILS if tail < count - 1), float(count - 1)]
    _, center, scale, tail = max((student(errors, tail) for tail in tails), key=lambda fit: fit[0])
    return {"center": center, "scale": scale * ((count + 1) / (count - 1)) ** 0.5, "degrees_of_freedom": tail}


def student(errors: np.ndarray, tail: float) -> tuple[float, float, float, float]:
    """Return (log likelihood, center, scale, tail): the most likely center and scale for `tail` degrees of freedom, by
    expectation maximization. errors [n]"""
    center = float(np.median(errors))
    scale = max(float(np.std(errors - center)), LEAST_SCALE)
    for _ in range(TURNS):
        weight = (tail + 1) / (tail + ((errors - center) / scale) ** 2)
        center = float(np.average(errors, weights=weight))
        scale = max(float(np.sqrt(np.mean(weight * (errors - center) ** 2))), LEAST_SCALE)
    return float(t.logpdf(errors, tail, center, scale).sum()), center, scale, tail
