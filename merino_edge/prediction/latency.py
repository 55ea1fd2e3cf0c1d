"""The latency model: what an operator takes of a machine, as amounts of a few quantities, and ms at one thread count.

Latency is the sum over operators and quantities of amount x coefficient. It is linear in the coefficients, so
`calibration` can fit them to a probe, and it adds up over operators, which the exact solver needs. Coefficients hold
for one thread count; `default_coefficients` derives them where nobody has measured.

The caches make latency non-linear: how much comes from memory depends on how much a step reads in all. Under an assumed
`Residency` latency is a sum again, so a search can add up parts of a decoder. Which residency a whole decoder has is
decided by the cost model.

Quantities, by the names of their coefficients:
    step_us: runs of the decoder          launch_us: operators          product_us: products with a matrix
    attention_us: attentions              choose_ns: logits compared    norm_ns, activation_ns: elements
    kv_ms_gb: GB of keys and values
    attention_ms_per_gmac: 10^9 multiply-adds of attention of several queries at once, over a cache of floats
    decode_attention_ms_per_gmac: of one query, which has kernels of its own
    int8.attention_ms_per_gmac, int4.decode_attention_ms_per_gmac ...: over a quantised cache
    groups.attention_us, groups.kv_ms_gb, groups.int8.attention_ms_per_gmac ...: of this project's attention by groups
    score_ns: scores; decode_score_ns: of one query
    entry_ns: elements of new keys, values, queries
    memory_ms_gb: GB (10^9 bytes) of weights, keys and values that a run reads for the first time; the extra latency
        where they come from memory and not from the cache
    reread_ms_per_gb, with the same coefficient: GB of weights that the run read before and that have left the cache
and per weight format F, for a product with a matrix:
    F.load_ms_gb: GB of weights           F.mac_ms_g: 10^9 multiply-adds
    F.scale_ns: scales x tokens           F.row_ns: elements of the result
    F.head_row_ns: the same of the head, whose one row has kernels of its own
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from merino_edge.families.operators import FORMATS, KV_BITS, Operator, by_groups, largest_group
from merino_edge.profiles.coefficients import AGAIN, GROUPS, MEMORY, OF_ATTENTION, PAIRS, Coefficients, Dialect
from merino_runtime.io.board import MB as BYTES_PER_MB

# How weights, keys and values of a decode step meet the last-level cache: it holds all of them (resident); it holds a
# part, which shrinks as the step reads more (partial); it holds none (streaming).
Residency = Literal["resident", "partial", "streaming"]
RESIDENCIES: tuple[Residency, ...] = ("resident", "partial", "streaming")

# Time of a multiply-add of attention over a quantised cache, over that of float32's, where no probe measured it.
# aarch64: executed instructions of ONNX Runtime 1.32's kernels (docs/decisions/kv-cache.md).
CACHE_TIMES: Mapping[str, Mapping[str, float]] = {
    "aarch64": {"int8": 3.7 / 1.14, "int4": 7.0 / 1.14},
    "x86_64": {"int8": 1.0, "int4": 1.0},
}

# The same of this project's kernels; their integers become floats at two instructions more for eight of them.
GROUPS_CACHE_TIMES = {"int8": 0.61 / 0.45}
FEW, LANES = 4, 8  # queries of one position that share a KV head: up to FEW each counts, else whole tiles of LANES

Run = tuple[int, int]  # (new tokens, cached tokens) of one run of the graph

# By the last word of a quantity's name, per element.
US_PER_UNIT = {"us": 1.0, "ns": 1e-3, "gb": 1e-6, "g": 1e-6, "gmac": 1e-6}

# Nodes of the graph per operator. `embed` carries the nodes that a graph begins with (mask and positions).
FUSED_NODES = {"embed": 9, "norm": 1, "activation": 1, "head": 3}
NODES: Mapping[Dialect, Mapping[str, int]] = {
    "fused": FUSED_NODES,
    "no-dotprod": FUSED_NODES,
    "portable": {"embed": 12, "norm": 6, "activation": 9, "head": 2, "attention": 30},
}
INTEGER_NODES = 4  # around a portable product of 8 bits: quantise its input, rescale its output
NO_DOTPROD_NODES = 1  # the same for cores without dotprod: the product rescales its output

Amounts = dict[str, float]


@dataclass(frozen=True)
class Regime:
    """Thread counts (None: the backend has none, as on a GPU) and residency. Under one regime all costs but activation
    memory are sums over operators."""

    decode_threads: int | None
    prefill_threads: int | None
    residency: Residency

    @property
    def sessions(self) -> int:
        """Thread counts that differ take two sessions, and each prepacks the weights for itself."""
        return 1 if self.decode_threads == self.prefill_threads else 2


@dataclass(frozen=True)
class ThreadCoefficients:
    """Coefficients of the latency model for one thread count.

    Attributes:
        us_per_unit: by the names of their quantities.
        resident_mb: a step that reads at most this is resident.
        streaming_mb: a step that reads at least this is streaming.
        half_bytes: of weights that a step reads again, half come from the cache where it read this much in between.
    """

    us_per_unit: Mapping[str, float]
    resident_mb: float
    streaming_mb: float
    half_bytes: float

    def missed_share(self, read_mb: float) -> float:
        """Share of a step's first reads that come from memory where it reads `read_mb` MB in all."""
        return float(partly_share(read_mb, self.resident_mb, self.streaming_mb))

    def ceiling_mb(self, residency: Residency) -> float | None:
        """The most MB that a step may read in this residency; None: any amount."""
        ceilings = {"resident": self.resident_mb, "partial": self.streaming_mb, "streaming": None}
        return ceilings[residency]


