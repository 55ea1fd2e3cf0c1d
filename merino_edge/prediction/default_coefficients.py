"""Estimate the latency model's coefficients for a board without a probe, from its profile's basic figures.

The rules are assumptions, so the result is `estimated`. Ratios marked x86 were measured on one x86 server core
(AVX-512) with ONNX Runtime 1.32. They belong to small terms, which matter for narrow layers and long contexts.

* Bandwidth is highest at `decode_threads`. Each doubling or halving of the thread count divides it by 2^(1/4)
  (published for the Pi 5 at 2 against 4 threads: 0.85). Arithmetic scales with the threads up to `prefill_threads`.
* Decoding in fp32 takes the longer of reading at `read_gb_s` and computing at `fp32_gflops`. Cached weights take a
  third of the reading time.
* With 8-bit dot products (`dotprod` on Arm, `avx2` on x86) int8 and int4 multiply 3.5 times as fast as fp32: the
  instructions' ratio is 4, published prefills of the Pi 5 are 3 to 4 times its fp32 estimate.
* If the profile has a kernel's cycles per weight, decoding takes the sum of reading and these cycles, as published runs
  on no-dotprod cores do, and in prefill int8 and int4 are faster than fp32 by the ratio of their cycles.
* Attention of one query takes the kernel's cycles per multiply-add if the profile has them, else ONE_QUERY times the
  time of a query among many; GroupAttention takes the time of a query among many. Keys and values in the cache are
  read at the same time: the longer of both counts.
"""

from typing import Any

import numpy as np

from merino_edge.prediction.formats import dialect_of
from merino_edge.profiles.coefficients import Coefficients, Dialect, FormatCoefficients, GroupCoefficients
from merino_edge.profiles.profile import DeviceProfile

DEFAULT_CACHE_MB = 1.0
RESIDENT_EDGE, STREAMING_EDGE, HALF_EDGE = 0.5, 2.0, 1.0  # x86, in sizes of the last-level cache
BANDWIDTH_EXPONENT = 0.25  # of the ratio of two thread counts
CACHED_SHARE = 1 / 3  # of the time to read from memory
GB_MACS = {"fp32": 0.25, "int8": 1.0, "int4": 2.0}  # 10^9 multiply-adds of a decode step per GB of weights
ONE_QUERY = 3.0  # Arm: 1.1 to 1.9 instructions per multiply-add of one query, 0.3 to 0.4 of many
FAST_INT = 1 / 3.5  # time of an int8 multiply-add over that of fp32, with dot products
# x86, by kernel: bytes in RAM per byte of weights, and extra bytes per table byte while it is prepacked. Tiles are read
# where the file is mapped.
MEMORY_FACTOR = {"matmul": 1.05, "matmulinteger": 1.15, "matmul8": 1.05, "matmul4": 1.05}
PREPACKING_FACTOR = {"matmul": 0.65, "matmulinteger": 0.93, "matmul8": 0.0, "matmul4": 0.0}
# x86: in multiply-adds of fp32
NORM, ACTIVATION, SCORE, ENTRY, ROW = 10, 60, 60, 30, 60
GROUP_SCORE = 8  # in lanes
LAUNCH, ATTENTION, STEP = 1 / 3, 2.0, 4.0  # of op_overhead_us


def coefficients_for(profile: DeviceProfile, forms: tuple[str, ...] = ("fp32",)) -> Coefficients:
    """Return the profile's own coefficients if it has them for all these formats, else estimated ones."""
    own = profile.performance.onnxruntime.coefficients
    if own is not None and set(forms) <= set(own.formats):
        return own
    return estimated(profile)


