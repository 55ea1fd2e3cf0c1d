"""The facts of this machine that need no probe: those that the system knows, and how fast it trains.

Works without /proc and /sys (macOS, Windows), with fewer facts.
"""

import importlib.metadata
import platform
import time
import timeit
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from merino_runtime.io import board
from merino_runtime.io.board import last_level_cache_bytes

if TYPE_CHECKING:
    from merino_edge.families.geometry import Geometry  # imports numpy

HOST = "host"
CPUINFO = Path("/proc/cpuinfo")
LARGEST_BUDGET_MB = 4096
TRAINING_SHARE = 0.2  # assumed for small decoders in torch; `train` measures its own steps
BF16 = frozenset(("avx512_bf16", "bf16"))  # instruction sets of CPUs that multiply in bfloat16
TIMED_STEPS = 2  # after a first one, which is slower
OTHER_SHARE = 0.15  # of a run, for the optimizer, evaluations and saved states
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


def bf16_is_faster() -> bool:
    """Return whether the GPU multiplies in bfloat16; on a CPU, whether it also takes less time than in float32:
    Sapphire Rapids without AMX takes twice as long."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(512, 512, dtype=dtype)
        return min(timeit.repeat(lambda: matrix @ matrix, number=1, repeat=10))

    return bool(board.this_isa() & BF16) and seconds(torch.bfloat16) < seconds(torch.float32)


def training_steps(hours: float, arch: "Geometry", *, batch: int, length: int, parts: int, bf16: bool) -> int:
    """Return the number of steps that a training run of so many hours takes. A step has `batch` rows of `length`
    tokens, computed in `parts`."""
    import torch

    from merino_edge.families.hugging_face import build_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = build_model(arch).to(device)
    ids = torch.randint(arch.vocab, (max(1, batch // parts), length), device=device)
    seconds = []
    for _ in range(1 + TIMED_STEPS):
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        seconds.append(time.perf_counter() - start)
    return max(1, round(3600 * hours * (1 - OTHER_SHARE) / (min(seconds[1:]) * parts)))


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
