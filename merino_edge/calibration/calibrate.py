"""Turn a probe into the measured part of a profile: coefficients of the latency model, errors of its predictions, basic
figures, and residuals. The rows of a probe are the model's operators in known numbers, so that `fit` can invert the
model."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import tomlkit

from merino_bench.sensors.environment import watts_of_mode
from merino_edge.calibration.errors import PHASES, latency_errors
from merino_edge.calibration.fit import DesignTime, Row, fit_all
from merino_edge.calibration.gpu_fit import fit_gpu
from merino_edge.calibration.probe import Probe, Resident, joined
from merino_edge.families.operators import packed_bytes
from merino_edge.profiles.coefficients import (
    ATTENTION_MACS,
    FORMS,
    GENERAL,
    GROUPS,
    OF_ATTENTION,
    OF_FORMAT,
    LatencyError,
)
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.bundle import QUANTIZED_CACHES
from merino_runtime.errors import MerinoError
from merino_runtime.io.board import MB


class Residual(NamedTuple):
    """Relative error of the fitted model on the measurements of one kind: |predicted / measured - 1|."""

    kind: str
    rows: int
    median: float
    worst: float


class Fit(NamedTuple):
    """`performance`: the keys and values of the table `performance.<backend>` in a profile's TOML."""

    performance: dict[str, Any]
    residuals: list[Residual]

    @property
    def errors(self) -> dict[str, LatencyError]:
        """Return the errors of predictions of unseen decoders, by weight format and phase (`int8 decode`)."""
        tables = {form: self.performance.get("coefficients", {}).get(form, {}) for form in FORMS}
        return {
            f"{form} {phase}": LatencyError(**table[f"{phase}_error"])
            for form, table in tables.items() for phase in PHASES if f"{phase}_error" in table
        }  # fmt: skip


def calibrate(*probes: Probe) -> Fit:
    """Return the fit to one or several probes of a machine and backend. Raise MerinoError if too little was
    measured."""
    probe = joined(probes)
    if probe.backend == "tensorrt":
        performance, chains = fit_gpu(probe)
        return Fit(performance, residuals_of([*chains]))
    counts = probe.threads
    if not counts:
        raise MerinoError("the probe finished no thread count: run `merino probe` again, with no other load")
    by_threads = fit_all(probe)
    fits = list(by_threads.values())
    def values(prefix: str, names: Sequence[str]) -> dict[str, Any]:
        """Return coefficients whose names begin with `prefix`, a list over the thread counts each."""
        return {name: [rounded(fit.coefficients[f"{prefix}{name}"]) for fit in fits] for name in names}

    errors = latency_errors(by_threads, probes)
    coefficients: dict[str, Any] = {
        "kind": "calibrated", "source": probe.source, "dialect": probe.dialect, "threads": counts,
        "cache_within_mb": [rounded(fit.edges.within) for fit in fits],
        "cache_beyond_mb": [rounded(fit.edges.beyond) for fit in fits],
        "cache_half_mb": [rounded(fit.edges.half) for fit in fits], **values("", GENERAL),
    }  # fmt: skip
    for form in sorted({row.format for row in probe.measurements if row.kind == "linear"}):
        coefficients[form] = values(f"{form}.", OF_FORMAT) | resident_factors(probe, form) | {
            phase: {name: rounded(value) if isinstance(value, float) else value for name, value in error.items()}
            for phase, error in errors[form].items()
        }
    for kv in measured_caches(probe, by_groups=False):
        if kv in QUANTIZED_CACHES:
            coefficients[f"{kv}_cache"] = values(f"{kv}.", ATTENTION_MACS)
    caches = measured_caches(probe, by_groups=True)
    if "fp32" in caches:
        coefficients["groups"] = values(f"{GROUPS}.", OF_ATTENTION)
        if "int8" in caches:
            coefficients["groups"]["int8"] = values(f"{GROUPS}.int8.", ATTENTION_MACS)
    rows = [(row, error) for fit in fits for row, error in fit.rows]
    residuals = residuals_of([(row, error) for row, error in rows
                              if not (isinstance(row, DesignTime) and row.extrapolated)])  # fmt: skip
    return Fit(basic_figures(probe, coefficients) | {"coefficients": coefficients}, residuals)


