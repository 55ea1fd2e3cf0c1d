"""From a probe to a profile's measured figures: unit times by non-negative least squares, and what that leaves over.

A board's probe.json is made by `merino probe`; its rows are the operators of `latency` in known numbers. Leaves to
others: predicting with the result (`design.costs`), the machine at hand (`host`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tomlkit
from scipy.optimize import nnls

from merino_bench.plan import DECODER_VOCAB
from merino_edge.architecture import Architecture, Block
from merino_edge.latency import GENERAL, OF_FORMAT, Dialect, amounts, from_memory, partly_share, total_us
from merino_edge.operators import Operator, activation, attention, head, linear, norm
from merino_edge.probe_file import Measurement, Probe, Resident
from merino_runtime.board import MB
from merino_runtime.errors import MerinoError

ROUNDS, FAR = 8, 0.1  # of reweighting, and the relative error from which on a row loses weight
DECODER_WORTH = 10.0  # of a row, in rows of single operators
LEAST_US = 1e-3  # a measurement of nothing weighs no more than this


class Residual(NamedTuple):
    """How far the fitted model is from the measurements of one kind, relative: |predicted / measured - 1|."""

    kind: str
    rows: int
    median: float
    worst: float


class Fit(NamedTuple):
    """`performance` as a profile's TOML has it."""

    performance: dict[str, Any]
    residuals: list[Residual]


def calibrate(probe: Probe) -> Fit:
    """Raises MerinoError where too little was measured."""
    counts = probe.threads
    if not counts:
        raise MerinoError("the probe finished no thread count: run `merino probe` again, with nothing beside it")
    fits = [fit_threads(probe, count) for count in counts]
    edges = [cache_edges(probe, count, times) for count, (times, _) in zip(counts, fits, strict=True)]
    times = {name: [round_up(fit[name]) for fit, _ in fits] for name in GENERAL}
    measured = {row.format for row in probe.measurements if row.kind == "linear"}
    unit: dict[str, Any] = {
        "kind": "calibrated", "source": probe.source, "dialect": probe.dialect, "threads": counts,
        "cache_within_mb": [edge.within_mb for edge in edges],
        "cache_beyond_mb": [edge.beyond_mb for edge in edges], **times,
    }  # fmt: skip
    for form in sorted(measured):
        of_format: dict[str, Any] = {name: [round_up(fit[f"{form}.{name}"]) for fit, _ in fits] for name in OF_FORMAT}
        unit[form] = of_format | resident_factors(probe, form)
    return Fit(basic_figures(probe, unit) | {"times": unit}, residual_table(fits, edges))


def operator_of(row: Measurement) -> Operator:
    """The operator that a row of the probe repeats `count` times."""
    if row.kind == "linear":
        return linear(row.columns, row.rows)
    if row.kind == "head":
        return head(row.columns, row.rows)
    if row.kind == "attention":
        return attention(row.columns, row.heads)
    return norm(row.columns) if row.kind in ("norm", "call") else activation(row.columns)


