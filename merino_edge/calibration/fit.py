"""Fit the coefficients of the latency model and the cache edges of one thread count to the rows of a probe.

Alternating minimization over the coefficients (non-negative least squares) and the cache edges (grid search), from
three starts because of local minima. From the best result the edges move to neighbors on the grid, each with its own
coefficients. The terms of the model are in `prediction.latency`; `calibrate` writes the result into a profile.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from scipy.optimize import nnls

from merino_edge.calibration.probe import MeasuredDesign, Measurement, Probe, timed_decoder
from merino_edge.families.designed import Architecture
from merino_edge.families.operators import Operator, activation, attention, head, linear, norm
from merino_edge.prediction.latency import Run, amounts, memory_share, reread_share
from merino_edge.prediction.onnxruntime_costs import prefill_chunks
from merino_edge.profiles.coefficients import (
    ATTENTION_MACS,
    FORMS,
    GENERAL,
    GROUPS,
    MEMORY,
    OF_ATTENTION,
    OF_FORMAT,
    REREAD,
    Dialect,
)
from merino_runtime.bundle import QUANTIZED_CACHES
from merino_runtime.io.board import MB

REWEIGHTINGS, HUBER_ERROR = 8, 0.1  # relative error above which Huber's loss grows linearly
DECODER_WEIGHT = 10.0  # of a row of a whole decoder, relative to a row of one operator
DESIGN_WEIGHTS = (30.0, 10.0, 100.0, 300.0, 1000.0)  # of a design: the weight that predicts left-out designs best
LEAST_US = 1e-3  # lower bound of a measured time, since errors are relative


class DesignTime(NamedTuple):
    """One phase of a measured design, as a row of the fit. `extrapolated`: to a thread count that it was not measured
    with."""

    design: MeasuredDesign
    phase: Literal["decode", "prefill"]
    threads: int
    ms: float
    extrapolated: bool = False

    @property
    def kind(self) -> str:
        return "design"

    @property
    def format(self) -> str:
        return self.design.format

    @property
    def tokens(self) -> int:
        return 1 if self.phase == "decode" else self.design.prompt

    @property
    def runs(self) -> list[Run]:
        return [(1, self.design.past)] if self.phase == "decode" else prefill_chunks(self.design.prompt)


Row = Measurement | DesignTime
Decoder = tuple[int, ...] | Architecture  # identifies a decoder, independently of its format


def operator_of(row: Measurement) -> Operator:
    """Return the operator that a row of the probe repeats `count` times."""
    if row.kind == "linear":
        return linear(row.columns, row.rows)
    if row.kind == "head":
        return head(row.columns, row.rows)
    if row.kind == "attention":
        return attention(row.columns, row.heads, kv_width=row.kv_heads * row.columns // row.heads)
    return norm(row.columns) if row.kind == "norm" else activation(row.columns)


def amounts_of(row: Row, dialect: Dialect) -> dict[str, float]:
    """Return the amount of each term in one run of the row's graph, if all reads come from memory."""
    if isinstance(row, DesignTime) or row.kind == "decoder":
        runs = row.runs if isinstance(row, DesignTime) else [(row.tokens, row.past)]
        totals: Counter[str] = Counter()  # of floats
        for op, (new, past) in itertools.product(decoder_of(row), runs):
            totals.update(amounts(op, row.format, new, past, dialect))
        return dict(totals)
    if row.kind == "argmax":
        return {"argmax_ns": row.rows * 1e-3}
    if row.kind == "call":
        return {"launch_us": 1.0, GRAPH: 1.0}
    form = "int8" if row.by_groups else row.format  # attention by groups is that of quantized weights
    terms = amounts(operator_of(row), form, row.tokens, row.past, dialect, kv=row.kv)
    if row.kind == "head":  # timed as a separate graph, without the argmax
        terms = {name: amount for name, amount in terms.items() if name not in ("argmax_ns", "step_us")}
    return {name: amount * row.count for name, amount in terms.items()} | {GRAPH: 1.0}


def decoder_of(row: Row) -> list[Operator]:
    """Return the operators of a row's whole decoder; none for other rows."""
    if isinstance(row, DesignTime):
        return row.design.architecture.operators
    if row.kind != "decoder":
        return []
    return timed_operators(*shape_of(row))


@lru_cache(maxsize=64)  # a probe has rows of one shape for several formats, thread counts and numbers of tokens
def timed_operators(*shape: int) -> list[Operator]:
    return timed_decoder(*shape).operators