def measured_caches(probe: Probe, by_groups: bool) -> list[str]:
    """Return the cache formats whose attention, or GroupAttention, was timed at each thread count, for one query and
    for many."""
    timed = {(row.kv, row.threads, row.tokens > 1) for row in probe.measurements if row.by_groups == by_groups}
    return [
        kv for kv in ("fp32", *QUANTIZED_CACHES)
        if {(kv, count, many) for count in probe.threads for many in (False, True)} <= timed
    ]  # fmt: skip


def rounded(value: float) -> float:
    """Round to four significant digits."""
    return float(f"{value:.4g}")


def resident_factors(probe: Probe, form: str) -> dict[str, float]:
    """Return the resident bytes per weight byte: of matrices, and of a tied embedding.

    `table_opening`: extra resident bytes per byte of the embedding's pieces during prepacking, when the original and
    the packed copy of a piece coexist. Each factor is the median over the rows of its kind, whose sizes differ between
    joined probes.
    """
    base = [row.open_mb for row in probe.resident if (row.kind, row.format) == ("call", "fp32")]

    def rows(kind: str) -> list[Resident]:
        return [row for row in probe.resident if (row.kind, row.format) == (kind, form) and row.weight_bytes]

    def factor(kind: str) -> float | None:
        factors = [(row.open_mb - median(base)) * MB / row.weight_bytes for row in rows(kind)] if base else []
        return max(0.1, median(factors)) if factors else None

    pieces = [(row, packed_bytes(row.weight_bytes, form)) for row in rows("head")]
    opening = [(row.peak_mb - row.open_mb) * MB / piece for row, piece in pieces if piece]
    matrices = factor("linear") or 1.0
    return {
        "resident": rounded(matrices), "table_resident": rounded(factor("head") or matrices),
        "table_opening": rounded(max(0.0, median(opening))) if opening else 0.0,
    }  # fmt: skip


