"""Turn a probe of a GPU into the figures of a profile's `performance.tensorrt`.

The probe times chains of matmuls (`merino_bench.probe.gpu`). A run over one position takes step_us + matmuls x
launch_us + bytes / read_gb_s, and in float16 a term for the casts at both ends: four unknowns, fitted by least squares
of the relative errors. The rest of a run over many positions is computing. If it is bound by reading instead, the
fitted rate is too low, but such a prefill is still predicted correctly.
"""

from typing import Any

import numpy as np
from scipy.optimize import nnls

from merino_edge.calibration.probe import Measurement, Probe
from merino_edge.prediction.tensorrt_costs import LOGIT_COPIES
from merino_runtime.errors import MerinoError

LEAST = 0.01  # of a figure, in its unit
FORMATS = ("fp32", "fp16")


def fit_gpu(probe: Probe) -> tuple[dict[str, Any], list[tuple[Measurement, float]]]:
    """Return the keys and values of the table `performance.tensorrt`, and predicted / measured - 1 of each timed chain.
    Raise MerinoError if too little was measured, or the figures contradict each other."""
    chains = [row for row in probe.measurements if row.kind == "chain"]
    copies = sorted((row for row in probe.measurements if row.kind == "copy"), key=lambda row: row.weight_bytes)
    if {(row.format, row.tokens > 1) for row in chains} != {(form, many) for form in FORMATS for many in (False, True)}:
        raise _nonsense("it lacks chains of matmuls in fp32 or fp16")
    if len(copies) < 2 or not probe.resident:  # noqa: PLR2004 - a line takes two points
        raise _nonsense("it lacks copies to the host or the memory of a process")
    # 1. The four unknowns, by the runs over one position.
    steps = [row for row in chains if row.tokens == 1]
    matrix = np.array([[1.0, row.count, 1e-3 * row.weight_bytes, row.format == "fp16"] for row in steps], float)
    shares = matrix / np.array([[1e3 * row.ms] for row in steps])
    largest = np.maximum(shares.max(axis=0), 1e-30)
    scaled, _ = nnls(shares / largest, np.ones(len(steps)))
    step_us, launch_us, read_ns_per_byte, types_us = (scaled / largest).tolist()

    def besides_us(row: Measurement) -> float:
        """Return the time of a run without reading and computing."""
        return step_us + row.count * launch_us + (types_us if row.format == "fp16" else 0.0)

    # 2. The rates of the chains with most FLOPs, and of copies.
    prefills = [row for row in chains if row.tokens > 1]
    largest_chains = {form: max((row for row in prefills if row.format == form), key=_flops) for form in FORMATS}
    computing_us = {form: 1e3 * row.ms - besides_us(row) for form, row in largest_chains.items()}
    if min(read_ns_per_byte, *computing_us.values()) <= 0 or copies[-1].ms <= copies[0].ms:
        raise _nonsense("larger work took no longer than smaller")
    gflops = {form: 1e-3 * _flops(row) / computing_us[form] for form, row in largest_chains.items()}
    copied = 1e-6 * (copies[-1].weight_bytes - copies[0].weight_bytes) / (copies[-1].ms - copies[0].ms)
    # 3. The figures, and their errors.
    base, how = probe.resident[-1], f"matmuls in the engine, {max(row.tokens for row in chains)} positions"
    mode = f" in power mode {probe.power_mode}" if probe.power_mode else ""
    figures = {
        "read_gb_s": (1 / read_ns_per_byte, "weights of a chain of matmuls, one position"),
        "fp32_gflops": (gflops["fp32"], how),
        "fp16_gflops": (gflops["fp16"], how),
        "launch_us": (launch_us, "one more small matmul in a chain"),
        "step_us": (step_us, "a run without its matmuls"),
        "host_copy_gb_s": (LOGIT_COPIES * copied, "to pinned memory, and from there"),
        "runtime_mb": (base.open_mb, "a fresh process with a small engine"),
        "cuda_context_mb": (base.gpu_mb, "memory of the board taken outside that process"),
    }
    performance = {
        name: {"value": max(LEAST, float(f"{value:.4g}")), "kind": "calibrated",
               "source": f"{probe.source}{mode}: {source}"}
        for name, (value, source) in figures.items()
    }  # fmt: skip
    errors = []
    for row in chains:
        moving_us, computing = 1e-3 * row.weight_bytes * read_ns_per_byte, 1e-3 * _flops(row) / gflops[row.format]
        predicted_us = besides_us(row) + max(moving_us, computing)
        errors.append((row, predicted_us / (1e3 * row.ms) - 1))
    return performance, errors


def _nonsense(why: str) -> MerinoError:
    return MerinoError(
        f"the probe of the GPU cannot be fitted: {why}. Run `merino probe --backend tensorrt` again, with no other"
        " load"
    )


def _flops(row: Measurement) -> float:
    return 2.0 * row.rows * row.columns * row.count * row.tokens
