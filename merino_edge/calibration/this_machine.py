"""Read the facts of this machine from the system, without measurements: the part of `host` that needs no probe.

Works without /proc and /sys (macOS, Windows), with fewer facts.
"""

import importlib.metadata
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from merino_runtime.io import board
from merino_runtime.io.board import last_level_cache_bytes

HOST = "host"
CPUINFO = Path("/proc/cpuinfo")
LARGEST_BUDGET_MB = 4096
TRAINING_SHARE = 0.2  # assumed for small decoders in torch; `train` measures its own steps
ARCHITECTURES = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}


def facts() -> dict[str, Any]:
    """Return a profile's keys and values except `performance`, as in a TOML file."""
    cpu: dict[str, Any] = {
        "core": core_name(), "cores": _known(len(board.usable_cpus()), "cores this process may use"),
    }  # fmt: skip
    with suppress(OSError, RuntimeError, NotImplementedError, AttributeError):  # virtual machines, some Arm Macs
        clock = psutil.cpu_freq()
        if clock and (clock.max or clock.current):
            cpu["clock_ghz"] = _known((clock.max or clock.current) / 1000, "psutil")
    if cache := last_level_cache_bytes():
        cpu["last_level_cache_mb"] = _known(cache / board.MB, "/sys")
    software = {name: version_of(name) for name in ("onnxruntime", "numpy", "tokenizers")}
    software |= {"system": platform.platform(), "python": platform.python_version()}
    library, version = platform.libc_ver()
    if library == "glibc" and version:
        software["glibc"] = version
    arch = ARCHITECTURES.get(platform.machine().lower(), "other")
    features = board.read_isa(CPUINFO.read_text(errors="replace") if CPUINFO.exists() else "")
    memory = psutil.virtual_memory()
    free_mb = memory.available / board.MB
    return {
        "schema": 2,
        "id": HOST,
        "name": f"this machine ({platform.node() or 'unnamed'})",
        "arch": arch,
        "isa": sorted({"neon"} | features if arch == "aarch64" else features),  # which each aarch64 CPU has
        "cpu": cpu,
        "memory": {
            "ram_mb": _known(memory.total / board.MB, "psutil"),
            "free_mb": _known(free_mb, "psutil, available at the time"),
        },
        # Half of what is free now, so that the machine stays usable beside the model.
        "budget": {"decode_ms": 20, "memory_mb": min(free_mb / 2, LARGEST_BUDGET_MB), "context": 1024},
        "software": software,
        "power": {"sensor": "none", "modes": []},
    }


def training_flops_per_s() -> float:
    """Return the floating-point operations per second of training on this CPU: TRAINING_SHARE of a matrix
    multiplication's, which takes a tenth of a second here."""
    import numpy as np  # `facts` needs none

    matrix = np.ones((768, 768), np.float32)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - start)
    return TRAINING_SHARE * 2 * len(matrix) ** 3 / min(times)


def core_name() -> str:
    """Return the CPU's name in /proc/cpuinfo, or what Python knows of it."""
    with suppress(OSError):
        for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, name = line.partition(":")
            if key.strip() == "model name" and name.strip():
                return name.strip()
    return platform.processor() or platform.machine() or "unknown"


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _known(value: float, how: str) -> dict[str, Any]:
    return {"value": value, "kind": "calibrated", "source": f"read from this machine: {how}"}
