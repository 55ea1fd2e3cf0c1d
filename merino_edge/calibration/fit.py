"""Unit times and cache edges of one thread count, by non-negative least squares over the rows of a probe.

What the unit times are multiplied with: `latency`. What becomes of them: `calibration`.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from merino_bench.probe.tasks import DECODER_VOCAB
from merino_edge.calibration.probe import Measurement, Probe
from merino_edge.families.merino.architecture import Architecture, Block
from merino_edge.families.operators import Operator, activation, attention, head, linear, norm
from merino_edge.prediction.latency_terms import again_share, amounts, partly_share, total_us
from merino_edge.profiles.coefficients import AGAIN, GENERAL, MEMORY, OF_FORMAT, Dialect
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
    return norm(row.columns) if row.kind == "norm" else activation(row.columns)


def amounts_of(row: Measurement, dialect: Dialect) -> dict[str, float]:
    """What one run of the row's graph asks for, with all that it reads coming from memory."""
    if row.kind == "choose":
        return {"choose_ns": row.rows * 1e-3}
    if row.kind == "call":
        return {"launch_us": 1.0, GRAPH: 1.0}
    if row.kind == "decoder":
        return summed(amounts(op, row.format, row.tokens, row.past, dialect) for op in decoder_of(row))
    one = amounts(operator_of(row), row.format, row.tokens, row.past, dialect)
    if row.kind == "head":  # a graph of its own, and no token is chosen
        one = {name: amount for name, amount in one.items() if name not in ("choose_ns", "step_us")}
    return {name: amount * row.count for name, amount in one.items()} | {GRAPH: 1.0}


