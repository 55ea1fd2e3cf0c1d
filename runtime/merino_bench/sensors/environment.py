"""Read the machine's state before and after a run: clocks, temperatures, throttling, swap.

Parsers take text and readers take a root folder, so that both are tested on recorded boards. Instruction set and memory
are in `merino_runtime.io.board`, power is in `power`.

The CPU time that other processes and other guests of the host took is the difference of two readings. Clock ticks see
what runs for 10 ms or longer. A shorter burst shows in two exact counters of the kernel: the time that runnable threads
of this process waited for a core (schedstat), and the involuntary context switches. A source that this machine lacks
returns None.
"""

import glob
import os
import platform
import re
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import merino_runtime

BUSY_SHARE = 0.05  # of the time: more than that changes the measurement
LEAST_WINDOW_S = 0.25  # the kernel counts CPU time in steps of 0.01 s
SWAPPED_PAGES = 256  # 1 MB
NOW_BITS, SINCE_BOOT_BITS = 0xF, 0xF0000  # Raspberry Pi: under-voltage, capped, throttled, soft limit


class CpuMoment(NamedTuple):
    """Readings to subtract. Times in seconds; of this process where nothing else is stated."""
    clock_s: float
    busy_s: Optional[float]  # of all processes on all cores, stolen time included
    stolen_s: Optional[float]  # by other guests of the host
    own_s: float
    waited_s: Optional[float]  # its threads were runnable and had no core
    preemptions: Optional[int]  # involuntary context switches


class Load(NamedTuple):
    """Shares from 0 to 1; None if the source is missing or the time was too short."""
    others_cpu_share: Optional[float]  # of all cores' time, that other processes and guests took
    steal_share: Optional[float]  # of all cores' time, that other guests took
    waiting_share: Optional[float]  # of the time that this process's threads were runnable, that they had no core
    preemptions_per_s: Optional[float]

    @property
    def busy(self) -> bool:
        shares = (self.others_cpu_share, self.waiting_share)
        return any(share is not None and share > BUSY_SHARE for share in shares)

    def as_record(self) -> Dict[str, Any]:
        return dict(self._asdict())


def cpu_moment(root: str = "/") -> CpuMoment:
    own, stat = os.times(), _read(root, "proc/stat")
    preemptions = None
    with suppress(ImportError):
        import resource  # here, because Windows has no such module

        preemptions = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    return CpuMoment(clock_s=time.perf_counter(), busy_s=busy_s(stat), stolen_s=stolen_s(stat),
                     own_s=own.user + own.system, waited_s=waited_s(root), preemptions=preemptions)


def load_between(before: CpuMoment, after: CpuMoment, cpus: int) -> Load:
    window_s = after.clock_s - before.clock_s
    long_enough = window_s >= LEAST_WINDOW_S
    own_s = after.own_s - before.own_s
    busy, stolen = _grown(before.busy_s, after.busy_s), _grown(before.stolen_s, after.stolen_s)
    waited, preemptions = _grown(before.waited_s, after.waited_s), _grown(before.preemptions, after.preemptions)
    return Load(
        others_cpu_share=_share(None if busy is None else busy - own_s, window_s * cpus) if long_enough else None,
        steal_share=_share(stolen, window_s * cpus) if long_enough else None,
        waiting_share=None if waited is None else _share(waited, own_s + waited),
        preemptions_per_s=None if preemptions is None else round(preemptions / max(window_s, 1e-9), 1))


def busy_s(stat: Optional[str], ticks_per_s: Optional[int] = None) -> Optional[float]:
    """Return the seconds of all cores since boot: user + nice + system + irq + softirq + steal, without idle and
    iowait."""
    match = re.search(r"^cpu +(.+)$", stat or "", re.MULTILINE)
    if not match:
        return None
    ticks = [int(word) for word in match.group(1).split()[:8]]  # guest time is in user's already
    return (sum(ticks) - sum(ticks[3:5])) / (ticks_per_s or os.sysconf("SC_CLK_TCK"))


