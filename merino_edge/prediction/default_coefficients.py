"""Unit times of the latency model for a board that nobody has probed, from its profile's basic figures.

Rules of ours; what comes out is `estimated`. Ratios marked x86 were measured on one x86 server core (AVX-512) with ONNX
Runtime 1.32 and carried over: small terms all, they matter for narrow layers and long caches.

* Bandwidth holds at `decode_threads`; each doubling or halving away from that count costs a factor 2^(1/4) (published
  for the Pi 5 at 2 against 4 threads: 0.85). Arithmetic grows with the threads up to `prefill_threads`.
* Decoding in fp32 reads at `read_gb_s`, or computes at `fp32_gflops` where that takes longer. A third of the reading
  time is left where the cache holds the weights.
* With dot products of 8 bits (`dotprod` on Arm, `avx2` on x86) int8 and int4 multiply 3.5 times as fast as fp32: the
  instructions' ratio is 4, published prefills of the Pi 5 are 3 to 4 times its fp32 estimate. Without, int4 computes
  at fp32's rate, and int8 writes the matrix out in fp32 at each call, which moves it eight times.
"""

import math
from functools import lru_cache

from merino_edge.profiles.coefficients import Coefficients, FormatCoefficients
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.backends.onnx_session import version_tuple

FIRST_FUSED = (1, 18)  # of ONNX Runtime
USUAL_CACHE_MB = 1.0
WITHIN, BEYOND, HALF = 0.5, 2.0, 1.0  # of the last-level cache, as on x86
AWAY = 0.25  # power of a doubling of threads away from the best count
CACHED_SHARE = 1 / 3  # of the time to read from memory
GB_MACS = {"fp32": 0.25, "int8": 1.0, "int4": 2.0}  # 10^9 multiply-adds of a decode step per GB of weights
FAST_INT = 1 / 3.5  # time of an int8 multiply-add over fp32's, with dot products
MOVES = 8.0  # bytes moved per byte of int8 weights that is written out in fp32 and read again
RESIDENT = {"fp32": 1.05, "int8": 1.15, "int4": 1.25}  # x86
OPENING = {"fp32": 0.65, "int8": 0.93, "int4": 0.93}  # x86
# x86: in multiply-adds of fp32
NORM, ACTIVATION, SCORE, ENTRY, ROW, SCALE = 10, 60, 60, 30, 60, 8
LAUNCH, ATTENTION, STEP = 1 / 3, 2.0, 4.0  # of op_overhead_us


@lru_cache(maxsize=64)
def unit_times(profile: DeviceProfile, forms: tuple[str, ...] = ("fp32",)) -> Coefficients:
    """The profile's own, where it has them for these formats; else estimated, and so is what follows from them."""
    own = profile.performance.coefficients
    if own is not None and set(forms) <= set(own.formats):
        return own
    return estimated(profile)


def estimated(profile: DeviceProfile) -> Coefficients:
    speed = profile.performance
    cores, cache = profile.cpu.cores.value, profile.cpu.last_level_cache_mb
    known = {1, 2, 4, cores, speed.decode_threads.value, speed.prefill_threads.value}
    counts = sorted(known & set(range(1, cores + 1)))
    read_ms = [1e3 / (speed.read_gb_s.value * away(count, speed.decode_threads.value)) for count in counts]
    mac_ms = [2e3 / (speed.fp32_gflops.value * min(1, count / speed.prefill_threads.value)) for count in counts]
    memory_ms = [(1 - CACHED_SHARE) * ms for ms in read_ms]
    fast = bool({"dotprod", "avx2"} & set(profile.isa))
    overhead = [speed.op_overhead_us.value] * len(counts)
    cache_mb = cache.value if cache else USUAL_CACHE_MB

    def of_format(form: str) -> FormatCoefficients:
        macs = [ms * (FAST_INT if fast and form != "fp32" else 1) for ms in mac_ms]
        load = [
            max(0.0, read - memory - GB_MACS[form] * mac)
            for read, memory, mac in zip(read_ms, memory_ms, macs, strict=True)
        ]
        if form == "int8" and not fast:
            load = [MOVES * read for read in read_ms]
        quantised = form != "fp32"
        return FormatCoefficients(
            load_ms_gb=tuple(load), mac_ms_g=tuple(macs), scale_ns=scaled(mac_ms, SCALE * quantised),
            row_ns=scaled(mac_ms, ROW * quantised), head_row_ns=scaled(mac_ms, ROW * quantised),
            resident=RESIDENT[form], table_resident=RESIDENT[form], table_opening=OPENING[form],
        )  # fmt: skip

    return Coefficients(
        kind="estimated", source="derived from the profile's basic figures",
        dialect="fused" if version_tuple(profile.software.onnxruntime) >= FIRST_FUSED else "portable",
        threads=tuple(counts),
        cache_within_mb=(WITHIN * cache_mb,) * len(counts), cache_beyond_mb=(BEYOND * cache_mb,) * len(counts),
        cache_half_mb=(HALF * cache_mb,) * len(counts),
        step_us=scale(overhead, STEP), launch_us=scale(overhead, LAUNCH), product_us=tuple(overhead),
        attention_us=scale(overhead, ATTENTION), choose_ns=scaled(mac_ms[:1] * len(counts), 4),
        norm_ns=scaled(mac_ms, NORM), activation_ns=scaled(mac_ms, ACTIVATION),
        kv_ms_gb=scale(read_ms, CACHED_SHARE),
        pair_ms_g=tuple(mac_ms), score_ns=scaled(mac_ms, SCORE), entry_ns=scaled(mac_ms, ENTRY),
        memory_ms_gb=tuple(memory_ms),
        fp32=of_format("fp32"), int8=of_format("int8"), int4=of_format("int4"),
    )  # fmt: skip


def away(count: int, best: int) -> float:
    """Share of the best count's bandwidth."""
    return float(2 ** (-AWAY * abs(math.log2(count / best))))


def scale(values: list[float], factor: float) -> tuple[float, ...]:
    return tuple(value * factor for value in values)


def scaled(mac_ms: list[float], macs: float) -> tuple[float, ...]:
    """ns of so many multiply-adds: 1 ms per 10^9 is 0.001 ns each."""
    return tuple(1e-3 * ms * macs for ms in mac_ms)