def decoder_of(row: Measurement) -> list[Operator]:
    return decoder_operators(row.columns, row.rows, row.count, row.uses, row.columns // row.heads)


@lru_cache(maxsize=64)  # of each shape a probe has rows for several formats, thread counts and numbers of tokens
def decoder_operators(width: int, ffn: int, layers: int, uses: int, head_size: int) -> list[Operator]:
    """One block of layers of their own, or one for each layer that is used several times."""
    shared = uses > 1
    depth, count = (uses, layers) if shared else (layers, 1)
    block = Block(width=width, ffn_ratio=ffn / width, depth=depth, shared=shared)
    return Architecture(blocks=(block,) * count, vocab=DECODER_VOCAB, head_size=head_size).operators


def summed(all_amounts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in all_amounts:
        for name, amount in one.items():
            found[name] = found.get(name, 0.0) + amount
    return found


GRAPH = "graph_us"  # a run of a graph by itself; a decoder's run is step_us


class ThreadFit(NamedTuple):
    """Unit times of one thread count, the cache's edges, and each row with its predicted / measured - 1."""

    times: dict[str, float]
    edges: "Edges"  # in MB of 2^20 bytes
    rows: list[tuple[Measurement, float]]


class Edges(NamedTuple):
    """Of the last-level cache: `figures.UnitTimes` says of what."""

    within: float
    beyond: float
    half: float


class Table(NamedTuple):
    """Rows of one thread count. Sizes are in sizes of the cache."""

    asked: list[dict[str, float]]  # but what is read
    first: np.ndarray  # read for the first time, in the amount of `memory_ms_gb`
    again: np.ndarray  # read again, in the same
    first_sizes: np.ndarray
    between_sizes: np.ndarray  # of what is read between two uses of a matrix
    us: np.ndarray
    worth: np.ndarray

    def from_memory(self, edges: Edges) -> np.ndarray:
        """Of each row, in the amount of `memory_ms_gb`, what comes from memory."""
        sizes = np.maximum(self.first_sizes, TINY)
        first = self.first * partly_share(sizes, edges.within, edges.beyond)
        return first + self.again * again_share(self.between_sizes, edges.half)


def fit_threads(probe: Probe, threads: int) -> ThreadFit:
    """Unit times and the cache's edges, in turn: each fitted with the other as it stands; the best of all turns, from
    several beginnings, since edges that are not yet right hold each other where they are."""
    rows = [row for row in probe.measurements if row.threads == threads and row.kind != "read"]
    table = table_of(rows, probe)
    from_memory = np.stack([table.from_memory(edges) for edges in GRID])  # [G, rows]: of all turns
    fits = (in_turn(table, from_memory, start) for start in BEGINNINGS)
    times, edges = min(fits, key=lambda found: loss_of(table, *found))
    errors = errors_of(table, times, edges).tolist()
    if all(row.kind != "decoder" for row in rows):  # of `portable`: then its run is that of any graph
        times["step_us"] = times[GRAPH]
    edges_mb = Edges(*(edge * cache_bytes(probe) / MB for edge in edges))
    return ThreadFit(times, edges_mb, list(zip(rows, errors, strict=True)))


def table_of(rows: Sequence[Measurement], probe: Probe) -> Table:
    asked = [amounts_of(row, probe.dialect) for row in rows]
    first, again = (np.array([one.pop(name, 0.0) for one in asked]) for name in (MEMORY, AGAIN))
    return Table(
        asked, first, again, 1e6 * first / cache_bytes(probe),
        np.array([between_bytes(row) for row in rows]) / cache_bytes(probe),
        np.array([max(1e3 * row.ms, LEAST_US) for row in rows]),
        np.array([DECODER_WORTH if row.kind == "decoder" else 1.0 for row in rows]),
    )  # fmt: skip


def in_turn(table: Table, from_memory: np.ndarray, edges: Edges) -> tuple[dict[str, float], Edges]:
    times = fit_times(table, edges)
    for _ in range(TURNS):
        new_edges = fit_edges(table, from_memory, times)
        new_times = fit_times(table, new_edges)
        if loss_of(table, new_times, new_edges) >= loss_of(table, times, edges):
            break
        edges, times = new_edges, new_times
    return times, edges


def fit_times(table: Table, edges: Edges) -> dict[str, float]:
    """Unit times by non-negative least squares.

    Rows weigh by their relative error, those far off by its root only (Huber's loss): another program on the board
    disturbs a few rows much. Whole decoders count more, since they are what is predicted: an operator takes some 10 %
    longer beside others than among its like.
    """
    names = [*GENERAL, GRAPH, *(f"{form}.{name}" for form in ("fp32", "int8", "int4") for name in OF_FORMAT)]
    matrix = np.array([[one.get(name, 0.0) for name in names] for one in table.asked]) / table.us[:, None]
    matrix[:, names.index(MEMORY)] = table.from_memory(edges) / table.us
    scale = np.maximum(matrix.max(axis=0), 1e-30)  # so that all columns are of one size
    matrix = matrix / scale
    weight = np.sqrt(table.worth)
    for _ in range(ROUNDS):
        found, _ = nnls(matrix * weight[:, None], weight, maxiter=100 * len(names))
        weight = np.sqrt(table.worth * np.minimum(1, FAR / np.maximum(np.abs(matrix @ found - 1), 1e-9)))
    return dict(zip(names, (found / scale).tolist(), strict=True))


def fit_edges(table: Table, from_memory: np.ndarray, times: Mapping[str, float]) -> Edges:
    """Those of the grid with the least loss; `from_memory` [G, rows] is what comes from memory under each of them."""
    errors = (cached_us(table, times) + from_memory * times[MEMORY]) / table.us - 1
    return GRID[int(loss(table, errors).argmin())]


def cached_us(table: Table, times: Mapping[str, float]) -> np.ndarray:
    """Of each row, were nothing read from memory."""
    return np.array([total_us([one], times) for one in table.asked])


def errors_of(table: Table, times: Mapping[str, float], edges: Edges) -> np.ndarray:
    """Predicted / measured - 1 of each row."""
    return (cached_us(table, times) + table.from_memory(edges) * times[MEMORY]) / table.us - 1


def loss(table: Table, errors: np.ndarray) -> np.ndarray:
    """Huber's, as in `fit_times`: of errors [..., rows] the sum over the rows."""
    size = np.abs(errors)
    return np.asarray(np.where(size < FAR, size**2, 2 * FAR * size - FAR**2) @ table.worth)


def loss_of(table: Table, times: Mapping[str, float], edges: Edges) -> float:
    return float(loss(table, errors_of(table, times, edges)))


def between_bytes(row: Measurement) -> float:
    """Of matrices that are read between two uses of one of them; 0 where each is used once."""
    again = [op for op in decoder_of(row) if op.reread] if row.kind == "decoder" else []
    return again[0].reread * again[0].bytes_per_weight(row.format) if again else 0.0


BEGINNINGS, TURNS = [Edges(within, 3.0, 1.0) for within in (0.4, 0.6, 0.8)], 6
WITHIN, BEYOND = np.arange(0.1, 1.25, 0.05), (0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)  # of the last-level cache
HALF = (0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0)
GRID = [Edges(*map(float, edges)) for edges in itertools.product(WITHIN, BEYOND, HALF) if edges[0] < edges[1]]
TINY = 1e-9  # in place of a size of nothing


def cache_bytes(probe: Probe) -> float:
    return (probe.last_level_cache_mb or 1.0) * MB