@dataclass(frozen=True)
class Latency:
    """Latency of some operators in ms. All three add up over operators.

    Attributes:
        cached_ms: where all first reads come from the caches.
        memory_ms: added where all of them come from memory.
        line_ms: in partial residency, where the amount from memory grows linearly from none at the resident edge to
            all at the streaming edge. The line's constant is charged to the head, of which a decoder has one.
    """

    cached_ms: float
    memory_ms: float
    line_ms: float

    @property
    def streaming_ms(self) -> float:
        return self.cached_ms + self.memory_ms


def by_threads(
    coefficients: Coefficients, cache_times: Mapping[str, float] = CACHE_TIMES["aarch64"]
) -> dict[int, ThreadCoefficients]:
    """The coefficients of each thread count that was measured or estimated. `cache_times`: of a quantised cache, how
    many times as long a multiply-add of attention takes as over float32."""
    edges = zip(
        coefficients.cache_within_mb, coefficients.cache_beyond_mb, coefficients.cache_half_mb, strict=True
    )
    return {
        count: ThreadCoefficients(
            with_defaults(us_per_unit, cache_times), resident, streaming, half * BYTES_PER_MB
        )
        for count, us_per_unit, (resident, streaming, half) in zip(
            coefficients.threads, coefficients.by_threads, edges, strict=True
        )
    }


OF_INT8 = tuple(f"int8.{name}" for name in PAIRS)


def with_defaults(us_per_unit: Mapping[str, float], cache_times: Mapping[str, float]) -> dict[str, float]:
    """Coefficients with those of quantised caches and of attention by groups where these were not measured."""
    caches = {**over_caches(us_per_unit, cache_times), **us_per_unit}
    if f"{GROUPS}.{PAIRS[0]}" not in us_per_unit:
        return caches | {f"{GROUPS}.{name}": caches[name] for name in (*OF_ATTENTION, *OF_INT8) if name in caches}
    times = GROUPS_CACHE_TIMES["int8"]
    return {f"{GROUPS}.int8.{name}": times * us_per_unit[f"{GROUPS}.{name}"] for name in PAIRS} | caches


def over_caches(us_per_unit: Mapping[str, float], times: Mapping[str, float]) -> dict[str, float]:
    """The coefficients of attention over quantised caches, from those over float32."""
    return {f"{kv}.{name}": factor * us_per_unit[name] for kv, factor in times.items() for name in PAIRS}


def latency(
    operators: Sequence[Operator], precision: str, runs: Sequence[Run], dialect: Dialect, at: ThreadCoefficients,
    kv: str | None = None, groups: bool = False,
) -> Latency:  # fmt: skip
    """Latency of all `runs` of the operators together. `kv`: the cache's format; None: float32. `groups`: whether the
    graph has this project's attention by groups."""
    asked = [
        amounts(op, precision, new, cached, dialect, at.half_bytes, kv, groups)
        for op in operators for new, cached in runs
    ]  # fmt: skip
    unit_us = at.us_per_unit[MEMORY]
    memory_us = first_reads(asked) * unit_us
    cached_us = total_us(asked, at.us_per_unit) - memory_us
    heads = sum(op.kind == "head" for op in operators) * len(runs)
    spared_us = heads * at.resident_mb * BYTES_PER_MB * 1e-6 * unit_us
    slope = at.streaming_mb / (at.streaming_mb - at.resident_mb)
    line_us = cached_us + slope * (memory_us - spared_us)
    return Latency(cached_us / 1e3, memory_us / 1e3, line_us / 1e3)


def read_mb(
    operators: Sequence[Operator], precision: str, context: int, dialect: Dialect, kv: str | None = None
) -> float:
    """MB (2^20 bytes) that a decode step reads for the first time, the KV cache full. Adds up over operators."""
    asked = [amounts(op, precision, 1, context, dialect, 0.0, kv) for op in operators]
    return first_reads(asked) * 1e6 / BYTES_PER_MB


def first_reads(asked: Sequence[Mapping[str, float]]) -> float:
    """First reads of all the amounts, in 10^6 bytes."""
    return sum(one.get(MEMORY, 0.0) for one in asked)


def matrix_format(op: Operator, precision: str) -> str:
    """The format in which a decoder of `precision` stores this matrix or table: tables of int4 have 8 bits."""
    form = FORMATS[precision]
    bits = form.embedding_bits if op.kind in ("embed", "head") else form.bits
    return {32: "fp32", 16: "fp16", 8: "int8", 4: "int4"}[bits]


