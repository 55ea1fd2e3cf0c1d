"""Latency of operators at one thread count: terms times coefficients, as sums over operators.

The caches make latency non-linear: how much comes from memory depends on how much a step reads in all. Under an assumed
`Residency` latency is a sum again, so a search can add up parts of a decoder. Which residency a whole decoder has is
decided by the cost model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from merino_edge.families.operators import Operator
from merino_edge.prediction.latency_terms import amounts, partly_share, total_us
from merino_edge.profiles.coefficients import MEMORY, PAIRS, Coefficients, Dialect
from merino_runtime.board import MB as BYTES_PER_MB

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

Run = tuple[int, int]  # (new tokens, cached tokens) of one run of the graph


@dataclass(frozen=True)
class ThreadCoefficients:
    """Coefficients of the latency model for one thread count.

    Attributes:
        us_per_unit: by the names of `latency_terms`.
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
            {**over_caches(us_per_unit, cache_times), **us_per_unit}, resident, streaming, half * BYTES_PER_MB
        )
        for count, us_per_unit, (resident, streaming, half) in zip(
            coefficients.threads, coefficients.by_threads, edges, strict=True
        )
    }


def over_caches(us_per_unit: Mapping[str, float], times: Mapping[str, float]) -> dict[str, float]:
    """The coefficients of attention over quantised caches, from those over float32."""
    return {f"{kv}.{name}": factor * us_per_unit[name] for kv, factor in times.items() for name in PAIRS}


def latency(
    operators: Sequence[Operator], precision: str, runs: Sequence[Run], dialect: Dialect, at: ThreadCoefficients,
    kv: str | None = None,
) -> Latency:  # fmt: skip
    """Latency of all `runs` of the operators together. `kv`: the cache's format; None: float32."""
    asked = [
        amounts(op, precision, new, cached, dialect, at.half_bytes, kv) for op in operators for new, cached in runs
    ]
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