GRAPH = "graph_us"  # one run of a graph that is no decoder; a decoder's run is step_us
OF_CACHES = [f"{kv}.{name}" for kv in QUANTIZED_CACHES for name in ATTENTION_MACS]
OF_GROUPS = [f"{GROUPS}.{name}" for name in (*OF_ATTENTION, *(f"int8.{name}" for name in ATTENTION_MACS))]
FITTED = [
    *GENERAL, *OF_CACHES, *OF_GROUPS, GRAPH, *(f"{form}.{name}" for form in FORMS for name in OF_FORMAT)
]  # fmt: skip
MEMORY_COLUMN = FITTED.index(MEMORY)


class ThreadFit(NamedTuple):
    """Coefficients and cache edges of one thread count, and their errors.

    Attributes:
        rows: each row with predicted / measured - 1.
        held_out: each row of a whole decoder with log(measured / predicted), from a fit without that decoder's rows.
    """

    coefficients: dict[str, float]
    edges: "Edges"  # in MB of 2^20 bytes
    rows: list[tuple[Row, float]]
    held_out: list[tuple[Row, float]]


class Edges(NamedTuple):
    """Sizes at which weights leave the last-level cache: see `profiles.coefficients.Coefficients`."""

    within: float
    beyond: float
    half: float


class Table(NamedTuple):
    """The rows of one thread count as arrays [rows]. Sizes are in units of the last-level cache."""

    amounts: np.ndarray  # of each of FITTED, 0 for the reads from memory. [rows, coefficients]
    first: np.ndarray  # first reads of a run, in the unit of `memory_ms_gb`'s amount
    rereads: np.ndarray  # repeated reads, by the size of the reads in between. [rows, sizes]
    first_sizes: np.ndarray
    between_sizes: np.ndarray  # of the reads between two uses of a matrix. [rows, sizes]
    us: np.ndarray  # measured
    weight: np.ndarray  # of the row in the loss

    def from_memory(self, edges: Edges) -> np.ndarray:
        """Return the amount of `memory_ms_gb` in each row [rows], for a cache with these edges."""
        sizes = np.maximum(self.first_sizes, TINY)
        first = self.first * memory_share(sizes, edges.within, edges.beyond)
        return first + np.sum(self.rereads * reread_share(self.between_sizes, edges.half), axis=1)


def fit_all(probe: Probe) -> dict[int, ThreadFit]:
    """Return the fit of each thread count. A design is measured at one count. For the other counts it is extrapolated
    with the same factor over the fit to the probe alone, because the next search would otherwise choose a count without
    corrections."""
    probe_fits = {count: fit_threads(probe, count) for count in probe.threads}
    times = [
        time for design in probe.designs for time in (
            DesignTime(design, "decode", design.decode_threads, design.decode_ms),
            DesignTime(design, "prefill", design.prefill_threads, design.prefill_ms),
        ) if time.threads in probe_fits
    ]  # fmt: skip
    if not times:
        return probe_fits

    def share(time: DesignTime, threads: int) -> float:
        """Return the latency predicted by the fit of `threads` threads, relative to the measured one."""
        fit, table = probe_fits[threads], table_of([time], probe)
        edges = Edges(*(edge * MB / cache_bytes(probe) for edge in fit.edges))
        return 1 + float(errors_of(table, np.array(list(fit.coefficients.values())), edges)[0])

    def at_count(time: DesignTime, count: int) -> DesignTime:
        if time.threads == count:
            return time
        factor = share(time, count) / share(time, time.threads)
        return time._replace(threads=count, ms=time.ms * factor, extrapolated=True)

    return {count: fit_threads(probe, count, [at_count(time, count) for time in times]) for count in probe_fits}


def fit_threads(probe: Probe, threads: int, designs: Sequence[DesignTime] = ()) -> ThreadFit:
    """Return the fit of least loss over the three starts and neighboring edges."""
    rows: list[Row] = [row for row in probe.measurements if row.threads == threads and row.kind != "read"]
    rows += designs
    table = table_of(rows, probe)
    from_memory = np.stack([table.from_memory(edges) for edges in GRID])  # [edges of the grid, rows]
    fits = (alternate(table, from_memory, start) for start in STARTS)
    coefficients, edges = descend(table, *min(fits, key=lambda fit: loss_of(table, *fit)))
    held_out = held_out_errors(rows, table, edges)
    if designs:
        # Designs may contradict the probe's rows if a search exploits an effect that the model has no term for. Their
        # best weight depends on the machine.
        is_design = np.array([isinstance(row, DesignTime) for row in rows])
        tables = [table._replace(weight=np.where(is_design, weight, table.weight)) for weight in DESIGN_WEIGHTS]
        candidates = [(candidate, held_out_errors(rows, candidate, edges)) for candidate in tables]
        any_measured = any(not design.extrapolated for design in designs)

        def error_of_designs(candidate: tuple[Table, list[tuple[Row, float]]]) -> float:
            """Return the mean absolute error of held-out designs, if possible of those measured at this count."""
            return float(np.mean([
                abs(error) for row, error in candidate[1]
                if isinstance(row, DesignTime) and not (any_measured and row.extrapolated)
            ]))  # fmt: skip

        table, held_out = min(candidates, key=error_of_designs)
        coefficients = fit_coefficients(table, edges)
    errors = errors_of(table, coefficients, edges).tolist()
    named = dict(zip(FITTED, coefficients.tolist(), strict=True))
    if all(is_operator(row) for row in rows):  # a portable probe has no decoders: a decoder's run costs as any graph's
        named["step_us"] = named[GRAPH]
    edges_mb = Edges(*(edge * cache_bytes(probe) / MB for edge in edges))
    return ThreadFit(named, edges_mb, list(zip(rows, errors, strict=True)), held_out)