def stolen_s(stat: Optional[str], ticks_per_s: Optional[int] = None) -> Optional[float]:
    """Return the seconds since boot in which a core had work and the host gave it to another guest."""
    match = re.search(r"^cpu +(?:\d+ +){7}(\d+)", stat or "", re.MULTILINE)
    return int(match.group(1)) / (ticks_per_s or os.sysconf("SC_CLK_TCK")) if match else None


def waited_s(root: str = "/") -> Optional[float]:
    """Return the seconds that the threads of this process have waited for a core; None if the kernel does not count
    them."""
    texts = [_read("", path) for path in glob.glob(os.path.join(root, "proc/self/task/*/schedstat"))]
    waits_ns = [int(text.split()[1]) for text in texts if text]  # a thread may end meanwhile
    return sum(waits_ns) / 1e9 if waits_ns else None


def _grown(before: Optional[float], after: Optional[float]) -> Optional[float]:
    return None if before is None or after is None else after - before


def _share(part_s: Optional[float], whole_s: float) -> Optional[float]:
    return None if part_s is None or whole_s <= 0 else round(max(0.0, part_s) / whole_s, 4)


def machine(root: str = "/") -> Dict[str, Any]:
    """Return the facts that do not change during a run."""
    return {
        "board": board_model(_read(root, "proc/device-tree/model")) or cpu_model(_read(root, "proc/cpuinfo")),
        "kernel": platform.release() or None, "arch": platform.machine() or None, "cpus": os.cpu_count(),
        "versions": {
            "python": platform.python_version(), "merino": merino_runtime.__version__,
            # Of what this process has imported, so after the backend is open.
            **{name: getattr(sys.modules.get(name), "__version__", None)
               for name in ("numpy", "onnxruntime", "tensorrt")}},
    }


def state(root: str = "/") -> Dict[str, Any]:
    """Return the facts that may change, so they are taken before and after a run."""
    clocks = "sys/devices/system/cpu/cpu[0-9]*/cpufreq/"
    governors = {word for _, word in _read_all(root, clocks + "scaling_governor")}
    clocks_mhz = [khz / 1000 for _, khz in _numbers(root, clocks + "scaling_cur_freq")]
    clocks_max_mhz = [khz / 1000 for _, khz in _numbers(root, clocks + "scaling_max_freq")]
    loads = (_read(root, "proc/loadavg") or "").split()
    return {
        "governor": ", ".join(sorted(governors)) or None,
        "clocks_mhz": clocks_mhz or cpuinfo_clocks_mhz(_read(root, "proc/cpuinfo")),
        "clocks_max_mhz": clocks_max_mhz or None,
        "temperatures_c": temperatures_c(root),
        "cpu_cooling": cooling_level(root, ("cpu", "processor")),
        "gpu_cooling": cooling_level(root, ("gpu", "devfreq")),
        "throttle_bits": throttle_bits(output_of("vcgencmd", "get_throttled")),
        "power_mode": power_mode(output_of("nvpmodel", "-q")),
        "swap_used_mb": swap_used_mb(_read(root, "proc/meminfo")),
        "swapped_pages": swapped_pages(_read(root, "proc/vmstat")),
        "load_1m": float(loads[0]) if loads else None,
    }


def flags_of(before: Dict[str, Any], after: Dict[str, Any], load: Load) -> List[str]:
    """Return `throttled`, `busy` and `swapping`, if they were seen; a missing source raises no flag. before, after:
    from `state`; load: of the time between them."""
    flags = []
    bits_before, bits_after = (int(facts["throttle_bits"] or "0", 16) for facts in (before, after))
    newly = bits_after & ~bits_before & SINCE_BOOT_BITS
    cooled = any((facts[unit] or 0) > 0 for facts in (before, after) for unit in ("cpu_cooling", "gpu_cooling"))
    if (bits_before | bits_after) & NOW_BITS or newly or cooled:
        flags.append("throttled")
    if load.busy:
        flags.append("busy")
    pages = [facts["swapped_pages"] for facts in (before, after)]
    if None not in pages and pages[1] - pages[0] > SWAPPED_PAGES:
        flags.append("swapping")
    return flags


def board_model(device_tree: Optional[str]) -> Optional[str]:
    return (device_tree or "").strip("\0\n ") or None


