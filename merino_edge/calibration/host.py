"""The profile of the machine at hand: facts read from the system, speeds by the probe that boards run.

The probe takes most of a minute, so it is kept in the user's cache folder, by CPU, cores and ONNX Runtime. Works
without /proc and /sys (macOS, Windows), with fewer facts. Leaves judging the result to `merino_edge.profiles.profile`.
"""

import hashlib
import importlib.metadata
import platform
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from merino_bench.probe.bandwidth import last_level_cache_bytes
from merino_bench.probe.run import run_probe
from merino_edge.calibration.calibrate import calibrate
from merino_edge.calibration.probe import PROBE_SCHEMA, Probe, joined, read_probe
from merino_edge.storage.atomic import cache_folder
from merino_runtime import board
from merino_runtime.errors import MerinoError

CPUINFO = Path("/proc/cpuinfo")
PROBE_SECONDS = 50.0
USUAL_RUNTIME_MB = 65  # of one tiny onnxruntime session on x86_64, see the boards' profiles
LARGEST_BUDGET_MB = 4096
ARCHITECTURES = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}


def probe_host() -> dict[str, Any]:
    """A profile's keys and values, as a TOML file would hold them; measures the machine where that was never done."""
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
            "ram_mb": _known(memory.total / board.MB, "psutil"),
            "free_mb": _known(free_mb, "psutil, available at the time"),
        },
        "performance": _performance(host_probe()),
        # Half of what is free now, so that the machine stays usable beside the model.
        "budget": {"decode_ms": 20, "memory_mb": min(free_mb / 2, LARGEST_BUDGET_MB), "context": 1024},
        "software": _software(),
        "power": {"sensor": "none", "modes": []},
    }


def host_probe(*, renew: bool = False) -> Probe:
    """What the kept probes of this machine say together; one is made now where there is none, or one more is wanted."""
    folder = cache_folder()
    kept = []
    for path in sorted(folder.glob(f"probe-{machine_key()}-*.json")):
        with suppress(MerinoError):  # of an earlier version
            kept.append(read_probe(path))
    if not kept or renew:
        path = folder / f"probe-{machine_key()}-{time.strftime('%Y%m%d-%H%M%S')}.json"
        kept.append(measured_probe(path))
        if len(kept) > 1:
            say(f"the median of {len(kept)} probes counts; remove {folder}/probe-* to begin anew")
    return joined(kept)


def measured_probe(path: Path) -> Probe:
    say(f"measuring this machine, for at most {PROBE_SECONDS + 10:.0f} s; kept in {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    found = run_probe(str(path), PROBE_SECONDS)
    say(f"measured in {found['seconds']:.0f} s")
    if found["flags"]:
        say(f"it was {' and '.join(found['flags'])} meanwhile: `merino-edge calibrate --device host` measures again")
    return read_probe(path)


def machine_key() -> str:
    """Of what a probe depends on."""
    facts = [_core_name(), len(board.usable_cpus()), last_level_cache_bytes(), _version("onnxruntime"), PROBE_SCHEMA]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def isa_features(arch: str) -> list[str]:
    """The known features /proc/cpuinfo names; without it only what the architecture itself guarantees."""
    text = CPUINFO.read_text(errors="replace") if CPUINFO.exists() else ""
    return sorted({"neon"} | board.read_isa(text) if arch == "aarch64" else board.read_isa(text))


def _cpu(cores: int) -> dict[str, Any]:
    cpu: dict[str, Any] = {
        "core": _core_name(),
        "cores": _known(cores, "cores this process may use"),
    }
    clock_mhz = _clock_mhz()
    if clock_mhz:
        cpu["clock_ghz"] = _known(clock_mhz / 1000, "psutil")
    cache = last_level_cache_bytes()
    if cache:
        cpu["last_level_cache_mb"] = _known(cache / board.MB, "/sys")
    return cpu


def _performance(probe: Probe) -> dict[str, Any]:
    usual = {"value": USUAL_RUNTIME_MB, "kind": "estimated", "source": "measured on another x86_64 machine"}
    return {"runtime_mb": usual} | calibrate(probe).performance


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


def _known(value: float, how: str) -> dict[str, Any]:
    return {"value": value, "kind": "calibrated", "source": f"read from this machine: {how}"}
