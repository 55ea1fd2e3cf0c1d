"""The profile of the machine at hand: read from the system where possible, measured in about two seconds.

Works without /proc and /sys (macOS, Windows), with fewer facts. Leaves probing a board to `merino_bench`,
which runs there, and judging the result to `merino_edge.profiles`.
"""

import datetime
import importlib.metadata
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from merino_bench.probe import buffer_bytes, last_level_cache_bytes, read_gb_s, thread_counts, touched_buffer
from merino_runtime import board

CPUINFO = Path("/proc/cpuinfo")
READ_SECONDS = 1.0
MATRIX_SECONDS = 0.3
MATRIX_SIZE = 1024
USUAL_RUNTIME_MB = 65  # of one tiny onnxruntime session on x86_64, see the boards' profiles
LARGEST_BUDGET_MB = 4096
ARCHITECTURES = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}
RUNTIME_PROBE = """
import numpy, onnxruntime, psutil, tokenizers
print(psutil.Process().memory_info().rss)
"""


def probe_host() -> dict[str, Any]:
    """Measure this machine: a profile's keys and values, as a TOML file would hold them.

    A busy machine looks slower than it is: the best of several passes counts.
    """
    cores = len(board.usable_cpus())
    arch = ARCHITECTURES.get(platform.machine().lower(), "other")
    memory = psutil.virtual_memory()
    free_mb = memory.available / board.MB
    return {
        "schema": 1,
        "id": "host",
        "name": f"this machine ({platform.node() or 'unnamed'})",
        "arch": arch,
        "isa": isa_features(arch),
        "cpu": _cpu(cores),
        "memory": {
            "ram_mb": _probed(memory.total / board.MB, "psutil"),
            "free_mb": _probed(free_mb, "psutil, available at the time"),
        },
        "performance": _performance(cores),
        # Half of what is free now, so that the machine stays usable beside the model.
        "budget": {"decode_ms": 20, "memory_mb": min(free_mb / 2, LARGEST_BUDGET_MB), "context": 1024},
        "software": _software(),
        "power": {"sensor": "none", "modes": []},
    }


def isa_features(arch: str) -> list[str]:
    """The known features /proc/cpuinfo names; without it only what the architecture itself guarantees."""
    text = CPUINFO.read_text(errors="replace") if CPUINFO.exists() else ""
    return sorted({"neon"} | board.read_isa(text) if arch == "aarch64" else board.read_isa(text))


def matrix_gflops(seconds: float = MATRIX_SECONDS, size: int = MATRIX_SIZE) -> float:
    """Best float32 matrix-matrix rate of numpy's BLAS, with as many threads as it takes by itself."""
    left = np.ones((size, size), np.float32)
    right = np.ones((size, size), np.float32)
    product = np.dot(left, right)  # not timed: starts BLAS's threads
    best_s = float("inf")
    deadline = time.perf_counter() + seconds
    while best_s == float("inf") or time.perf_counter() < deadline:
        begin = time.perf_counter()
        np.dot(left, right, out=product)
        best_s = min(best_s, time.perf_counter() - begin)
    return 2 * size**3 / best_s / 1e9


def best_read(cores: int, seconds: float = READ_SECONDS) -> tuple[float, int]:
    """The best read rate in GB/s over thread counts, and the count that reached it."""
    counts = thread_counts(cores)
    buffer = touched_buffer(buffer_bytes())
    rates = {count: read_gb_s(count, seconds / len(counts), buffer) for count in counts}
    best = max(counts, key=lambda count: rates[count])
    return rates[best], best


def runtime_mb() -> float | None:
    """Resident memory of a fresh Python with numpy, onnxruntime and tokenizers; None if it cannot be had."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", RUNTIME_PROBE], capture_output=True, text=True, timeout=30, check=True
        )
        return int(done.stdout) / board.MB
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _cpu(cores: int) -> dict[str, Any]:
    cpu: dict[str, Any] = {
        "core": _core_name(),
        "cores": _probed(cores, "cores this process may use"),
    }
    clock_mhz = _clock_mhz()
    if clock_mhz:
        cpu["clock_ghz"] = _probed(clock_mhz / 1000, "psutil")
    cache = last_level_cache_bytes()
    if cache:
        cpu["last_level_cache_mb"] = _probed(cache / board.MB, "/sys")
    return cpu


def _performance(cores: int) -> dict[str, Any]:
    read, decode_threads = best_read(cores)
    resident_mb = runtime_mb()
    return {
        "read_gb_s": _probed(read, f"reduction over a large buffer, {decode_threads} threads"),
        "fp32_gflops": _probed(matrix_gflops(), f"numpy.dot at size {MATRIX_SIZE}, BLAS's own threads"),
        "op_overhead_us": _estimated(3, "70 operators in 0.22 ms on an x86 server core"),
        "runtime_mb": _estimated(USUAL_RUNTIME_MB, "measured on another x86_64 machine")
        if resident_mb is None
        else _probed(resident_mb, "fresh process importing numpy, onnxruntime, tokenizers"),
        "decode_threads": _probed(decode_threads, "the count that read fastest"),
        "prefill_threads": _probed(cores, "cores this process may use"),
    }


def _software() -> dict[str, Any]:
    software = {name: _version(name) for name in ("onnxruntime", "numpy", "tokenizers")}
    software |= {"system": platform.platform(), "python": platform.python_version()}
    library, version = platform.libc_ver()
    return software | ({"glibc": version} if library == "glibc" and version else {})


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _core_name() -> str:
    named = (name for key, name in _cpu_facts() if key == "model name" and name)
    return next(named, "") or platform.processor() or platform.machine() or "unknown"


def _cpu_facts() -> list[tuple[str, str]]:
    """Keys and values of /proc/cpuinfo, none where it lacks."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [(key.strip(), value.strip()) for key, _, value in pairs]


def _clock_mhz() -> float | None:
    try:
        clock = psutil.cpu_freq()
    except (OSError, RuntimeError, NotImplementedError, AttributeError):  # virtual machines, some Arm Macs
        return None
    return (clock.max or clock.current) if clock else None


def _probed(value: float, how: str) -> dict[str, Any]:
    source = f"probed on this machine {datetime.date.today().isoformat()}, numpy {np.__version__}: {how}"
    return {"value": value, "kind": "calibrated", "source": source}


def _estimated(value: float, source: str) -> dict[str, Any]:
    return {"value": value, "kind": "estimated", "source": source}
