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

import math
from collections.abc import Sequence

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
    cores, cache = profile.cpu.cores.value, profile.cpu.last_level_cache_mb
    best = speed.decode_threads.value
    counts = sorted({1, 2, 4, cores, best, speed.prefill_threads.value} & set(range(1, cores + 1)))
    # Each doubling or halving of the best count divides the bandwidth by 2^BANDWIDTH_EXPONENT.
    shares = [2 ** (-BANDWIDTH_EXPONENT * abs(math.log2(count / best))) for count in counts]
    read_ms = [1e3 / (speed.read_gb_s.value * share) for share in shares]
    mac_ms = [2e3 / (speed.fp32_gflops.value * min(1, count / speed.prefill_threads.value)) for count in counts]
    memory_ms = [(1 - CACHED_SHARE) * ms for ms in read_ms]
    overhead = [speed.op_overhead_us.value] * len(counts)
    query_ms = counted_ms(profile, "attention", counts) or multiplied(mac_ms, ONE_QUERY)
    group_ms = counted_ms(profile, "group_attention", counts) or tuple(mac_ms)
    cache_mb = cache.value if cache else DEFAULT_CACHE_MB
    dialect = dialect or graph_dialect(profile)

    def of_format(form: str) -> FormatCoefficients:
        kernel = kernel_of(profile, form, dialect)
        cycles = cycles_of(profile, kernel)
        macs = [ms * mac_share(profile, kernel) for ms in mac_ms]
        reads = [read * TILES_BYTES.get(kernel, 1) for read in read_ms]
        load = [
            max(0.0, read - memory - GB_MACS[form] * mac)
            for read, memory, mac in zip(reads, memory_ms, macs, strict=True)
        ]
        if counted := counted_ms(profile, kernel, counts):
            load = [
                max(0.0, read - memory + GB_MACS[form] * (kernel_ms - mac))
                for read, memory, mac, kernel_ms in zip(reads, memory_ms, macs, counted, strict=True)
            ]
        elif kernel == "matmulnbits_8":
            load = [MOVES * read for read in read_ms]
        blocks = SCALE * (form != "fp32" and not cycles)  # counted cycles have the scales in them
        row = ROW * (form != "fp32")
        return FormatCoefficients(
            load_ms_gb=tuple(load), mac_ms_g=tuple(macs), scale_ns=ns_of_macs(mac_ms, blocks),
            row_ns=ns_of_macs(mac_ms, row), head_row_ns=ns_of_macs(mac_ms, row),
            resident=MEMORY_FACTOR[form], table_resident=MEMORY_FACTOR[form], table_opening=PREPACKING_FACTOR[form],
            decode_error=speed.decode_error,
        )  # fmt: skip

    return Coefficients(
        kind="estimated", source="derived from the profile's basic figures and cycles per weight",
        dialect=dialect,
        threads=tuple(counts),
        cache_within_mb=(RESIDENT_EDGE * cache_mb,) * len(counts),
        cache_beyond_mb=(STREAMING_EDGE * cache_mb,) * len(counts),
        cache_half_mb=(HALF_EDGE * cache_mb,) * len(counts),
        step_us=multiplied(overhead, STEP), launch_us=multiplied(overhead, LAUNCH), matmul_us=tuple(overhead),
        attention_us=multiplied(overhead, ATTENTION), argmax_ns=ns_of_macs(mac_ms[:1] * len(counts), 4),
        norm_ns=ns_of_macs(mac_ms, NORM), activation_ns=ns_of_macs(mac_ms, ACTIVATION),
        kv_ms_gb=kv_ms_gb(read_ms, query_ms),
        attention_ms_per_gmac=tuple(mac_ms), decode_attention_ms_per_gmac=query_ms,
        score_ns=ns_of_macs(mac_ms, SCORE), decode_score_ns=ns_of_macs(mac_ms, SCORE),
        entry_ns=ns_of_macs(mac_ms, ENTRY),
        memory_ms_gb=tuple(memory_ms),
        groups=GroupCoefficients(
            attention_us=multiplied(overhead, ATTENTION), kv_ms_gb=kv_ms_gb(read_ms, group_ms),
            attention_ms_per_gmac=tuple(mac_ms), decode_attention_ms_per_gmac=group_ms,
            score_ns=ns_of_macs(mac_ms, SCORE), decode_score_ns=ns_of_macs(mac_ms, GROUP_SCORE),
            entry_ns=ns_of_macs(mac_ms, ENTRY),
        ),
        fp32=of_format("fp32"), int8=of_format("int8"), int4=of_format("int4"),
    )  # fmt: skip


def kv_ms_gb(read_ms: list[float], pair_ms: Sequence[float]) -> tuple[float, ...]:
    """Return the time of reading keys and values from the caches beyond their multiply-adds, in ms per GB."""
    pairs = zip(read_ms, pair_ms, strict=True)
    return tuple(max(0.0, CACHED_SHARE * read - GB_MACS["fp32"] * pair) for read, pair in pairs)


def counted_ms(profile: DeviceProfile, kernel: str, counts: list[int]) -> tuple[float, ...] | None:
    """Return the ms per 10^9 multiply-adds from a kernel's cycles, at each thread count, or None if the profile lacks
    the cycles or the clock."""
    cycles, clock = cycles_of(profile, kernel), profile.cpu.clock_ghz
    return tuple(1e3 * cycles / (clock.value * count) for count in counts) if cycles and clock else None


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


def multiplied(values: list[float], factor: float) -> tuple[float, ...]:
    return tuple(value * factor for value in values)


def ns_of_macs(mac_ms: list[float], macs: float) -> tuple[float, ...]:
    """Return the ns of `macs` multiply-adds, from ms per 10^9 of them."""
    return tuple(1e-3 * ms * macs for ms in mac_ms)


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
