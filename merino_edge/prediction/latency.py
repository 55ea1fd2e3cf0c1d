"""Decode and prefill time of operators on a board, under a regime: sums, so that a search can add up parts.

Times are amounts (`latency`) times the board's unit times. What does not add up is gathered in a `Regime`: the thread
counts, and whether the caches hold what a step reads. Which regime a whole decoder is in is said in `costs`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from merino_edge.families.operators import Operator
from merino_edge.prediction.default_coefficients import unit_times
from merino_edge.prediction.latency_terms import amounts, partly_share, total_us
from merino_edge.profiles.coefficients import MEMORY, Coefficients
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.backends.onnx import PREFILL_CHUNK_IDS
from merino_runtime.board import MB as BYTES_PER_MB

Cache = Literal["within", "partly", "beyond"]
CACHES: tuple[Cache, ...] = ("within", "partly", "beyond")
FORMATS_USED = {"int8": ("fp32", "int8"), "int4": ("fp32", "int8", "int4")}  # the head of int4 has 8 bits


@dataclass(frozen=True)
class Workload:
    """What is to be run: the weight format, the tokens the cache holds when full, the tokens of the prompt."""

    precision: str
    context: int
    prompt: int


@dataclass(frozen=True)
class Regime:
    """Under which all costs add up over operators.

    `cache`: whether the last-level cache holds what a decode step reads (weights, keys and values): all of it, a part
    that shrinks as the whole grows, or nothing. It holds for decoders up to `ceiling_mb`.
    """

    decode_threads: int
    prefill_threads: int
    cache: Cache


def regimes(profile: DeviceProfile, work: Workload) -> list[Regime]:
    """All that a decoder may be in, few threads and small decoders first."""
    counts = times_for(profile, work).threads
    return [Regime(decode, prefill, cache) for cache in CACHES for decode in counts for prefill in counts]


def usual_regime(profile: DeviceProfile) -> Regime:
    """Of a decoder that the caches do not hold, on the profile's own thread counts."""
    return Regime(profile.performance.decode_threads.value, profile.performance.prefill_threads.value, "beyond")


def ceiling_mb(profile: DeviceProfile, work: Workload, regime: Regime) -> float | None:
    """The most that `read_mb` may be in this regime; None: any amount."""
    times = times_for(profile, work)
    at = times.threads.index(regime.decode_threads)
    return {"within": times.cache_within_mb[at], "partly": times.cache_beyond_mb[at], "beyond": None}[regime.cache]


def read_mb(operators: Sequence[Operator], profile: DeviceProfile, work: Workload) -> float:
    """MB that a decode step over a full cache reads, what it reads again left out. Adds up."""
    dialect = times_for(profile, work).dialect
    asked = [amounts(op, work.precision, 1, work.context, dialect) for op in operators]
    return memory_amount(asked) * 1e6 / BYTES_PER_MB


def decode_ms(operators: Sequence[Operator], profile: DeviceProfile, work: Workload, regime: Regime) -> float:
    """ms of one decode step over a full cache, batch 1. Adds up."""
    spent = run_of(operators, profile, work, regime.decode_threads, [(1, work.context)])
    return spent.within(regime.cache == "within") if regime.cache != "partly" else spent.line_ms


def prefill_ms(operators: Sequence[Operator], profile: DeviceProfile, work: Workload, regime: Regime) -> float:
    """ms of a prefill of the prompt into an empty cache, in the runtime's pieces, each with its own head. Adds up."""
    spent = run_of(operators, profile, work, regime.prefill_threads, pieces(work))
    return spent.within(regime.cache == "within")


def memory_amount(asked: Sequence[Mapping[str, float]]) -> float:
    """A run's first reads, which the caches may spare, in the unit of `memory_ms_gb` for us: 10^-6 a byte."""
    return sum(one.get(MEMORY, 0.0) for one in asked)


def pieces(work: Workload) -> list[tuple[int, int]]:
    """(new, cached) tokens of each run of a prefill."""
    starts = range(0, work.prompt, PREFILL_CHUNK_IDS)
    return [(min(PREFILL_CHUNK_IDS, work.prompt - start), start) for start in starts]


@dataclass(frozen=True)
class Run:
    """Of some operators: ms with all first reads from the caches, and what is added where all come from memory.

    `line_ms`: in between the amount that comes from memory grows linearly from none to all. The line's constant goes to
    the head, of which a decoder has one, so that sums over operators stay sums.
    """

    cached_ms: float
    memory_ms: float
    line_ms: float

    def within(self, cached: bool) -> float:
        return self.cached_ms if cached else self.cached_ms + self.memory_ms


def run_of(
    operators: Sequence[Operator], profile: DeviceProfile, work: Workload, threads: int,
    runs: Sequence[tuple[int, int]],
) -> Run:  # fmt: skip
    times = times_for(profile, work)
    at = times.threads.index(threads)
    unit, half = times.by_threads[at], times.cache_half_mb[at] * BYTES_PER_MB
    asked = [
        amounts(op, work.precision, tokens, pasts(times, work, past), times.dialect, half)
        for op in operators
        for tokens, past in runs
    ]
    memory_us = memory_amount(asked) * unit[MEMORY]
    cached_us = total_us(asked, unit) - memory_us
    low, high = times.cache_within_mb[at], times.cache_beyond_mb[at]
    heads = sum(op.kind == "head" for op in operators) * len(runs)
    spared_us = heads * low * BYTES_PER_MB * 1e-6 * unit[MEMORY]
    line_us = cached_us + high / (high - low) * (memory_us - spared_us)
    return Run(cached_us / 1e3, memory_us / 1e3, line_us / 1e3)


def missed_share(operators: Sequence[Operator], profile: DeviceProfile, work: Workload, threads: int) -> float:
    """The share of a decode step's first reads that comes from memory; of a whole decoder, it does not add up."""
    times = times_for(profile, work)
    at = times.threads.index(threads)
    read = read_mb(operators, profile, work)
    return float(partly_share(read, times.cache_within_mb[at], times.cache_beyond_mb[at]))


def pasts(times: Coefficients, work: Workload, past: int) -> int:
    """A `portable` graph looks at the whole cache whatever fills it."""
    return work.context if times.dialect == "portable" else past


def times_for(profile: DeviceProfile, work: Workload) -> Coefficients:
    return unit_times(profile, FORMATS_USED.get(work.precision, ("fp32",)))


def telling_regimes(profile: DeviceProfile, work: Workload, budgets: Mapping[str, float]) -> list[Regime]:
    """Of regimes that budgets of these names do not tell apart, one: with one thread count, memory is least."""
    decode, prefill = bool({"decode_ms", "j_per_token"} & set(budgets)), "prefill_ms" in budgets
    alone = [regime for regime in regimes(profile, work) if regime.decode_threads == regime.prefill_threads]
    if not decode and not prefill:
        return alone[-1:]
    return regimes(profile, work) if decode and prefill else alone