def amounts_of(row: Measurement, dialect: Dialect, miss: float) -> dict[str, float]:
    """What one run of the row's graph asks for; `miss` is the share of its bytes that come from memory."""
    if row.kind == "choose":
        return {"choose_ns": row.rows * 1e-3}
    if row.kind == "decoder":
        block = Block(width=row.columns, ffn_ratio=row.rows / row.columns, depth=row.count)
        arch = Architecture(blocks=(block,), vocab=DECODER_VOCAB, head_size=row.columns // row.heads)
        found = summed(amounts(op, row.format, row.tokens, row.past, dialect) for op in arch.operators)
        return found | {name: amount * miss for name, amount in from_memory(found).items()}
    one = amounts(operator_of(row), row.format, row.tokens, row.past, dialect)
    if row.kind == "head":  # the product alone is timed
        one = {name: amount for name, amount in one.items() if name not in ("choose_ns", "launch_us", "call_us")}
    per_node = NODES_TIMED.get(row.kind) if dialect == "portable" else None
    found = {name: amount * row.count / (per_node or 1) for name, amount in one.items()}
    spared = {name: amount * miss for name, amount in from_memory(found).items()}
    return found | spared | {"call_us": 1.0}


def summed(all_amounts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in all_amounts:
        for name, amount in one.items():
            found[name] = found.get(name, 0.0) + amount
    return found


NODES_TIMED = {"norm": 6, "call": 6, "activation": 9}  # a portable probe times one node of so many


ThreadFit = tuple[dict[str, float], list[tuple[Measurement, float]]]


def fit_threads(probe: Probe, threads: int) -> ThreadFit:
    """Unit times of one thread count, and each row with its predicted / measured - 1.

    Rows weigh by their relative error, those far off by its root only (Huber's loss): another program on the board
    disturbs a few rows much. Whole decoders count more, since they are what is predicted: an operator takes some 10 %
    longer beside others than among its like. Rows whose weights the cache holds in part say nothing about unit times.
    """
    shares = [(row, miss_share(row, probe)) for row in probe.measurements if row.threads == threads]
    rows = [(row, share) for row, share in shares if share is not None and row.kind != "read"]
    names = [*GENERAL, *(f"{form}.{name}" for form in ("fp32", "int8", "int4") for name in OF_FORMAT)]
    wanted = [amounts_of(row, probe.dialect, share) for row, share in rows]
    measured_us = np.array([max(1e3 * row.ms, LEAST_US) for row, _ in rows])
    matrix = np.array([[one.get(name, 0.0) for name in names] for one in wanted]) / measured_us[:, None]
    scale = np.maximum(matrix.max(axis=0), 1e-30)  # so that all columns are of one size
    matrix = matrix / scale
    worth = np.array([DECODER_WORTH if row.kind == "decoder" else 1.0 for row, _ in rows])
    weight = np.sqrt(worth)
    for _ in range(ROUNDS):
        found, _ = nnls(matrix * weight[:, None], weight, maxiter=100 * len(names))
        errors = matrix @ found - 1
        weight = np.sqrt(worth * np.minimum(1, FAR / np.maximum(np.abs(errors), 1e-9)))
    times = dict(zip(names, (found / scale).tolist(), strict=True))
    return times, [(row, float(error)) for (row, _), error in zip(rows, errors, strict=True)]


def footprint_bytes(row: Measurement) -> int:
    """What a run reads: its weights, or its keys and values."""
    if row.kind == "decoder":
        return row.weight_bytes + row.count * 2 * row.columns * (row.past + row.tokens) * 4
    if row.kind == "attention":
        return row.count * 2 * row.columns * (row.past + row.tokens) * 4
    return row.weight_bytes


def miss_share(row: Measurement, probe: Probe) -> float | None:
    """0 where the cache holds all that a run reads, 1 where it holds nothing, None where it may hold a part."""
    cache = cache_bytes(probe)
    size = footprint_bytes(row)
    if size <= SURELY_WITHIN * cache:
        return 0.0
    return 1.0 if size >= SURELY_BEYOND * cache else None


SURELY_WITHIN, SURELY_BEYOND = 0.3, 2.5  # of the last-level cache
USUAL_EDGES = (0.5, 2.0)
LOW_EDGES, HIGH_EDGES = np.arange(0.1, 1.25, 0.05), np.arange(0.8, SURELY_BEYOND + 0.05, 0.1)  # too


def cache_bytes(probe: Probe) -> float:
    return (probe.last_level_cache_mb or 1.0) * MB


class Edges(NamedTuple):
    """MB of a step's reads: all from the cache up to the first, all from memory from the second on."""

    within_mb: float
    beyond_mb: float
    errors: list[float]  # predicted / measured - 1 of the rows between


def cache_edges(probe: Probe, threads: int, times: Mapping[str, float]) -> Edges:
    """The pair of least error over the rows that the cache holds in part, tried on a grid."""
    cache = cache_bytes(probe)
    rows = [
        row for row in probe.measurements
        if row.threads == threads and row.kind in ("linear", "decoder") and row.tokens == 1
        and miss_share(row, probe) is None
    ]  # fmt: skip
    known = np.array([total_us([amounts_of(row, probe.dialect, 0.0)], times) for row in rows])
    memory = np.array([total_us([amounts_of(row, probe.dialect, 1.0)], times) for row in rows]) - known
    sizes = np.array([footprint_bytes(row) for row in rows])
    measured_us = np.array([1e3 * row.ms for row in rows])

    def errors(low: float, high: float) -> np.ndarray:
        return (known + partly_share(sizes / cache, low, high) * memory) / measured_us - 1

    low, high = USUAL_EDGES
    if rows:
        pairs = [(low, high) for low in LOW_EDGES for high in HIGH_EDGES if high > low + 0.1]
        worth = np.array([DECODER_WORTH if row.kind == "decoder" else 1.0 for row in rows])
        low, high = min(pairs, key=lambda pair: float(worth @ np.abs(errors(*pair))))
    found = errors(low, high).tolist() if rows else []
    return Edges(round(float(low) * cache / MB, 4), round(float(high) * cache / MB, 4), found)


def round_up(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def resident_factors(probe: Probe, form: str) -> dict[str, float]:
    """Bytes in memory for a byte of weights: of matrices, and, at its most, of a table that is the head too.

    While a session opens it holds a matrix beside its packed copy: one of many, but the one table.
    """
    rows: dict[tuple[str, str], Resident] = {(row.kind, row.format): row for row in probe.resident}
    base = rows.get(("call", "fp32"))

    def factor(kind: str) -> float | None:
        row = rows.get((kind, form))
        if base is None or row is None or not row.weight_bytes:
            return None
        most = row.peak_mb - base.peak_mb if kind == "head" else row.open_mb - base.open_mb
        return max(0.1, most * MB / row.weight_bytes)

    matrices = factor("linear") or 1.0
    return {"resident": round_up(matrices), "table_resident": round_up(factor("head") or matrices)}


def basic_figures(probe: Probe, unit: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that a profile has beside its unit times."""
    rows = probe.measurements
    rates = {row.threads: row.weight_bytes / row.ms / 1e6 for row in rows if row.kind == "read" and not row.cached}
    speeds: dict[int, float] = {}
    for row in rows:
        if (row.kind, row.format) == ("linear", "fp32") and row.tokens > 1:
            flops = 2e-6 * row.rows * row.columns * row.count * row.tokens / row.ms
            speeds[row.threads] = max(speeds.get(row.threads, 0.0), flops)
    overhead_us = np.mean([np.mean(unit[name]) for name in ("launch_us", "product_us")])

    def figure(value: float, how: str) -> dict[str, Any]:
        return {"value": value, "kind": "calibrated", "source": f"{probe.source}: {how}"}

    found: dict[str, Any] = {}
    if rates:
        best = max(rates, key=lambda count: rates[count])
        found["read_gb_s"] = figure(round_up(rates[best]), f"reduction over a large buffer, {best} threads")
        found["decode_threads"] = figure(best, "the count that read fastest")
    if speeds:
        best = max(speeds, key=lambda count: speeds[count])
        found["fp32_gflops"] = figure(round_up(speeds[best]), f"products in the backend, {best} threads")
        found["prefill_threads"] = figure(best, "the count that multiplied fastest")
    found["op_overhead_us"] = figure(max(0.01, round_up(float(overhead_us))), "of an operator, mean of two kinds")
    open_mb = [row.open_mb for row in probe.resident if row.kind == "call"]
    if open_mb:
        found["runtime_mb"] = figure(round_up(open_mb[0]), "a fresh process with a graph of one operator")
    return found


def residual_table(fits: Sequence[ThreadFit], edges: Sequence[Edges]) -> list[Residual]:
    """By kind of row, all kinds together last."""
    errors = [(row_kind(row), abs(error)) for _, rows in fits for row, error in rows]
    errors += [("decode, cached in part", abs(error)) for edge in edges for error in edge.errors]
    by_kind = {kind: [error for each, error in errors if each == kind] for kind in sorted({kind for kind, _ in errors})}
    by_kind["all"] = [error for _, error in errors]
    return [Residual(kind, len(values), float(np.median(values)), max(values)) for kind, values in by_kind.items()]


def row_kind(row: Measurement) -> str:
    if row.kind in ("linear", "head", "decoder"):
        return f"{row.kind} {row.format} {'decode' if row.tokens == 1 else 'prefill'}"
    return row.kind if row.kind != "attention" else f"attention {'decode' if row.tokens == 1 else 'prefill'}"


def check_same_machine(probe: Probe, arch: str) -> None:
    """Raises MerinoError where the probe cannot be of a board with this architecture."""
    found = probe.machine.get("arch")
    if found != arch:
        raise MerinoError(
            f"the probe was made on {found}, the profile is of {arch}: run `merino probe` on the board itself"
        )


def calibrated_toml(base: str, probe: Probe, fit: Fit) -> str:
    """A profile's TOML with the measured figures in place of its own; what was not measured stays, comments too."""
    document = tomlkit.parse(base)
    measured = tomlkit.table()
    measured.comment(f"calibrated: {probe.source}")
    for key, value in {**document["performance"].unwrap(), **fit.performance}.items():
        if key != "times":
            measured[key] = inline(value)
    times = tomlkit.table()
    for key, value in fit.performance["times"].items():
        times[key] = inline(value) if isinstance(value, dict) else value
    measured["times"] = times
    document["performance"] = measured
    if probe.last_level_cache_mb:
        size = {"value": probe.last_level_cache_mb, "kind": "calibrated", "source": f"{probe.source}: /sys"}
        document["cpu"]["last_level_cache_mb"] = inline(size)
    return tomlkit.dumps(document)


def inline(values: Mapping[str, Any]) -> Any:
    table = tomlkit.inline_table()
    table.update(values)
    return table