def is_operator(row: Row) -> bool:
    """Return whether the row's graph is not a whole decoder."""
    return row.kind not in ("decoder", "design")


def table_of(rows: Sequence[Row], probe: Probe) -> Table:
    terms = [amounts_of(row, probe.dialect) for row in rows]
    first, _ = (np.array([amount.pop(name, 0.0) for amount in terms]) for name in (MEMORY, REREAD))
    rereads = [rereads_of(row) for row in rows]
    sizes = range(max(map(len, rereads), default=0))
    filled = [[*pairs, *[(0.0, 0.0)] * (len(sizes) - len(pairs))] for pairs in rereads]
    pairs = np.array(filled).reshape(len(rows), len(sizes), 2)
    of_terms = np.array([[amount.get(name, 0.0) for name in FITTED] for amount in terms])
    return Table(
        amounts=of_terms,
        first=first,
        rereads=pairs[..., 1] / 1e6,
        first_sizes=1e6 * first / cache_bytes(probe),
        between_sizes=pairs[..., 0] / cache_bytes(probe),
        us=np.array([max(1e3 * row.ms, LEAST_US) for row in rows]),
        weight=np.array([WEIGHTS.get(row.kind, 1.0) for row in rows]),
    )


def alternate(table: Table, from_memory: np.ndarray, edges: Edges) -> tuple[np.ndarray, Edges]:
    """Minimize alternately from these edges, until the loss no longer falls. Return coefficients and edges.

    from_memory [edges of the grid, rows]: the amount of `memory_ms_gb` for each edges of the grid.
    """
    coefficients = fit_coefficients(table, edges)
    for _ in range(MOST_TURNS):
        errors = (table.amounts @ coefficients + from_memory * coefficients[MEMORY_COLUMN]) / table.us - 1
        new_edges = GRID[int(loss(table, errors).argmin())]
        new_coefficients = fit_coefficients(table, new_edges)
        if loss_of(table, new_coefficients, new_edges) >= loss_of(table, coefficients, edges):
            break
        edges, coefficients = new_edges, new_coefficients
    return coefficients, edges


def descend(table: Table, coefficients: np.ndarray, edges: Edges) -> tuple[np.ndarray, Edges]:
    """Climb over neighboring edges. Alternation gets stuck here, because its coefficients fit the old edges."""
    for _ in range(MOST_MOVES):
        fits = [(fit_coefficients(table, neighbor), neighbor) for neighbor in neighbors(edges)]
        best = min(fits, key=lambda fit: loss_of(table, *fit))
        if loss_of(table, *best) >= loss_of(table, coefficients, edges):
            break
        coefficients, edges = best
    return coefficients, edges


def neighbors(edges: Edges) -> list[Edges]:
    """Return the edges of the grid that differ by one step in one or both of the first two."""

    def near(axis: Sequence[float], edge: float) -> Sequence[float]:
        place = int(np.abs(np.array(axis) - edge).argmin())
        return axis[max(0, place - 1) : place + 2]

    pairs = itertools.product(near(WITHIN, edges.within), near(BEYOND, edges.beyond))
    return [Edges(within, beyond, edges.half) for within, beyond in pairs if within < beyond]


def fit_coefficients(table: Table, edges: Edges) -> np.ndarray:
    """Fit the coefficients by non-negative least squares of the relative errors, reweighted with Huber's loss.

    The loss grows linearly above HUBER_ERROR, because another program on the board may disturb a few rows strongly.
    Whole decoders weigh more, because they are predicted: an operator is some 10 % slower in a decoder than in a graph
    of equal operators.
    """
    matrix = time_shares(table, edges)
    largest = np.maximum(matrix.max(axis=0), 1e-30)  # every column of the scaled matrix has 1 as its largest value
    scaled, _ = reweighted(matrix / largest, table.weight)
    return scaled / largest


