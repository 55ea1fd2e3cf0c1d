"""The board that `--device` names: a shipped profile, a TOML file, or `host`, this machine.

The facts of this machine are read from the system, without measurements, and with fewer facts where there is no /proc
and no /sys (macOS, Windows). `host` adds what a probe measures.
"""

import importlib.metadata
import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from merino_edge.profiles.profile import BACKENDS, DeviceProfile
from merino_edge.profiles.reading import load_profile, parse_profile
from merino_runtime.errors import MerinoError
from merino_runtime.io.board import MB, last_level_cache_bytes, read_isa, usable_cpus

HOST = "host"
CPUINFO = Path("/proc/cpuinfo")
LARGEST_BUDGET_MB = 4096
ARCHITECTURES = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}


def board(
    id_or_path: str | Path, say: Callable[[str], None] = lambda _: None, backend: str | None = None
) -> DeviceProfile:
    """Return the profile of `--device`, with predictions of `--backend`, by default the board's own. `host` without a
    stored probe is measured first, which takes a minute; `say` reports it.

    Raise MerinoError if there is no such board or it has no such backend, or its file is not valid.
    """
    if backend is not None and backend not in BACKENDS:
        raise MerinoError(f"--backend {backend} is not known: choose {' or '.join(BACKENDS)}")
    if str(id_or_path) != HOST:
        return load_profile(id_or_path).with_backend(backend)
    from merino_edge.calibration.host import host_probes, profile_from  # loads scipy and the harness

    return parse_profile(profile_from(host_probes(say)), "The profile probed from this machine").with_backend(backend)


def facts() -> dict[str, Any]:
    """Return a profile's keys and values except `performance`, as in a TOML file."""
    cpu: dict[str, Any] = {
        "core": core_name(), "cores": known(len(usable_cpus()), "cores this process may use"),
    }  # fmt: skip
    with suppress(OSError, RuntimeError, NotImplementedError, AttributeError):  # virtual machines, some Arm Macs
        clock = psutil.cpu_freq()
        if clock and (clock.max or clock.current):
            cpu["clock_ghz"] = known((clock.max or clock.current) / 1000, "psutil")
    if cache := last_level_cache_bytes():
        cpu["last_level_cache_mb"] = known(cache / MB, "/sys")
    software = {name: version_of(name) for name in ("onnxruntime", "numpy", "tokenizers")}
    software |= {"system": platform.platform(), "python": platform.python_version()}
    library, version = platform.libc_ver()
    if library == "glibc" and version:
        software["glibc"] = version
    arch = ARCHITECTURES.get(platform.machine().lower(), "other")
    memory = psutil.virtual_memory()
    free_mb = memory.available / MB
    return {
        "schema": 2,
        "id": HOST,
        "name": f"this machine ({platform.node() or 'unnamed'})",
        "arch": arch,
        "isa": isa_features(arch),
        "cpu": cpu,
        "memory": {
            "ram_mb": known(memory.total / MB, "psutil"),
            "free_mb": known(free_mb, "psutil, available at the time"),
        },
        # Half of what is free now, so that the machine stays usable beside the model.
        "budget": {"decode_ms": 20, "memory_mb": min(free_mb / 2, LARGEST_BUDGET_MB), "context": 1024},
        "software": software,
        "power": {"sensor": "none", "modes": []},
    }


def isa_features(arch: str) -> list[str]:
    """Return the known features in /proc/cpuinfo; without it, those that the architecture guarantees."""
    text = CPUINFO.read_text(errors="replace") if CPUINFO.exists() else ""
    return sorted({"neon"} | read_isa(text) if arch == "aarch64" else read_isa(text))


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


def known(value: float, how: str) -> dict[str, Any]:
    return {"value": value, "kind": "calibrated", "source": f"read from this machine: {how}"}
