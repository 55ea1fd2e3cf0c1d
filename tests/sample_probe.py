"""A probe as a board would write it, whose operators have known coefficients and noise."""

import functools

import numpy as np

from merino_bench.probe import tasks as plan
from merino_bench.probe.tasks import MB, Machine
from merino_edge.calibration import fit as fitting
from merino_edge.calibration.calibrate import calibrate, calibrated_toml
from merino_edge.calibration.probe import Measurement, Probe, joined
from merino_edge.prediction.default_coefficients import estimated
from merino_edge.prediction.latency import by_threads, memory_share, reread_share
from merino_edge.profiles.coefficients import MEMORY, REREAD, LatencyError
from merino_edge.profiles.reading import load_profile, parse_profile_text, profile_text

BOARD = load_profile("raspberry-pi-5")
MACHINE = Machine(2 * MB, 3000 * MB, (1, 2, 4), ("fp32", "int8", "int4"), True, caches=("int8", "int4"),
                  own_kernels=True)


@functools.cache
def synthetic(noise=0.0, machine=MACHINE, truth=None, left_out=None, seed=0):
    """A probe as a board would write it whose operators have exactly the board's estimated coefficients."""
    truth = truth or estimated(BOARD)
    random = np.random.default_rng(seed)
    probe = Probe.model_validate({
        "schema": 10, "backend": "onnxruntime", "date": "2026-01-01", "seconds": 50, "cores": 4,
        "isa": ["neon", "dotprod"],
        "machine": {"board": "Test board", "arch": "aarch64", "versions": {"onnxruntime": "1.32.0"}},
        "last_level_cache_mb": 2.0, "memory_mb": 4000, "dialect": "fused" if machine.fused else "portable", "flags": [],
        "others_cpu_share": 0.0, "left_out": [], "resident": resident(machine.formats),
        "measurements": [row("read", threads=count, weight_bytes=256 * MB, ms=20 + count) for count in (1, 2, 4)],
    })  # fmt: skip
    rows = list(probe.measurements)
    for task in plan.tasks(machine):
        kernel = plan.kernel_of(task, machine.dialect) if task.kind != "argmax" else None
        for past, tokens in task.runs:
            one = Measurement.model_validate(row(
                task.kind, format=task.format, rows=task.rows, columns=task.columns, heads=task.heads,
                kv_heads=task.kv_heads or task.heads, kv=task.kv, count=task.count, uses=task.uses,
                by_groups=task.by_groups, threads=task.threads, past=past, tokens=tokens,
                weight_bytes=kernel.weight_bytes if kernel else 0,
            ))  # fmt: skip
            if left_out and left_out(one):
                continue
            at = truth.threads.index(task.threads)
            request = fitting.amounts_of(one, probe.dialect)
            first_mb = request.get(MEMORY, 0.0) * 1e6 / MB
            edges = truth.cache_within_mb[at], truth.cache_beyond_mb[at]
            request[MEMORY] = request.get(MEMORY, 0.0) * float(memory_share(max(first_mb, 1e-9), *edges))
            half = truth.cache_half_mb[at] * MB
            request[REREAD] = sum(size / 1e6 * reread_share(between, half) for between, size in fitting.rereads_of(one))
            unit = {**by_threads(truth)[task.threads].us_per_unit, fitting.GRAPH: truth.step_us[at]}
            us = sum(amount * unit[name] for name, amount in request.items())
            rows.append(one.model_copy(update={"ms": us / 1e3 * float(np.exp(noise * random.normal()))}))
    return joined([probe.model_copy(update={"measurements": rows})])  # which has each row once, as a board's has


def row(kind, **keys):
    usual = {"format": "fp32", "rows": 0, "columns": 0, "heads": 0, "kv_heads": 0, "kv": "fp32", "count": 1, "uses": 1,
             "by_groups": False, "threads": 1, "past": 0, "tokens": 1, "weight_bytes": 0, "cached": False, "ms": 1.0,
             "median_ms": 1.0, "least_ms": 1.0, "repeats": 3}  # fmt: skip
    return {**usual, "kind": kind, **keys}


def resident(formats):
    base = {"imports_mb": 50.0, "open_mb": 60.0, "peak_mb": 60.0}
    rows = [base | {"kind": "call", "format": "fp32", "weight_bytes": 0}]
    more = base | {"open_mb": 60 + 1.25 * 40, "kind": "linear", "weight_bytes": 40 * MB}
    rows += [more | {"format": form} for form in formats]
    head = base | {"open_mb": 100.0, "kind": "head", "weight_bytes": 40 * MB}
    return [*rows, head | {"peak_mb": 108.0, "format": "fp32"}, head | {"peak_mb": 140.0, "format": "int8"}]


def calibrated_board(probe):
    return parse_profile_text(calibrated_toml(profile_text("raspberry-pi-5"), probe, calibrate(probe)), "calibrated")


def with_errors(profile, center=0.02, scale=0.05, degrees_of_freedom=20.0, forms=("fp32", "int8", "int4"), **more):
    """The board with its estimated coefficients as its own, and errors of predictions in these formats alone."""
    error = LatencyError(center=center, scale=scale, degrees_of_freedom=degrees_of_freedom, **more)
    own = estimated(profile)
    known = {form: error if form in forms else None for form in own.formats}
    tables = {
        form: own.of_format(form).model_copy(update={"decode_error": error, "prefill_error": error})
        for form, error in known.items()
    }
    own = own.model_copy(update={"kind": "calibrated", **tables})
    return with_coefficients(profile, own)


def with_coefficients(profile, own):
    """The board with these coefficients of ONNX Runtime."""
    speed = profile.performance.onnxruntime.model_copy(update={"coefficients": own})
    return profile.model_copy(update={"performance": profile.performance.model_copy(update={"onnxruntime": speed})})