@lru_cache(maxsize=2**16)  # a search asks for the same few thousand again and again; callers must not change them
def amounts(
    op: Operator, precision: str, tokens: int, past: int, dialect: Dialect = "fused", half: float = 0.0,
    kv: str | None = None, groups: bool = False,
) -> Mapping[str, float]:  # fmt: skip
    """Amounts of one run over `tokens` new positions after `past` cached ones.

    First reads are counted as if nothing of the run before were cached. Of weights that this run reads again a part is
    cached (`again_share`): half of them where `half` bytes were read in between. `kv`, `groups`: as of `latency`.
    """
    found: Amounts = defaultdict(float)
    nodes = NODES[dialect].get(op.kind, 0)
    rows_out = 1 if op.kind == "head" or op.final else tokens
    found["launch_us"] += nodes
    if op.kind in ("linear", "head"):
        product_amounts(found, op, precision, rows_out, dialect)
        size = op.read_bytes(precision)
        if op.reread:
            found[AGAIN] += again_share(op.reread * op.bytes_per_weight(precision), half) * size
        else:
            found[MEMORY] += size
    if op.kind == "head":
        found["step_us"] += 1
        found["choose_ns"] += op.matrix / op.columns
    if op.kind == "attention":
        kv = kv or "fp32"
        if groups and by_groups(op.query_width, op.width, KV_BITS[kv]):
            group_amounts(found, op, tokens, past, kv)
        else:
            attention_amounts(found, op, tokens, past, kv)
    if op.kind in ("norm", "activation"):
        found[f"{op.kind}_ns"] += nodes * op.vectors * rows_out
    return {name: amount * US_PER_UNIT[name.rsplit("_", 1)[1]] for name, amount in found.items()}


def product_amounts(found: Amounts, op: Operator, precision: str, tokens: int, dialect: Dialect) -> None:
    form = matrix_format(op, precision)
    rows = op.matrix // op.columns
    size = op.read_bytes(precision)
    found["product_us"] += 1
    found["launch_us"] += bool(op.vector)
    found[f"{form}.load_ms_gb"] += size
    found[f"{form}.mac_ms_g"] += op.matrix * tokens
    found[f"{form}.{'head_row_ns' if op.kind == 'head' else 'row_ns'}"] += rows * tokens
    if form == "fp32":
        return
    if dialect == "fused" or form == "int4":
        found[f"{form}.scale_ns"] += rows * (op.columns // (largest_group(op.columns) or op.columns)) * tokens
    else:
        found["launch_us"] += INTEGER_NODES if dialect == "portable" else NO_DOTPROD_NODES


def partly_share(size: Any, low: float, high: float) -> Any:
    """Share of `size` (a number or an array) that comes from memory: none up to `low`, all from `high` on; between them
    the amount grows linearly."""
    return np.clip(high * (size - low) / ((high - low) * size), 0, 1) if high else 1.0


def again_share(between: Any, half: float) -> Any:
    """Share of a second read that comes from memory, where `between` bytes (a number or an array) were read since the
    first: in proportion to them, half at `half`, all from twice as much on."""
    return np.minimum(between / (2 * half), 1.0) if half else 1.0


def attention_amounts(found: Amounts, op: Operator, tokens: int, past: int, kv: str) -> None:
    """Every query meets every key, cached and new: the kernels compute the full square of scores."""
    total = past + tokens
    size = 2 * op.width * total * KV_BITS[kv] // 8
    found["attention_us"] += 1
    found[MEMORY] += size
    found["kv_ms_gb"] += size
    pairs = "decode_attention_ms_per_gmac" if tokens == 1 else "attention_ms_per_gmac"
    found[pairs if kv == "fp32" else f"{kv}.{pairs}"] += 2 * op.query_width * tokens * total
    found["decode_score_ns" if tokens == 1 else "score_ns"] += op.heads * tokens * total
    found["entry_ns"] += (op.query_width + 2 * op.width) * tokens


def group_amounts(found: Amounts, op: Operator, tokens: int, past: int, kv: str) -> None:
    """The same of this project's operator: keys that a query does not see are left out, and queries fill whole tiles
    unless they are few."""
    total, seen = past + tokens, past + (tokens + 1) / 2
    size, group = 2 * op.width * total * KV_BITS[kv] // 8, op.query_width // op.width
    filled = group if group <= FEW or tokens > 1 else -(-group // LANES) * LANES
    pairs = "decode_attention_ms_per_gmac" if tokens == 1 else "attention_ms_per_gmac"
    found[MEMORY] += size
    for name, amount in (
        ("attention_us", 1), ("kv_ms_gb", size), (pairs if kv == "fp32" else f"{kv}.{pairs}",
         2 * op.width * filled * tokens * seen),
        ("decode_score_ns" if tokens == 1 else "score_ns", op.heads * tokens * seen),
        ("entry_ns", (op.query_width + 2 * op.width) * tokens),
    ):  # fmt: skip
        found[f"{GROUPS}.{name}"] += amount


def total_us(amounts_of_all: Iterable[Mapping[str, float]], us_per_unit: Mapping[str, float]) -> float:
    """Latency in us: amounts times coefficients."""
    return sum(amount * us_per_unit[name] for one in amounts_of_all for name, amount in one.items())
