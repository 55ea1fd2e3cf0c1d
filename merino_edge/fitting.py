"""Unit times and cache edges of one thread count, by non-negative least squares over the rows of a probe.

What the unit times are multiplied with: `latency`. What becomes of them: `calibration`.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from merino_bench.plan import DECODER_VOCAB
from merino_edge.architecture import Architecture, Block
from merino_edge.latency import AGAIN, GENERAL, MEMORY, OF_FORMAT, Dialect, amounts, partly_share
from merino_edge.operators import Operator, activation, attention, head, linear, norm
from merino_edge.probe_file import Measurement, Probe
from merino_runtime.board import MB

ROUNDS, FAR = 8, 0.1  # of reweighting, and the relative error from which on a row loses weight
DECODER_WORTH = 10.0  # of a row, in rows of single operators
LEAST_US = 1e-3  # a measurement of nothing weighs no more than this


def operator_of(row: Measurement) -> Operator:
    """The operator that a row of the probe repeats `count` times."""
    if row.kind == "linear":
        return linear(row.columns, row.rows)
    if row.kind == "head":
        return head(row.columns, row.rows)
    if row.kind == "attention":
        return attention(row.columns, row.heads)
    return norm(row.columns) if row.kind in ("norm", "call") else activation(row.columns)


def amounts_of(row: Measurement, dialect: Dialect) -> dict[str, float]:
    """What one run of the row's graph asks for, with all that it reads coming from memory."""
    if row.kind == "choose":
        return {"choose_ns": row.rows * 1e-3}
    if row.kind == "decoder":
        return summed(amounts(op, row.format, row.tokens, row.past, dialect) for op in decoder_of(row))
    one = amounts(operator_of(row), row.format, row.tokens, row.past, dialect)
    if row.kind == "head":  # the product alone is timed
        one = {name: amount for name, amount in one.items() if name not in ("choose_ns", "launch_us", "step_us")}
    per_node = NODES_TIMED.get(row.kind) if dialect == "portable" else None
    return {name: amount * row.count / (per_node or 1) for name, amount in one.items()} | {GRAPH: 1.0}


