"""Measure the read bandwidth of this machine's memory: the upper limit of decoding, which reads every weight once per
token.

Needs Python 3.6 and numpy only, so that it runs on every board. Callers judge and store the result.
"""
import time
from concurrent.futures import ThreadPoolExecutor
from typing import List, Optional

import numpy as np

from merino_runtime.io.board import MB, last_level_cache_bytes, read_memory_mb, read_text

LEAST_BUFFER_MB = 16
DEFAULT_BUFFER_MB = 256

# The faster of these is taken: neither can read faster than the memory, and which one is limited by arithmetic instead
# depends on the version of numpy and on the CPU (numpy before 1.22 has no vector `max` for Arm).
_REDUCTIONS = (("float32", np.maximum.reduce), ("uint64", np.bitwise_or.reduce))


def read_gb_s(threads: int, seconds: float = 0.5, buffer: Optional[np.ndarray] = None) -> float:
    """Return the best read rate in GB/s (10**9 bytes). Each thread reduces its own slice of a large buffer.

    numpy releases the interpreter's lock inside a reduction, so Python threads do read at the same time.
    """
    if buffer is None:
        buffer = touched_buffer(buffer_bytes())
    best_s = float("inf")
    deadline = time.perf_counter() + seconds
    with ThreadPoolExecutor(max_workers=threads) as pool:
        passes = 0
        while passes < 2 * len(_REDUCTIONS) or time.perf_counter() < deadline:
            dtype, reduction = _REDUCTIONS[passes % len(_REDUCTIONS)]
            slices = np.array_split(buffer.view(dtype), threads)
            begin = time.perf_counter()
            list(pool.map(reduction, slices))
            elapsed_s = time.perf_counter() - begin
            if passes:  # the first pass starts the threads
                best_s = min(best_s, elapsed_s)
            passes += 1
    return buffer.nbytes / best_s / 1e9


def thread_counts(cores: int) -> List[int]:
    """Return the thread counts to try: all up to four, then doublings, and all cores."""
    return [count for count in (1, 2, 3, 4, 8, 16, 32, 64, 128) if count < cores] + [cores]


def touched_buffer(size: int) -> np.ndarray:
    """Return `size` bytes of float32 ones [size / 4]. They are written, because untouched pages all share one page of
    zeros."""
    return np.ones(size // 8 * 2, np.float32)


def buffer_bytes() -> int:
    """Return several times the last-level cache, at most a quarter of the free memory: 64 MB on a board of 512 MB."""
    size = max(DEFAULT_BUFFER_MB * MB, 4 * last_level_cache_bytes())
    free = available_bytes()
    while free and size > LEAST_BUFFER_MB * MB and size > free // 4:
        size //= 2
    return size


def available_bytes() -> int:
    """Return the bytes that a process can take without swapping, or 0 if /proc does not report them."""
    return int(read_memory_mb(read_text("/proc/meminfo")).get("MemAvailable", 0) * MB)
