"""The profile of the machine at hand: facts read from the system, and coefficients from the probe that boards run.

The probe takes most of a minute, so it is kept in the user's cache folder, by CPU, cores and ONNX Runtime; one made on
a busy machine is kept only on request. Does not judge the profile: reading it does.
"""

import hashlib
import importlib.metadata
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from merino_bench.probe.run import run_probe
from merino_edge.calibration.calibrate import calibrate
from merino_edge.calibration.probe import PROBE_SCHEMA, Probe, read_probe
from merino_edge.storage.atomic import cache_folder, scratch_folder
from merino_runtime.errors import MerinoError
from merino_runtime.io import board
from merino_runtime.io.board import last_level_cache_bytes

HOST = "host"
CPUINFO = Path("/proc/cpuinfo")
LARGEST_BUDGET_MB = 4096
ARCHITECTURES = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}
PROBE_SECONDS = 50.0
DEFAULT_RUNTIME_MB = 65  # of one tiny onnxruntime session on x86_64, see the boards' profiles
Say = Callable[[str], None]


def facts() -> dict[str, Any]:
    """A profile's keys and values but `performance`, as a TOML file would hold them."""
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
    """The known features that /proc/cpuinfo names; without it, those that the architecture guarantees."""
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


def silent(text: str) -> None:  # noqa: ARG001
    """A `say` where nobody listens."""


def host_profile(say: Say = silent) -> dict[str, Any]:
    """A profile's keys and values, as a TOML file would hold them; measures the machine where no probe is kept."""
    return facts() | {"performance": {"onnxruntime": _performance(host_probes(say))}}


def host_probes(say: Say = silent, *, renew: bool = False) -> list[Probe]:
    """The kept probes of this machine; where none is kept, or with `renew`, one is made first.

    A new probe with flags (the machine was busy, throttled or swapping) is not kept by itself: later runs would take
    its slow rows for the machine's. `renew` is the user's explicit request and keeps it.
    """
    folder = cache_folder()
    kept = []
    for path in sorted(folder.glob(f"probe-{machine_key()}-*.json")):
        with suppress(MerinoError):  # of an earlier schema
            kept.append(read_probe(path))
    if kept and not renew:
        return kept
    path = folder / f"probe-{machine_key()}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    kept.append(new_probe(path, say, keep_flagged=renew))
    if len(kept) > 1:
        say(f"the median of {len(kept)} probes counts; remove {folder}/probe-* to begin anew")
    return kept


def new_probe(path: Path, say: Say, *, keep_flagged: bool) -> Probe:
    """Measure this machine, and keep the probe at `path` where it has no flags or `keep_flagged`."""
    say(f"measuring this machine, for at most {PROBE_SECONDS + 10:.0f} s")
    with scratch_folder(path) as scratch:
        made = scratch / path.name
        run_probe(str(made), PROBE_SECONDS)
        probe = read_probe(made)
        if keep_flagged or not probe.flags:
            made.replace(path)
    if not probe.flags:
        say(f"measured in {probe.seconds:.0f} s; kept in {path}")
        return probe
    say(f"measured in {probe.seconds:.0f} s; the machine was {' and '.join(probe.flags)} meanwhile")
    if keep_flagged:
        say(f"kept all the same, as calibrate asks: to undo, remove {path} and calibrate again while nothing else runs")
    else:
        say("so this run uses the probe and does not keep it; `merino-edge calibrate --device host` makes one to keep")
    return probe


def machine_key() -> str:
    """A hash of what a probe depends on: CPU, cores, cache, ONNX Runtime, schema."""
    facts = [core_name(), len(board.usable_cpus()), last_level_cache_bytes(), version_of("onnxruntime"), PROBE_SCHEMA]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def _performance(probes: Sequence[Probe]) -> dict[str, Any]:
    runtime_mb = {"value": DEFAULT_RUNTIME_MB, "kind": "estimated", "source": "measured on another x86_64 machine"}
    return {"runtime_mb": runtime_mb} | calibrate(*probes).performance