def decoder_of(row: Measurement) -> list[Operator]:
    """One block of layers of their own, or one for each layer that is used several times."""
    shared = row.uses > 1
    depth, count = (row.uses, row.count) if shared else (row.count, 1)
    block = Block(width=row.columns, ffn_ratio=row.rows / row.columns, depth=depth, shared=shared)
    return Architecture(blocks=(block,) * count, vocab=DECODER_VOCAB, head_size=row.columns // row.heads).operators


def summed(all_amounts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in all_amounts:
        for name, amount in one.items():
            found[name] = found.get(name, 0.0) + amount
    return found


GRAPH = "graph_us"  # a run of a graph by itself; a decoder's run is step_us
NODES_TIMED = {"norm": 6, "call": 6, "activation": 9}  # a portable probe times one node of so many


class ThreadFit(NamedTuple):
    """Unit times of one thread count, the cache's edges in MB, and each row with its predicted / measured - 1."""

    times: dict[str, float]
    within_mb: float
    beyond_mb: float
    rows: list[tuple[Measurement, float]]


def fit_threads(probe: Probe, threads: int) -> ThreadFit:
    """Unit times and the cache's edges, in turn: each fitted with the other as it stands; the best of all turns."""
    rows = [row for row in probe.measurements if row.threads == threads and row.kind != "read"]
    table = Table(
        [amounts_of(row, probe.dialect) for row in rows],
        np.array([between_bytes(row) for row in rows]) / cache_bytes(probe),
        cache_bytes(probe),
        np.array([max(1e3 * row.ms, LEAST_US) for row in rows]),
        np.array([DECODER_WORTH if row.kind == "decoder" else 1.0 for row in rows]),
    )
    edges = USUAL_EDGES
    times = fit_times(table, *edges)
    for _ in range(TURNS):
        new_edges = fit_edges(table, times)
        new_times = fit_times(table, *new_edges)
        if loss_of(table, new_times, *new_edges) >= loss_of(table, times, *edges):
            break
        edges, times = new_edges, new_times
    errors = errors_of(table, times, *edges).tolist()
    if all(row.kind != "decoder" for row in rows):  # of `portable`: then its run is that of any graph
        times["step_us"] = times[GRAPH]
    low_mb, high_mb = (edge * cache_bytes(probe) / MB for edge in edges)
    return ThreadFit(times, low_mb, high_mb, list(zip(rows, errors, strict=True)))


class Table(NamedTuple):
    """Rows of one thread count: what each asks for, what it reads between two uses of a matrix (in sizes of the cache),
    us measured, and its worth; for all, bytes of the cache."""

    asked: list[dict[str, float]]
    between: np.ndarray
    cache_bytes: float
    us: np.ndarray
    worth: np.ndarray

    def from_memory(self, low: float, high: float) -> np.ndarray:
        """Of each row, in the amount of `memory_ms_gb`, what comes from memory with these edges of the cache."""
        first, again = (np.array([one.get(name, 0.0) for one in self.asked]) for name in (MEMORY, AGAIN))
        return first * miss_shares(1e6 * first / self.cache_bytes, low, high) + again * miss_shares(
            self.between, low, high
        )


def fit_times(table: Table, low: float, high: float) -> dict[str, float]:
    """Unit times by non-negative least squares.

    Rows weigh by their relative error, those far off by its root only (Huber's loss): another program on the board
    disturbs a few rows much. Whole decoders count more, since they are what is predicted: an operator takes some 10 %
    longer beside others than among its like.
    """
    names = [*GENERAL, GRAPH, *(f"{form}.{name}" for form in ("fp32", "int8", "int4") for name in OF_FORMAT)]
    matrix = np.array([[one.get(name, 0.0) for name in names] for one in table.asked]) / table.us[:, None]
    matrix[:, names.index(MEMORY)] = table.from_memory(low, high) / table.us
    scale = np.maximum(matrix.max(axis=0), 1e-30)  # so that all columns are of one size
    matrix = matrix / scale
    weight = np.sqrt(table.worth)
    for _ in range(ROUNDS):
        found, _ = nnls(matrix * weight[:, None], weight, maxiter=100 * len(names))
        weight = np.sqrt(table.worth * np.minimum(1, FAR / np.maximum(np.abs(matrix @ found - 1), 1e-9)))
    return dict(zip(names, (found / scale).tolist(), strict=True))


def fit_edges(table: Table, times: Mapping[str, float]) -> tuple[float, float]:
    """Of a grid, in sizes of the cache, the pair of least loss."""
    pairs = [(float(low), float(high)) for low in LOW_EDGES for high in HIGH_EDGES if high > low + 0.1]
    return min(pairs, key=lambda pair: loss_of(table, times, *pair))


def errors_of(table: Table, times: Mapping[str, float], low: float, high: float) -> np.ndarray:
    """Predicted / measured - 1 of each row."""
    known = {**times, MEMORY: 0.0, AGAIN: 0.0}
    cached_us = np.array([sum(amount * known[name] for name, amount in one.items()) for one in table.asked])
    return (cached_us + table.from_memory(low, high) * times[MEMORY]) / table.us - 1


def loss(table: Table, errors: np.ndarray) -> float:
    """Huber's, as in `fit_times`."""
    size = np.abs(errors)
    return float(table.worth @ np.where(size < FAR, size**2, 2 * FAR * size - FAR**2))


def loss_of(table: Table, times: Mapping[str, float], low: float, high: float) -> float:
    return loss(table, errors_of(table, times, low, high))


def miss_shares(sizes: np.ndarray, low: float, high: float) -> np.ndarray:
    """Of what each row reads, the share that comes from memory."""
    return np.where(sizes > 0, partly_share(np.maximum(sizes, 1e-9), low, high), 0.0)


def between_bytes(row: Measurement) -> float:
    """Of matrices that are read between two uses of one of them; 0 where each is used once."""
    again = [op for op in decoder_of(row) if op.reread] if row.kind == "decoder" else []
    return again[0].reread * again[0].bytes_per_weight(row.format) if again else 0.0


USUAL_EDGES, TURNS = (0.5, 2.0), 6
LOW_EDGES, HIGH_EDGES = np.arange(0.1, 1.25, 0.05), np.arange(0.8, 4.05, 0.2)  # of the last-level cache


def cache_bytes(probe: Probe) -> float:
    return (probe.last_level_cache_mb or 1.0) * MB
