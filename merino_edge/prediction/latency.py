"""The latency model: each operator is a vector of amounts, and latency is linear in them, at one thread count.

Latency is the sum over operators and quantities of amount x coefficient. It is linear in the coefficients, so that
`calibration` can fit them to a probe, and additive over operators, which the search requires. Without a probe
`default_coefficients` estimates the coefficients.

The caches make latency non-linear: the share of reads from memory depends on all reads of a step. So the latency with
all reads from the caches and the extra latency of memory are two sums, and `cost_model` takes the share of the second
that a whole decoder pays.

Quantities, by the names of their coefficients:
    step_us: runs of the decoder          launch_us: operators          matmul_us: matmuls
    attention_us: attentions              argmax_ns: logits             norm_ns, activation_ns: elements
    kv_ms_gb: GB of keys and values
    attention_ms_per_gmac: 10^9 multiply-adds of attention of several queries at once, over a float cache
    decode_attention_ms_per_gmac: of one query, which has its own kernels
    int8.attention_ms_per_gmac, int4.decode_attention_ms_per_gmac ...: over a quantized cache
    groups.attention_us, groups.kv_ms_gb, groups.int8.attention_ms_per_gmac ...: of this project's GroupAttention
    score_ns: scores; decode_score_ns: of one query
    entry_ns: elements of new keys, values, queries
    memory_ms_gb: GB (10^9 bytes) of first reads of weights, keys and values in a run; the extra latency of reading
        them from memory instead of the cache
    reread_ms_per_gb, with the same coefficient: GB of repeated reads of weights that have left the cache
and per weight format F, for a matmul:
    F.load_ms_gb: GB of weights           F.mac_ms_g: 10^9 multiply-adds
    F.row_ns: elements of the result      F.head_row_ns: the same of the head, whose one row has its own kernels
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from merino_edge.families.operators import (
    EMBEDDINGS,
    FORMATS,
    KV_BITS,
    Operator,
    by_groups,
    runs_on_kernels,
)
from merino_edge.profiles.coefficients import (
    ATTENTION_MACS,
    GROUPS,
    MEMORY,
    OF_ATTENTION,
    REREAD,
    Coefficients,
    Dialect,
)
from merino_runtime.io.board import MB as BYTES_PER_MB

# Default time of a multiply-add of attention over a quantized cache, relative to a float32 cache.
# aarch64: executed instructions of ONNX Runtime 1.32's kernels (docs/decisions/quantization.md).
CACHE_TIMES: Mapping[str, Mapping[str, float]] = {
    "aarch64": {"int8": 3.7 / 1.14, "int4": 7.0 / 1.14},
    "x86_64": {"int8": 1.0, "int4": 1.0},
}

# The same for this project's kernels, which convert eight integers to floats by two more instructions.
GROUPS_CACHE_TIMES = {"int8": 0.61 / 0.45}
FEW, LANES = 4, 8  # query heads of one KV head are computed singly up to FEW, else in tiles of LANES

Run = tuple[int, int]  # (new tokens, cached tokens) of one run of the graph

# By the last word of a quantity's name, per element.
US_PER_UNIT = {"us": 1.0, "ns": 1e-3, "gb": 1e-6, "g": 1e-6, "gmac": 1e-6}

# Nodes of the graph per operator. `embed` carries the nodes that a graph begins with (mask and positions).
NODES: Mapping[Dialect, Mapping[str, int]] = {
    "fused": {
        "embed": 9, "norm": 1, "activation": 1, "head": 3, "slots": 21, "taps": 9, "ids": 18, "ngrams": 8, "delta": 22,
    },
    "portable": {
        "embed": 12, "norm": 6, "activation": 9, "head": 2, "attention": 30, "slots": 6, "taps": 19, "ids": 19,
        "ngrams": 8,
    },
}
# The same with this project's operators for taps, which leave the slots to the ids.
GROUPS_NODES = {"slots": 0, "taps": 1, "ids": 39}
INTEGER_NODES = 4  # of a portable 8-bit matmul: quantize its input, rescale its output

Amounts = dict[str, float]


@dataclass(frozen=True)
class ThreadCoefficients:
    """Coefficients of the latency model for one thread count.

    Attributes:
        us_per_unit: by the names of their quantities.
        resident_mb: a step that reads at most this is resident.
        streaming_mb: a step that reads at least this is streaming.
        half_bytes: size of the reads in between at which half of the repeated reads come from the cache.
    """

    us_per_unit: Mapping[str, float]
    resident_mb: float
    streaming_mb: float
    half_bytes: float


def by_threads(
    coefficients: Coefficients, cache_times: Mapping[str, float] = CACHE_TIMES["aarch64"]
) -> dict[int | None, ThreadCoefficients]:
    """Return the coefficients of each measured or estimated thread count. `cache_times`: time of attention's
    multiply-adds over a quantized cache, relative to float32."""
    table, names = coefficients, ("threads", "by_threads", "cache_within_mb", "cache_beyond_mb", "cache_half_mb")
    return {
        count: ThreadCoefficients(with_defaults(us_per_unit, cache_times), resident, streaming, half * BYTES_PER_MB)
        for count, us_per_unit, resident, streaming, half in zip(*(getattr(table, name) for name in names), strict=True)
    }


OF_INT8 = tuple(f"int8.{name}" for name in ATTENTION_MACS)


def with_defaults(us_per_unit: Mapping[str, float], cache_times: Mapping[str, float]) -> dict[str, float]:
    """Return the coefficients, with defaults for quantized caches and GroupAttention if these were not measured."""
    caches = {f"{kv}.{name}": time * us_per_unit[name] for kv, time in cache_times.items() for name in ATTENTION_MACS}
    caches |= us_per_unit
    if f"{GROUPS}.{ATTENTION_MACS[0]}" not in us_per_unit:
        return caches | {f"{GROUPS}.{name}": caches[name] for name in (*OF_ATTENTION, *OF_INT8) if name in caches}
    times = GROUPS_CACHE_TIMES["int8"]
    return {f"{GROUPS}.int8.{name}": times * us_per_unit[f"{GROUPS}.{name}"] for name in ATTENTION_MACS} | caches


def latency_table(
    operators: Sequence[Operator], precision: str, runs: Sequence[Run], dialect: Dialect,
    thread_counts: Sequence[ThreadCoefficients], kv: str | None = None,
) -> np.ndarray:  # fmt: skip
    """Return the latency of each operator over all `runs` at each thread count in ms: with all first reads from the
    caches, and the extra latency with all of them from memory. [operators, thread counts, 2], additive over operators.

    kv: the cache's format; None: float32.
    """
    names = sorted({name for at in thread_counts for name in at.us_per_unit})
    column = {name: index for index, name in enumerate(names)}
    table = np.zeros((len(operators), len(thread_counts), 2))
    counted: dict[float, np.ndarray] = {}
    for index, at in enumerate(thread_counts):
        half = at.half_bytes if any(op.reread for op in operators) else 0.0  # it counts for repeated reads only
        if half not in counted:
            counted[half] = np.zeros((len(operators), len(names)))
            for row, op in zip(counted[half], operators, strict=True):
                for new, cached in runs:
                    units = amounts(op, precision, new, cached, dialect, half=half, kv=kv)
                    for name, amount in units.items():
                        row[column[name]] += amount
        us_per_unit = np.array([at.us_per_unit[name] for name in names])
        memory_us = counted[half][:, column[MEMORY]] * us_per_unit[column[MEMORY]]
        table[:, index] = np.stack([counted[half] @ us_per_unit - memory_us, memory_us], axis=1) / 1e3
    return table


def matrix_format(op: Operator, precision: str) -> str:
    """Return the format in which a decoder of `precision` stores this matrix: embeddings of int4 have 8 bits."""
    form = FORMATS[precision]
    bits = form.embedding_bits if op.kind in EMBEDDINGS else form.bits
    return {32: "fp32", 16: "fp16", 8: "int8", 4: "int4"}[bits]


@lru_cache(maxsize=2**16)  # a search repeats the same few thousand calls; callers must not change the results
def amounts(
    op: Operator, precision: str, tokens: int, past: int, dialect: Dialect = "fused", half: float = 0.0,
    kv: str | None = None,
) -> Mapping[str, float]:  # fmt: skip
    """Return the amounts of one run over `tokens` new positions after `past` cached ones.

    First reads are counted as if the previous run left nothing in the cache. Repeated reads count by `reread_share`,
    with half of them cached at `half` bytes in between. `kv`: as of `latency_table`.
    """
    totals: Amounts = defaultdict(float)
    groups = runs_on_kernels(dialect, precision)
    nodes = GROUPS_NODES.get(op.kind, NODES[dialect].get(op.kind, 0)) if groups else NODES[dialect].get(op.kind, 0)
    rows_out = 1 if op.kind == "head" or op.final else tokens
    totals["launch_us"] += nodes
    if op.kind in ("linear", "head"):
        matmul_amounts(totals, op, precision, rows_out, dialect)
        size = op.read_bytes(precision)
        if op.reread:
            totals[REREAD] += reread_share(op.reread * op.bytes_per_weight(precision), half) * size
        else:
            totals[MEMORY] += size
    if op.kind == "head":
        totals["step_us"] += 1
        totals["argmax_ns"] += op.matrix / op.columns
    if op.kind == "attention":
        kv = kv or "fp32"
        grouped = groups and bool(op.width) and by_groups(op.query_width, op.width, KV_BITS[kv])
        attention_amounts(totals, op, tokens, past, kv, grouped)
    if op.kind in ("norm", "activation"):
        totals[f"{op.kind}_ns"] += nodes * op.vectors * rows_out
    if op.kind == "delta":  # the state is read and written once in a run, and multiplied like cached keys
        totals[MEMORY] += 2 * 4 * op.state
        totals["kv_ms_gb"] += 2 * 4 * op.state
        totals["decode_attention_ms_per_gmac"] += op.macs * tokens
    if op.kind in ("taps", "delta"):  # products and sums, which take an element as long as a norm's passes
        totals["norm_ns"] += op.vectors * rows_out
    return {name: amount * US_PER_UNIT[name.rsplit("_", 1)[1]] for name, amount in totals.items()}


def matmul_amounts(totals: Amounts, op: Operator, precision: str, tokens: int, dialect: Dialect) -> None:
    """Add the amounts of a matrix multiplication over `tokens` positions."""
    form = matrix_format(op, precision)
    rows = op.matrix // op.columns
    size = op.read_bytes(precision)
    totals["matmul_us"] += 1
    totals["launch_us"] += bool(op.vector)
    totals[f"{form}.load_ms_gb"] += size
    totals[f"{form}.mac_ms_g"] += op.matrix * tokens
    totals[f"{form}.{'head_row_ns' if op.kind == 'head' else 'row_ns'}"] += rows * tokens
    if dialect == "portable" and form == "int8":
        totals["launch_us"] += INTEGER_NODES


def memory_share(size: Any, low: float, high: float) -> Any:
    """Return the share of `size` (a number or an array) that comes from memory: 0 up to `low`, 1 from `high` on;
    between them the amount is linear."""
    return np.clip(high * (size - low) / ((high - low) * size), 0, 1) if high else 1.0


def reread_share(between: Any, half: float) -> Any:
    """Return the share of a repeated read that comes from memory after `between` bytes (a number or an array):
    proportional to them, half at `half`, all from twice `half` on."""
    return np.minimum(between / (2 * half), 1.0) if half else 1.0


def attention_amounts(totals: Amounts, op: Operator, tokens: int, past: int, kv: str, groups: bool) -> None:
    """Add the amounts of attention. ONNX Runtime's multiplies every query by every key, cached and new: its kernels
    compute the full matrix of scores. GroupAttention (`groups`) skips masked keys, and pads queries to whole tiles
    unless they are few."""
    seen, channels, prefix = float(past + tokens), op.query_width, ""
    if groups:
        group = op.query_width // op.width
        filled = group if group <= FEW or tokens > 1 else -(-group // LANES) * LANES
        seen, channels, prefix = past + (tokens + 1) / 2, op.width * filled, f"{GROUPS}."
    size = 2 * op.width * (past + tokens) * KV_BITS[kv] // 8
    pairs = "decode_attention_ms_per_gmac" if tokens == 1 else "attention_ms_per_gmac"
    totals[MEMORY] += size
    totals[f"{prefix}attention_us"] += 1
    totals[f"{prefix}kv_ms_gb"] += size
    totals[prefix + (pairs if kv == "fp32" else f"{kv}.{pairs}")] += 2 * channels * tokens * seen
    totals[f"{prefix}{'decode_score_ns' if tokens == 1 else 'score_ns'}"] += op.heads * tokens * seen
    totals[f"{prefix}entry_ns"] += (op.query_width + 2 * op.width) * tokens
