"""Estimate the latency model's coefficients for a board without a probe, from its profile's basic figures. Predict the
slowdown of a graph built for the other Arm core type.

The rules are assumptions, so the result is `estimated`. Ratios marked x86 were measured on one x86 server core
(AVX-512) with ONNX Runtime 1.32. They belong to small terms, which matter for narrow layers and long contexts.

* Bandwidth is highest at `decode_threads`. Each doubling or halving of the thread count divides it by 2^(1/4)
  (published for the Pi 5 at 2 against 4 threads: 0.85). Arithmetic scales with the threads up to `prefill_threads`.
* Decoding in fp32 takes the longer of reading at `read_gb_s` and computing at `fp32_gflops`. Cached weights take a
  third of the reading time.
* With 8-bit dot products (`dotprod` on Arm, `avx2` on x86) int8 and int4 multiply 3.5 times as fast as fp32: the
  instructions' ratio is 4, published prefills of the Pi 5 are 3 to 4 times its fp32 estimate.
* If the profile has a kernel's cycles per weight, decoding takes the sum of reading and these cycles, as published runs
  on no-dotprod cores do. In prefill int8, and int4 in this project's kernels, is faster than fp32 by the ratio of
  their cycles; MatMulNBits computes int4 at fp32's rate. Without cycles, int8 in groups is dequantized to fp32 at each
  call, which moves it eight times.
* Attention of one query takes the kernel's cycles per multiply-add if the profile has them, else ONE_QUERY times the
  time of a query among many; GroupAttention takes the time of a query among many. Keys and values in the cache are
  read at the same time: the longer of both counts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from merino_edge.families.operators import Core, Operator, runs_on_kernels
from merino_edge.prediction.formats import WRITTEN_FOR, attends_by_groups, core_of_board, graph_dialect, has_cache
from merino_edge.prediction.latency import by_threads, latency_table
from merino_edge.profiles.coefficients import Coefficients, Dialect, FormatCoefficients, GroupCoefficients
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.bundle import Slower

DEFAULT_CACHE_MB = 1.0
RESIDENT_EDGE, STREAMING_EDGE, HALF_EDGE = 0.5, 2.0, 1.0  # x86, in sizes of the last-level cache
BANDWIDTH_EXPONENT = 0.25  # of the ratio of two thread counts
CACHED_SHARE = 1 / 3  # of the time to read from memory
# Bytes per weight in tiles, with a float16 scale for each 32, over those in groups of 128, which `Operator` assumes
TILES_BYTES = {"matmul4": 0.5625 / 0.53125, "matmul8": 1.0625 / 1.03125}
GB_MACS = {"fp32": 0.25, "int8": 1.0, "int4": 2.0}  # 10^9 multiply-adds of a decode step per GB of weights
ONE_QUERY = 3.0  # Arm: 1.1 to 1.9 instructions per multiply-add of one query, 0.3 to 0.4 of many
FAST_INT = 1 / 3.5  # time of an int8 multiply-add over that of fp32, with dot products
MOVES = 8.0  # bytes moved per byte of int8 weights that are dequantized to fp32 and read again
MEMORY_FACTOR = {"fp32": 1.05, "int8": 1.15, "int4": 1.25}  # x86: bytes in RAM per byte of weights
PREPACKING_FACTOR = {"fp32": 0.65, "int8": 0.93, "int4": 0.93}  # x86: extra bytes per table byte while it is prepacked
# x86: in multiply-adds of fp32
NORM, ACTIVATION, SCORE, ENTRY, ROW, SCALE = 10, 60, 60, 30, 60, 8
GROUP_SCORE = 8  # in lanes
LAUNCH, ATTENTION, STEP = 1 / 3, 2.0, 4.0  # of op_overhead_us
LEAST_TIMES = 1.1  # a smaller slowdown is within the error of an estimate


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
    dialect, ones = dialect or graph_dialect(profile), np.ones(len(counts))
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
        kernel = kernel_of(profile, form, dialect)
        cycles, macs = cycles_of(profile, kernel), mac_ms * mac_share(profile, kernel)
        load: np.ndarray = TILES_BYTES.get(kernel, 1) * read_ms - memory_ms - GB_MACS[form] * macs
        kernel_ms = counted_ms(profile, kernel, counts, None)
        if kernel_ms is not None:
            load += GB_MACS[form] * kernel_ms
        elif kernel == "matmulnbits_8":
            load = MOVES * read_ms
        scales = SCALE * (form != "fp32" and not cycles)  # counted cycles have the scales in them
        rows = mac_ns * ROW * (form != "fp32")
        return FormatCoefficients(
            **listed(load_ms_gb=np.maximum(0, load), mac_ms_g=macs, scale_ns=mac_ns * scales, row_ns=rows,
                     head_row_ns=rows),
            resident=MEMORY_FACTOR[form], table_resident=MEMORY_FACTOR[form], table_opening=PREPACKING_FACTOR[form],
            decode_error=speed.decode_error,
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


def kernel_of(profile: DeviceProfile, form: str, dialect: Dialect) -> str:
    """Return ONNX Runtime's kernel for matrices of this format, by `CyclesPerWeight`'s names. `dots` is MatMulNBits
    with 8-bit dot products, which has no cycles there."""
    if form == "fp32":
        return "matmul"
    if dialect == "fused" or (dialect == "avx512-vnni" and not cycles_of(profile, "matmul4")):
        return "dots" if multiplies_bytes(profile) else f"matmulnbits_{8 if form == 'int8' else 4}"
    if form == "int8":
        return "matmul8" if dialect != "portable" and cycles_of(profile, "matmul8") else "matmulinteger"
    return "matmul4" if cycles_of(profile, "matmul4") else "matmulnbits_4"


def mac_share(profile: DeviceProfile, kernel: str) -> float:
    """Return the time of a multiply-add in a prefill, relative to fp32."""
    rows, floats = cycles_of(profile, kernel), cycles_of(profile, "matmul")
    if kernel in ("matmulinteger", "matmul4", "matmul8") and rows and floats:
        return rows / floats
    return FAST_INT if kernel in ("dots", "matmulinteger") and multiplies_bytes(profile) else 1.0


def cycles_of(profile: DeviceProfile, kernel: str) -> float | None:
    cycles: float | None = getattr(profile.cpu.cycles_per_weight, kernel, None)
    return cycles


def multiplies_bytes(profile: DeviceProfile) -> bool:
    """Return whether the CPU has 8-bit dot products."""
    return bool({"dotprod", "avx2"} & set(profile.isa))


def slower_on(
    operators: Sequence[Operator], precision: str, context: int, core: Core, profiles: Sequence[DeviceProfile],
    kv: str | None = None, groups: bool = False,
) -> tuple[Slower, ...]:  # fmt: skip
    """Return the predicted slowdowns, of LEAST_TIMES or more, of a `fused` graph for `core` on Arm boards of the other
    core type.

    `groups`: whether the graph has GroupAttention; if its matrices run on kernels, it always has. `kv`: the format of
    the cache; None: that of the activations. Boards whose runtime does not support it are left out.
    """
    slower = []
    for profile in profiles:
        own = core_of_board(profile)
        if profile.arch == "aarch64" and own != core and has_cache(profile.with_backend("onnxruntime"), kv):
            own_groups = attends_by_groups(profile, precision)
            times = decode_ms(operators, precision, context, profile, core, kv=kv, groups=groups)
            times /= decode_ms(operators, precision, context, profile, own, kv=kv, groups=own_groups)
            if times >= LEAST_TIMES:
                slower.append(Slower(profile.id, own, float(f"{times:.2g}")))
    return tuple(slower)


def decode_ms(
    operators: Sequence[Operator], precision: str, context: int, profile: DeviceProfile, core: Core,
    kv: str | None = None, groups: bool = False,
) -> float:  # fmt: skip
    """Return the ms of a decode step at a full cache, at the best thread count, of a `fused` graph for `core`."""
    dialect, groups = WRITTEN_FOR[core], groups or runs_on_kernels(core, precision)
    threads = list(by_threads(estimated(profile, dialect)).values())
    table = latency_table(operators, precision, [(1, context)], dialect, threads, kv=kv, groups=groups)
    return float(table.sum(axis=(0, 2)).min())