def estimated(profile: DeviceProfile, dialect: Dialect | None = None) -> Coefficients:
    """Estimate coefficients for 1, 2, 4 and all cores, and for the profile's two thread counts.

    `dialect`: of the graphs; by default the board's.
    """
    speed = profile.performance.onnxruntime
    cores, best, cache = profile.cpu.cores.value, speed.decode_threads.value, profile.cpu.last_level_cache_mb
    counts = np.array(sorted({1, 2, 4, cores, best, speed.prefill_threads.value} & set(range(1, cores + 1))))
    dialect, ones = dialect or dialect_of(profile), np.ones(len(counts))
    # 1. By the number of threads: ms per GB, ms per 10^9 multiply-adds (ns per 1000), us per operator.
    read_ms = 1e3 / speed.read_gb_s.value * 2 ** (BANDWIDTH_EXPONENT * abs(np.log2(counts / best)))
    memory_ms = (1 - CACHED_SHARE) * read_ms
    mac_ms = 2e3 / (speed.fp32_gflops.value * np.minimum(1, counts / speed.prefill_threads.value))
    mac_ns, overhead = 1e-3 * mac_ms, speed.op_overhead_us.value * ones
    cache_mb = (cache.value if cache else DEFAULT_CACHE_MB) * ones
    query_ms = counted_ms(profile, "attention", counts, ONE_QUERY * mac_ms)
    group_ms = counted_ms(profile, "group_attention", counts, mac_ms)

    def listed(**arrays: np.ndarray) -> dict[str, Any]:
        return {name: tuple(array.tolist()) for name, array in arrays.items()}

    # 2. Of a weight format.
    def of_format(form: str) -> FormatCoefficients:
        kernel = kernel_of(form, dialect)
        macs = mac_ms * mac_share(profile, kernel)
        load: np.ndarray = read_ms - memory_ms - GB_MACS[form] * macs
        kernel_ms = counted_ms(profile, kernel, counts, None)
        if kernel_ms is not None:
            load += GB_MACS[form] * kernel_ms
        rows = mac_ns * ROW * (form != "fp32")
        return FormatCoefficients(
            **listed(load_ms_gb=np.maximum(0, load), mac_ms_g=macs, row_ns=rows, head_row_ns=rows),
            resident=MEMORY_FACTOR[kernel], table_resident=MEMORY_FACTOR[kernel],
            table_opening=PREPACKING_FACTOR[kernel], decode_error=speed.decode_error,
        )  # fmt: skip

    # 3. Of attention: reading keys and values from the caches takes the time beyond their multiply-adds.
    def of_attention(pair_ms: np.ndarray, score: float) -> dict[str, Any]:
        return listed(
            attention_us=overhead * ATTENTION,
            kv_ms_gb=np.maximum(0, CACHED_SHARE * read_ms - GB_MACS["fp32"] * pair_ms),
            attention_ms_per_gmac=mac_ms, decode_attention_ms_per_gmac=pair_ms,
            score_ns=mac_ns * SCORE, decode_score_ns=mac_ns * score, entry_ns=mac_ns * ENTRY,
        )  # fmt: skip

    return Coefficients(
        kind="estimated", source="derived from the profile's basic figures and cycles per weight", dialect=dialect,
        threads=tuple(counts.tolist()), fp32=of_format("fp32"), int8=of_format("int8"), int4=of_format("int4"),
        groups=GroupCoefficients(**of_attention(group_ms, GROUP_SCORE)), **of_attention(query_ms, SCORE),
        **listed(
            cache_within_mb=cache_mb * RESIDENT_EDGE, cache_beyond_mb=cache_mb * STREAMING_EDGE,
            cache_half_mb=cache_mb * HALF_EDGE, step_us=overhead * STEP, launch_us=overhead * LAUNCH,
            matmul_us=overhead, argmax_ns=4 * mac_ns[0] * ones, norm_ns=mac_ns * NORM,
            activation_ns=mac_ns * ACTIVATION, memory_ms_gb=memory_ms,
        ),
    )  # fmt: skip


def counted_ms(profile: DeviceProfile, kernel: str, counts: np.ndarray, otherwise: Any) -> Any:
    """Return the ms per 10^9 multiply-adds from a kernel's cycles, at each thread count; `otherwise` if the profile
    lacks the cycles or the clock."""
    cycles, clock = cycles_of(profile, kernel), profile.cpu.clock_ghz
    return 1e3 * cycles / (clock.value * counts) if cycles and clock else otherwise


def kernel_of(form: str, dialect: Dialect) -> str:
    """Return the kernel for matrices of this format, by `CyclesPerWeight`'s names."""
    if form == "fp32":
        return "matmul"
    if form == "int8":
        return "matmulinteger" if dialect == "portable" else "matmul8"
    return "matmul4"


def mac_share(profile: DeviceProfile, kernel: str) -> float:
    """Return the time of a multiply-add in a prefill, relative to fp32."""
    rows, floats = cycles_of(profile, kernel), cycles_of(profile, "matmul")
    if kernel == "matmul":
        return 1.0
    if rows and floats:
        return rows / floats
    return FAST_INT if multiplies_bytes(profile) else 1.0


def cycles_of(profile: DeviceProfile, kernel: str) -> float | None:
    cycles: float | None = getattr(profile.cpu.cycles_per_weight, kernel, None)
    return cycles


def multiplies_bytes(profile: DeviceProfile) -> bool:
    """Return whether the CPU has 8-bit dot products."""
    return bool({"dotprod", "avx2"} & set(profile.isa))