def cpu_model(cpuinfo: Optional[str]) -> Optional[str]:
    match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo or "", re.MULTILINE)
    return match.group(1).strip() if match else None


def cpuinfo_clocks_mhz(cpuinfo: Optional[str]) -> Optional[List[float]]:
    clocks = re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", cpuinfo or "", re.MULTILINE)
    return [float(mhz) for mhz in clocks] or None


def throttle_bits(vcgencmd: Optional[str]) -> Optional[str]:
    """Parse "throttled=0x50000" into "0x50000"."""
    match = re.search(r"throttled=(0x[0-9a-fA-F]+)", vcgencmd or "")
    return match.group(1) if match else None


def power_mode(nvpmodel: Optional[str]) -> Optional[str]:
    """Return the name and, in parentheses, the number that `nvpmodel -m` takes."""
    match = re.search(r"NV Power Mode:\s*(\S+)(?:\s+(\d+)\s*$)?", nvpmodel or "", re.MULTILINE)
    if not match:
        return None
    return f"{match.group(1)} ({match.group(2)})" if match.group(2) else match.group(1)


def swap_used_mb(meminfo: Optional[str]) -> Optional[float]:
    kib = dict(re.findall(r"^(SwapTotal|SwapFree):\s*(\d+) kB", meminfo or "", re.MULTILINE))
    return (int(kib["SwapTotal"]) - int(kib["SwapFree"])) / 1024 if len(kib) == 2 else None


def swapped_pages(vmstat: Optional[str]) -> Optional[int]:
    """Return the number of pages swapped in and out since boot."""
    counts = re.findall(r"^pswp(?:in|out) (\d+)", vmstat or "", re.MULTILINE)
    return sum(map(int, counts)) if counts else None


def temperatures_c(root: str = "/") -> Optional[Dict[str, float]]:
    """Return degrees Celsius by the zone's name. If two zones have the same name, the second has its folder's name
    added."""
    temperatures: Dict[str, float] = {}
    zones = "sys/class/thermal/thermal_zone*/"
    names = dict(_read_all(root, zones + "type"))
    for folder, millidegrees in _numbers(root, zones + "temp"):
        name = names.get(folder, folder)
        temperatures[name if name not in temperatures else f"{name} {folder}"] = millidegrees / 1000
    return temperatures or None


def cooling_level(root: str, words: Tuple[str, ...]) -> Optional[int]:
    """Return the highest level of the kernel's throttling devices whose type has one of the words, 0: not throttled. A
    GPU's are called `devfreq-17000000.ga10b`, `thermal-devfreq-0` or `gpu-balanced`, by kernel."""
    devices = "sys/class/thermal/cooling_device*/"
    names = dict(_read_all(root, devices + "type"))
    levels = [level for folder, level in _numbers(root, devices + "cur_state")
              if any(word in names.get(folder, "").lower() for word in words)]
    return max(levels) if levels else None


def _read(root: str, path: str) -> Optional[str]:
    try:
        with open(os.path.join(root, path), encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None


def _read_all(root: str, pattern: str) -> List[Tuple[str, str]]:
    """Return (its folder's name, its text) of each file that matches, in the order of the numbers in the path. Files
    that cannot be read are left out, such as those of a temperature zone that is switched off."""
    paths = glob.glob(os.path.join(root, pattern))
    paths.sort(key=lambda path: [int(number) for number in re.findall(r"\d+", path[len(root):])])
    texts = [(os.path.basename(os.path.dirname(path)), (_read("", path) or "").strip()) for path in paths]
    return [(folder, text) for folder, text in texts if text]


def _numbers(root: str, pattern: str) -> List[Tuple[str, int]]:
    """Read the files of `_read_all`, without those that hold no integer: a driver may write `<unsupported>`."""
    return [(folder, int(text)) for folder, text in _read_all(root, pattern) if re.match(r"-?\d+$", text)]


def output_of(*command: str) -> Optional[str]:
    """Return a program's stdout; None if there is none or it hangs."""
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:  # no such program, or no memory to start one
        return None
    try:
        return process.communicate(timeout=5)[0].decode("utf-8", "replace")
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None
