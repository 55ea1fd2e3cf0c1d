"""Facts about this machine from the system, without measurements: the part of `host` that needs no probe.

Works without /proc and /sys (macOS, Windows), with fewer facts.
"""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import psutil

from merino_runtime.io import board
from merino_runtime.io.board import last_level_cache_bytes

HOST = "host"
CPUINFO = Path("/proc/cpuinfo")
LARGEST_BUDGET_MB = 4096
ARCHITECTURES = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}


def facts() -> dict[str, Any]:
    """A profile's keys and values except `performance`, as in a TOML file."""
    cores = len(board.usable_cpus())
    arch = ARCHITECTURES.get(platform.machine().lower(), "other")
    memory = psutil.virtual_memory()
    free_mb = memory.available / board.MB
    return {
        "schema": 2,
        "id": HOST,
        "name": f"this machine ({platform.node() or 'unnamed'})",
        "arch": arch,
        "isa": isa_features(arch),
        "cpu": _cpu(cores),
        "memory": {
            "ram_mb": _known(memory.total / board.MB, "psutil"),
            "free_mb": _known(free_mb, "psutil, available at the time"),
        },
        # Half of what is free now, so that the machine stays usable beside the model.
        "budget": {"decode_ms": 20, "memory_mb": min(free_mb / 2, LARGEST_BUDGET_MB), "context": 1024},
        "software": _software(),
        "power": {"sensor": "none", "modes": []},
    }


def isa_features(arch: str) -> list[str]:
    """The known features in /proc/cpuinfo; without it, those that the architecture guarantees."""
    text = CPUINFO.read_text(errors="replace") if CPUINFO.exists() else ""
    return sorted({"neon"} | board.read_isa(text) if arch == "aarch64" else board.read_isa(text))


def core_name() -> str:
    named = (name for key, name in _cpu_facts() if key == "model name" and name)
    return next(named, "") or platform.processor() or platform.machine() or "unknown"


def _cpu(cores: int) -> dict[str, Any]:
    cpu: dict[str, Any] = {
        "core": core_name(),
        "cores": _known(cores, "cores this process may use"),
    }
    clock_mhz = _clock_mhz()
    if clock_mhz:
        cpu["clock_ghz"] = _known(clock_mhz / 1000, "psutil")
    cache = last_level_cache_bytes()
    if cache:
        cpu["last_level_cache_mb"] = _known(cache / board.MB, "/sys")
    return cpu


def _software() -> dict[str, Any]:
    software = {name: version_of(name) for name in ("onnxruntime", "numpy", "tokenizers")}
    software |= {"system": platform.platform(), "python": platform.python_version()}
    library, version = platform.libc_ver()
    return software | ({"glibc": version} if library == "glibc" and version else {})


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_facts() -> list[tuple[str, str]]:
    """Keys and values of /proc/cpuinfo; none where there is no such file."""
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


def _known(value: float, how: str) -> dict[str, Any]:
    return {"value": value, "kind": "calibrated", "source": f"read from this machine: {how}"}
