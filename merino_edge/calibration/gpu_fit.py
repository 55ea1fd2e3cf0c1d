"""From a probe of a GPU to the figures of a profile's `performance.tensorrt`.

The probe times chains of matrix products (`merino_bench.probe.gpu`). A run over one position takes
    step_us + products x launch_us + bytes / read_gb_s, and in float16 once more for the change of types at both ends;
four unknowns, fitted by least squares of the relative errors. What a run over many positions takes beyond the first two
is computing, or reading where that takes longer: a rate is then too low, and such a prefill is predicted all the same.
`prediction.tensorrt_costs` predicts with the result.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from merino_edge.calibration.probe import Measurement, Probe
from merino_edge.prediction.tensorrt_costs import LOGIT_COPIES
from merino_runtime.errors import MerinoError

LEAST = 0.01  # of a figure, in its unit
FORMATS = ("fp32", "fp16")
UNKNOWNS = ("step_us", "launch_us", "read_ns_per_byte", "types_us")


class GpuFit(NamedTuple):
    """`performance`: keys and values of the table `performance.tensorrt`. `errors`: of each timed chain, predicted /
    measured - 1."""

    performance: dict[str, Any]
    errors: list[tuple[Measurement, float]]


def fit_gpu(probe: Probe) -> GpuFit:
    """Raises MerinoError where too little was measured, or nothing of sense."""
    chains = [row for row in probe.measurements if row.kind == "chain"]
    copies = sorted((row for row in probe.measurements if row.kind == "copy"), key=lambda row: row.weight_bytes)
    if {(row.format, row.tokens > 1) for row in chains} != {(form, many) for form in FORMATS for many in (False, True)}:
        raise _nonsense("it lacks chains of products in fp32 or fp16")
    if len(copies) < 2 or not probe.resident:  # noqa: PLR2004 - a line takes two points
        raise _nonsense("it lacks copies to the host or the memory of a process")
    found = _times(chains)
    copied = 1e-6 * (copies[-1].weight_bytes - copies[0].weight_bytes) / max(1e-9, copies[-1].ms - copies[0].ms)
    rates = {form: _gflops([row for row in chains if row.format == form and row.tokens > 1], found) for form in FORMATS}
    if min(found["read_ns_per_byte"], *rates.values()) <= 0 or copies[-1].ms <= copies[0].ms:
        raise _nonsense("larger work took no longer than smaller")
    base, how = probe.resident[-1], "products in the engine"
    performance = {
        "read_gb_s": _figure(probe, 1 / found["read_ns_per_byte"], "weights of a chain of products, one position"),
        "fp32_gflops": _figure(probe, rates["fp32"], f"{how}, {_most_tokens(chains)} positions"),
        "fp16_gflops": _figure(probe, rates["fp16"], f"{how}, {_most_tokens(chains)} positions"),
        "launch_us": _figure(probe, found["launch_us"], "a small product more in a chain"),
        "step_us": _figure(probe, found["step_us"], "a run beside its products"),
        "host_copy_gb_s": _figure(probe, LOGIT_COPIES * copied, "to pinned memory, and from there"),
        "runtime_mb": _figure(probe, base.open_mb, "a fresh process with a small engine"),
        "cuda_context_mb": _figure(probe, base.gpu_mb, "what the board lost beside that process"),
    }
    return GpuFit(performance, [(row, _predicted_us(row, found, rates) / (1e3 * row.ms) - 1) for row in chains])


def _nonsense(why: str) -> MerinoError:
    return MerinoError(
        f"the probe of the GPU cannot be fitted: {why}. Run `merino probe --backend tensorrt` again, with nothing"
        " beside it"
    )


def _times(chains: Sequence[Measurement]) -> dict[str, float]:
    """The unknowns, of the runs over one position."""
    rows = [row for row in chains if row.tokens == 1]
    matrix = np.array([[1.0, row.count, 1e-3 * row.weight_bytes, row.format == "fp16"] for row in rows], float)
    measured_us = np.array([1e3 * row.ms for row in rows])
    shares = matrix / measured_us[:, None]
    largest = np.maximum(shares.max(axis=0), 1e-30)
    found, _ = nnls(shares / largest, np.ones(len(rows)))
    return dict(zip(UNKNOWNS, (found / largest).tolist(), strict=True))


def _besides_us(row: Measurement, found: dict[str, float]) -> float:
    """What a run takes beside reading and computing."""
    return found["step_us"] + row.count * found["launch_us"] + (found["types_us"] if row.format == "fp16" else 0.0)


def _flops(row: Measurement) -> float:
    return 2.0 * row.rows * row.columns * row.count * row.tokens


def _gflops(rows: Sequence[Measurement], found: dict[str, float]) -> float:
    """Of the chain with most to compute."""
    row = max(rows, key=_flops)
    left_us = 1e3 * row.ms - _besides_us(row, found)
    return 1e-3 * _flops(row) / left_us if left_us > 0 else 0.0


def _predicted_us(row: Measurement, found: dict[str, float], rates: dict[str, float]) -> float:
    reading_us = 1e-3 * row.weight_bytes * found["read_ns_per_byte"]
    return _besides_us(row, found) + max(reading_us, 1e-3 * _flops(row) / rates[row.format])


def _most_tokens(chains: Sequence[Measurement]) -> int:
    return max(row.tokens for row in chains)


def _figure(probe: Probe, value: float, how: str) -> dict[str, Any]:
    mode = f" in power mode {probe.power_mode}" if probe.power_mode else ""
    return {"value": max(LEAST, float(f"{value:.4g}")), "kind": "calibrated", "source": f"{probe.source}{mode}: {how}"}