def basic_figures(probe: Probe, coefficients: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a profile's `performance.onnxruntime` without the coefficients."""
    rows = probe.measurements
    rates = {row.threads: row.weight_bytes / row.ms / 1e6 for row in rows if row.kind == "read" and not row.cached}
    speeds: dict[int, float] = {}
    for row in rows:
        if (row.kind, row.format) == ("linear", "fp32") and row.tokens > 1:
            flops = 2e-6 * row.rows * row.columns * row.count * row.tokens / row.ms
            speeds[row.threads] = max(speeds.get(row.threads, 0.0), flops)
    overhead_us = np.mean([np.mean(coefficients[name]) for name in ("launch_us", "matmul_us")])

    def figure(value: float, how: str) -> dict[str, Any]:
        return {"value": value, "kind": "calibrated", "source": f"{probe.source}: {how}"}

    figures: dict[str, Any] = {}
    if rates:
        best = max(rates, key=lambda count: rates[count])
        figures["read_gb_s"] = figure(rounded(rates[best]), f"reduction over a large buffer, {best} threads")
        figures["decode_threads"] = figure(best, "the fastest count in reading")
    if speeds:
        best = max(speeds, key=lambda count: speeds[count])
        figures["fp32_gflops"] = figure(rounded(speeds[best]), f"matmuls in the backend, {best} threads")
        figures["prefill_threads"] = figure(best, "the fastest count in matmuls")
    figures["op_overhead_us"] = figure(max(0.01, rounded(float(overhead_us))), "of an operator, mean of two kinds")
    open_mb = [row.open_mb for row in probe.resident if row.kind == "call"]
    if open_mb:
        figures["runtime_mb"] = figure(rounded(open_mb[0]), "a fresh process with a graph of one operator")
    return figures


def residuals_of(rows: Sequence[tuple[Row, float]]) -> list[Residual]:
    """Return the residuals by kind of row; the last one is over all rows. rows: pairs of a row and
    predicted / measured - 1."""
    by_kind: dict[str, list[float]] = {}
    for row, error in rows:
        by_kind.setdefault(row_kind(row), []).append(abs(error))
    by_kind = dict(sorted(by_kind.items())) | {"all": [abs(error) for _, error in rows]}
    return [Residual(kind, len(values), float(np.median(values)), max(values)) for kind, values in by_kind.items()]


def row_kind(row: Row) -> str:
    if isinstance(row, DesignTime) or row.kind in ("linear", "head", "decoder", "chain"):
        return f"{row.kind} {row.format} {'decode' if row.tokens == 1 else 'prefill'}"
    if row.kind != "attention":
        return row.kind
    groups = " by groups" if row.by_groups else ""
    return f"attention{groups} over {row.kv} {'decode' if row.tokens == 1 else 'prefill'}"


def check_same_machine(probe: Probe, profile: DeviceProfile) -> None:
    """Raise MerinoError if the probe cannot be of this board, or the board lacks its backend."""
    if probe.backend not in profile.backends:
        raise MerinoError(
            f"the probe was made with {probe.backend}, but {profile.name} has only {' and '.join(profile.backends)}:"
            " give the profile of the probed board, or a probe of another backend"
        )
    check_machine(probe.machine.get("arch"), str(probe.machine.get("board")), probe.backend, profile)


def check_machine(arch: str | None, model: str, backend: str, profile: DeviceProfile) -> None:
    """Raise MerinoError if a machine that was probed with `backend` cannot be the profile's board."""
    if arch != profile.arch:
        raise MerinoError(
            f"the probed machine is {arch}, the profile is of {profile.arch}: run `merino probe` on the board itself"
        )
    if backend == "tensorrt" and profile.device_tree_models and not profile.names_model(model):
        raise MerinoError(
            f"the probed machine is {model!r}, the profile is of {profile.name}: run `merino probe` on the board"
            " itself, or change device_tree_models in a copy of the profile"
        )


def mode_of(probe: Probe, profile: DeviceProfile) -> str | None:
    """Return the profile's name of the power mode of a GPU's probe, or None if it is not known. Raise MerinoError for a
    mode that the profile lacks.

    If a profile names modes by watts, nvpmodel may still call the highest MAXN, as on the Jetson Nano.
    """
    name, modes = (probe.power_mode or "").split(" (")[0], profile.power.modes
    if not name:
        return None
    if name == "MAXN" and modes and name not in modes:
        return max(modes, key=watts_of_mode)
    if name not in modes:
        raise MerinoError(
            f"the probe was made in power mode {name}, the profile has {', '.join(modes) or 'none'}: choose one of them"
            " on the board (`sudo nvpmodel -m`) and probe again, or add it to power.modes in a copy of the profile"
        )
    return name


def calibrated_toml(base: str, probe: Probe, fit: Fit, power_mode: str | None = None) -> str:
    """Return a profile's TOML whose values for the probe's backend are replaced by the measured ones. All else stays,
    including comments and other backends. power_mode: of a GPU's figures, if it is known."""
    document = tomlkit.parse(base)
    measured = tomlkit.table()
    measured.comment(f"calibrated: {probe.source}")
    own = document["performance"].get(probe.backend, {})
    for key, value in {**(own.unwrap() if own else {}), **fit.performance}.items():
        if key != "coefficients":
            measured[key] = inline(value) if isinstance(value, dict) else value
    if power_mode:
        measured["power_mode"] = power_mode
    if "coefficients" in fit.performance:
        coefficients = tomlkit.table()
        for key, value in fit.performance["coefficients"].items():
            coefficients[key] = inline(value) if isinstance(value, dict) else value
        measured["coefficients"] = coefficients
    document["performance"][probe.backend] = measured
    if probe.last_level_cache_mb:
        size = {"value": probe.last_level_cache_mb, "kind": "calibrated", "source": f"{probe.source}: /sys"}
        document["cpu"]["last_level_cache_mb"] = inline(size)
    return tomlkit.dumps(document)


def inline(values: Mapping[str, Any]) -> Any:
    table = tomlkit.inline_table()
    table.update({key: inline(value) if isinstance(value, dict) else value for key, value in values.items()})
    return table
