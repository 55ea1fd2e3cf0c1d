"""Facts about the machine: userland, cores, instruction set, memory. Standard library only.

They are read before numpy or a backend is imported: a board that cannot run a bundle then gets a message, not an
illegal instruction. Clocks, temperatures and power belong to `merino_bench`. 1 MB of memory is 2^20 bytes.
"""
import os
import platform
import re
import resource
import struct
from typing import Any, Dict, FrozenSet, List, NamedTuple, Optional

MB = 2 ** 20
# Python, numpy, tokenizers and onnxruntime after their imports: 43 MB (onnxruntime 1.10) to 53 MB (1.32) on x86.
PROCESS_MB = 55
# CUDA's context, and the libraries that TensorRT loads into it: estimated for Jetsons, not measured.
CUDA_MB = 600

# Feature name in /proc/cpuinfo -> name in bundles and device profiles.
ARM_FEATURES = {"asimddp": "dotprod", "fphp": "fp16", "asimdhp": "fp16", "i8mm": "i8mm", "sve": "sve",
                "sve2": "sve2", "bf16": "bf16"}
X86_FEATURES = {name: name for name in (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16",
    "amx_int8")}
VNNI = frozenset(("avx512_vnni", "avx_vnni"))  # multiplications of 8 bits that add up in 32
KERNELS_NEED = frozenset(("avx2", "fma", "f16c"))  # runtime/kernels on x86
# Bits of the same Arm features in the auxiliary vector, entries AT_HWCAP and AT_HWCAP2 of getauxval(3).
AT_HWCAP, AT_HWCAP2 = 16, 26
ARM_HWCAP_BITS = {"fphp": 9, "asimdhp": 10, "asimddp": 20, "sve": 22}
ARM_HWCAP2_BITS = {"sve2": 1, "i8mm": 13, "bf16": 14}
X86_MACHINES = ("x86_64", "AMD64", "i686", "i386")


class Board(NamedTuple):
    architecture: str  # of the kernel; the userland of a 64-bit kernel may be 32-bit
    pointer_bits: int
    logical_cores: int  # in this process's CPU affinity
    physical_cores: int
    isa: FrozenSet[str]
    memory_total_mb: Optional[float]
    memory_available_mb: Optional[float]


def this_board() -> Board:
    memory_mb = read_memory_mb(read_text("/proc/meminfo"))
    return Board(
        architecture=platform.machine(), pointer_bits=8 * struct.calcsize("P"),
        logical_cores=len(usable_cpus()), physical_cores=physical_core_count(),
        isa=this_isa(),
        memory_total_mb=memory_mb.get("MemTotal"), memory_available_mb=memory_mb.get("MemAvailable"))


def this_isa() -> FrozenSet[str]:
    """Return the features of this CPU. On 64-bit Arm they are read from the auxiliary vector, which the kernel passes
    to each process. /proc/cpuinfo is the fallback: a sandbox may hide it, and some emulators show the host's."""
    if platform.machine() == "aarch64" and struct.calcsize("P") == 8:  # other bits in a 32-bit userland
        hwcap = _auxiliary_value(AT_HWCAP)
        if hwcap:  # 0 means no answer: every 64-bit Arm CPU sets the bits of floating point
            return arm64_isa(hwcap, _auxiliary_value(AT_HWCAP2))
    return read_isa(read_text("/proc/cpuinfo"))


def arm64_isa(hwcap: int, hwcap2: int) -> FrozenSet[str]:
    flags = [name for name, bit in ARM_HWCAP_BITS.items() if hwcap >> bit & 1]
    flags += [name for name, bit in ARM_HWCAP2_BITS.items() if hwcap2 >> bit & 1]
    return frozenset(ARM_FEATURES[name] for name in flags)


def _auxiliary_value(entry: int) -> int:
    """Return an entry of the auxiliary vector; 0 if there is no such entry, or no getauxval."""
    getauxval = libc_function("getauxval")
    if getauxval is None:
        return 0
    import ctypes

    getauxval.argtypes, getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
    return getauxval(entry)


def libc_function(name: str) -> Any:
    """Return a function of the C library; None if it has no such function."""
    try:
        import ctypes  # some small builds of Python have none

        return getattr(ctypes.CDLL(None), name)
    except (ImportError, OSError, AttributeError, TypeError):
        return None


def read_isa(cpuinfo: str) -> FrozenSet[str]:
    """Return the features that *all* cores have: the scheduler may move a thread to any of them."""
    names = dict(ARM_FEATURES, **X86_FEATURES)
    lines = re.findall(r"^(?:Features|flags)[ \t]*:(.*)$", cpuinfo, re.MULTILINE)
    per_core = [frozenset(names[word] for word in line.split() if word in names) for line in lines]
    return frozenset.intersection(*per_core) if per_core else frozenset()


def read_memory_mb(meminfo: str) -> Dict[str, float]:
    return {name: int(kib) * 1024 / MB
            for name, kib in re.findall(r"^(MemTotal|MemAvailable):\s*(\d+) kB", meminfo, re.MULTILINE)}


def usable_cpus() -> List[int]:
    return sorted(os.sched_getaffinity(0))


def physical_core_count() -> int:
    """Return the number of physical cores: the hardware threads of one core share its load ports, and decode is bound
    by memory reads."""
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return len({read_text(topology.format(cpu)).strip() or str(cpu) for cpu in usable_cpus()})


def last_level_cache_bytes() -> int:
    """Return the size of CPU 0's highest cache level; 0 if /sys lacks it, as on some boards."""
    caches = [(0, 0)]  # (level, bytes)
    for index in range(8):
        level, size = (read_text(f"/sys/devices/system/cpu/cpu0/cache/index{index}/{name}").strip()
                       for name in ("level", "size"))
        if level.isdigit() and size[:-1].isdigit():
            caches.append((int(level), int(size[:-1]) * (MB if size.endswith("M") else 1024)))
    return max(caches)[1]


def peak_rss_mb() -> float:
    """Return the peak resident memory of this process since its start."""
    match = re.search(r"^VmHWM:\s*(\d+) kB", read_text("/proc/self/status"), re.MULTILINE)
    if match:
        return int(match.group(1)) * 1024 / MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB


def rss_mb() -> Optional[float]:
    """Return the resident memory of this process; None if the system does not report it."""
    match = re.search(r"^VmRSS:\s*(\d+) kB", read_text("/proc/self/status"), re.MULTILINE)
    return int(match.group(1)) * 1024 / MB if match else None


def read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