def time_shares(table: Table, edges: Edges) -> np.ndarray:
    """Return the share of each row's measured time per unit of each coefficient. [rows, coefficients]"""
    matrix = table.amounts / table.us[:, None]
    matrix[:, MEMORY_COLUMN] = table.from_memory(edges) / table.us
    return matrix


def reweighted(matrix: np.ndarray, row_weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the coefficients of least loss, and the weights of the rows in the last least squares. [coefficients],
    [rows]"""
    weight = row_weight
    for _ in range(REWEIGHTINGS):
        coefficients = weighted_nnls(matrix, weight)
        errors = np.maximum(np.abs(matrix @ coefficients - 1), 1e-9)
        used, weight = weight, row_weight * np.minimum(1, HUBER_ERROR / errors)
    return coefficients, used


def weighted_nnls(matrix: np.ndarray, weight: np.ndarray) -> np.ndarray:
    root = np.sqrt(weight)
    coefficients, _ = nnls(matrix * root[:, None], root, maxiter=100 * matrix.shape[1])
    return np.asarray(coefficients)


def held_out_errors(rows: Sequence[Row], table: Table, edges: Edges) -> list[tuple[Row, float]]:
    """Return log(measured / predicted) of each row of a whole decoder, by leave-one-out cross-validation: with
    coefficients fitted to all rows except those of that decoder, in any format.

    Edges and the weights of Huber's loss stay those of all rows, so that a left-out decoder costs one least squares.
    """
    matrix = time_shares(table, edges)
    matrix = matrix / np.maximum(matrix.max(axis=0), 1e-30)
    _, weight = reweighted(matrix, table.weight)
    shapes = [None if is_operator(row) else shape_of(row) for row in rows]
    errors: list[tuple[Row, float]] = []
    for shape in dict.fromkeys(shape for shape in shapes if shape):
        same = [index for index, other in enumerate(shapes) if other == shape]
        others = weight.copy()
        others[same] = 0
        shares = matrix[same] @ weighted_nnls(matrix, others)  # predicted / measured
        errors += zip((rows[index] for index in same), (-np.log(np.maximum(shares, TINY))).tolist(), strict=True)
    return errors


def shape_of(row: Row) -> Decoder:
    """Return the decoder of a row, independently of its format."""
    if isinstance(row, DesignTime):
        return row.design.architecture
    return row.columns, row.rows, row.count, row.uses, row.heads, row.kv_heads


def errors_of(table: Table, coefficients: np.ndarray, edges: Edges) -> np.ndarray:
    """Return predicted / measured - 1 [rows]."""
    return np.asarray(time_shares(table, edges) @ coefficients - 1)


def loss(table: Table, errors: np.ndarray) -> np.ndarray:
    """Return Huber's loss of errors [..., rows], as in `fit_coefficients`: the weighted sum over the rows [...]."""
    size = np.abs(errors)
    losses = np.where(size < HUBER_ERROR, size**2, 2 * HUBER_ERROR * size - HUBER_ERROR**2)
    return np.asarray(losses @ table.weight)


def loss_of(table: Table, coefficients: np.ndarray, edges: Edges) -> float:
    return float(loss(table, errors_of(table, coefficients, edges)))


def rereads_of(row: Row) -> list[tuple[float, float]]:
    """Return pairs of (bytes read between two uses of a matrix, bytes read again after them), or none if each matrix is
    used once. Each chunk of a prefill reads all matrices."""
    rereads: dict[float, float] = {}
    for op in decoder_of(row):
        if op.reread:
            between = op.reread * op.bytes_per_weight(row.format)
            rereads[between] = rereads.get(between, 0.0) + op.read_bytes(row.format)
    chunks = len(row.runs) if isinstance(row, DesignTime) else 1
    return [(between, chunks * size) for between, size in rereads.items()]


HEAD_WEIGHT = 10.0  # of a head: a format has two rows, which stand for vocabularies that no timed decoder has
WEIGHTS = {"decoder": DECODER_WEIGHT, "design": DESIGN_WEIGHTS[0], "head": HEAD_WEIGHT}
MOST_MOVES = 10  # to neighboring edges
STARTS, MOST_TURNS = [Edges(within, 3.0, 1.0) for within in (0.4, 0.6, 0.8)], 6
# The grid of edges, in units of the last-level cache
WITHIN, BEYOND = np.arange(0.1, 1.25, 0.05).tolist(), (0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
HALF = (0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0)
GRID = [Edges(*edges) for edges in itertools.product(WITHIN, BEYOND, HALF) if edges[0] < edges[1]]
TINY = 1e-9  # in place of a size of 0


def cache_bytes(probe: Probe) -> float:
    return (probe.last_level_cache_mb or 1.0) * MB
