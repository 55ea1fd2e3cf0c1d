"""Read the machine's state before and after a run: clocks, temperatures, throttling, power mode, swap, a Jetson's GPU.

Readers take a root folder, so that they are tested on recorded boards. Instruction set and memory are in
`merino_runtime.io.board`, power is in `power`.

The CPU time that other processes and other guests of the host took is the difference of two readings. Clock ticks see
what runs for 10 ms or longer. A shorter burst shows in an exact counter of the kernel: the time that runnable threads
of this process waited for a core (schedstat). A fact is None if this machine lacks its source.
"""

import glob
import os
import platform
import re
import sys
import time
from contextlib import contextmanager, suppress
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import merino_runtime
from merino_bench.sensors.power import ina3221_rails, output_of
from merino_runtime.io.board import read_text

BUSY_SHARE = 0.05  # of the time: more than that changes the measurement
LEAST_WINDOW_S = 0.25  # the kernel counts CPU time in steps of 0.01 s
SWAPPED_PAGES = 256  # 1 MB
NOW_BITS, SINCE_BOOT_BITS = 0xF, 0xF0000  # Raspberry Pi: under-voltage, capped, throttled, soft limit
# Jetsons by the chip in the device tree's `compatible`: the GPU's name, and CUDA's compute capability.
CHIPS = {
    "nvidia,tegra210": ("Tegra X1 GPU (Maxwell)", "5.3"), "nvidia,tegra186": ("Tegra X2 GPU (Pascal)", "6.2"),
    "nvidia,tegra194": ("Xavier GPU (Volta)", "7.2"), "nvidia,tegra234": ("Orin GPU (Ampere)", "8.7"),
}
GPU_NODES = ("gpu", "gp10b", "gv11b", "ga10b")  # in the device tree, and so the end of the frequency device's name


class CpuMoment(NamedTuple):
    """Readings to subtract. Times in seconds; of this process where nothing else is stated."""
    clock_s: float
    busy_s: Optional[float]  # of all processes on all cores, with the time that other guests of the host took
    own_s: float
    waited_s: Optional[float]  # its threads were runnable and had no core


class Load(NamedTuple):
    """Shares from 0 to 1; None if the source is missing or the time was too short."""
    others_cpu_share: Optional[float]  # of all cores' time, that other processes and guests took
    waiting_share: Optional[float]  # of the time that this process's threads were runnable, that they had no core

    @property
    def busy(self) -> bool:
        shares = (self.others_cpu_share, self.waiting_share)
        return any(share is not None and share > BUSY_SHARE for share in shares)


def cpu_moment(root: str = "/") -> CpuMoment:
    own = os.times()
    # All cores since boot: user, nice, system, idle, iowait, irq, softirq, steal; guest time is in user's already.
    line = _find(r"^cpu +(.+)$", read_text(os.path.join(root, "proc/stat")))
    ticks = [int(word) for word in line.split()[:8]] if line else []
    texts = map(read_text, glob.glob(os.path.join(root, "proc/self/task/*/schedstat")))
    waits_ns = [int(text.split()[1]) for text in texts if text]  # a thread may end meanwhile
    return CpuMoment(
        clock_s=time.perf_counter(), own_s=own.user + own.system,
        busy_s=(sum(ticks) - sum(ticks[3:5])) / os.sysconf("SC_CLK_TCK") if ticks else None,
        waited_s=sum(waits_ns) / 1e9 if waits_ns else None)


def load_between(before: CpuMoment, after: CpuMoment, cpus: int) -> Load:
    window_s, own_s = after.clock_s - before.clock_s, after.own_s - before.own_s
    busy, waited = _grown(before.busy_s, after.busy_s), _grown(before.waited_s, after.waited_s)
    others = None if busy is None or window_s < LEAST_WINDOW_S else busy - own_s
    return Load(_share(others, window_s * cpus), None if waited is None else _share(waited, own_s + waited))


def _grown(before: Optional[float], after: Optional[float]) -> Optional[float]:
    return None if before is None or after is None else after - before


def _share(part_s: Optional[float], whole_s: float) -> Optional[float]:
    return None if part_s is None or whole_s <= 0 else round(max(0.0, part_s) / whole_s, 4)


def machine(root: str = "/") -> Dict[str, Any]:
    """Return the facts that do not change during a run."""
    model = read_text(os.path.join(root, "proc/device-tree/model")).strip("\0\n ")
    return {
        "board": model or _find(r"^model name\s*:\s*(.*\S)", read_text(os.path.join(root, "proc/cpuinfo"))),
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
    cpuinfo, meminfo, vmstat, loads = (read_text(os.path.join(root, "proc", name))
                                       for name in ("cpuinfo", "meminfo", "vmstat", "loadavg"))
    swap_kib = dict(re.findall(r"^(SwapTotal|SwapFree):\s*(\d+) kB", meminfo, re.MULTILINE))
    swapped = re.findall(r"^pswp(?:in|out) (\d+)", vmstat, re.MULTILINE)  # pages since boot
    mode, modes = power_modes(output_of("nvpmodel", "-q"), root)
    return {
        "governor": ", ".join(sorted({word for _, word in _read_all(root, clocks + "scaling_governor")})) or None,
        "clocks_mhz": [khz / 1000 for _, khz in _numbers(root, clocks + "scaling_cur_freq")]
        or [float(mhz) for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", cpuinfo, re.MULTILINE)] or None,
        "clocks_max_mhz": [khz / 1000 for _, khz in _numbers(root, clocks + "scaling_max_freq")] or None,
        "temperatures_c": temperatures_c(root),
        "cpu_cooling": cooling_level(root, ("cpu", "processor")),
        "gpu_cooling": cooling_level(root, ("gpu", "devfreq")),
        "throttle_bits": _find(r"throttled=(0x[0-9a-fA-F]+)", output_of("vcgencmd", "get_throttled")),
        "power_mode": mode, "power_modes": modes,
        "swap_used_mb": (int(swap_kib["SwapTotal"]) - int(swap_kib["SwapFree"])) / 1024 if len(swap_kib) == 2 else None,
        "swapped_pages": sum(map(int, swapped)) if swapped else None,
        "load_1m": float(loads.split()[0]) if loads else None,
        "gpu": jetson_gpu(root),
    }


def flags_of(before: Dict[str, Any], after: Dict[str, Any], load: Load) -> List[str]:
    """Return `throttled`, `busy`, `swapping` and `low-power`, if they were seen; a missing source raises no flag.
    before, after: from `state`; load: of the time between them."""
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
    if any(is_low(facts["power_mode"], facts["power_modes"]) for facts in (before, after)):
        flags.append("low-power")
    return flags


@contextmanager
def watched() -> Iterator[Dict[str, Any]]:
    """Yield a dict that gets, at the end, the state `after` and the `load` and `flags` of the time in between."""
    seen: Dict[str, Any] = {}
    began, before = cpu_moment(), state()
    yield seen
    after, ended = state(), cpu_moment()
    load = load_between(began, ended, os.cpu_count() or 1)
    seen.update(after=after, load=load, flags=flags_of(before, after, load))


def power_modes(nvpmodel: str, root: str = "/") -> Tuple[Optional[str], Optional[List[str]]]:
    """Return a Jetson's mode, such as `MAXN (0)`, and the names of all its modes.

    The mode is in what the program prints (`nvpmodel`), else in the state that it keeps; the names are in its
    configuration.
    """
    config = read_text(os.path.join(root, "etc/nvpmodel.conf"))
    names = {int(number): name
             for number, name in re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", config)}
    modes = [names[number] for number in sorted(names)] or None
    printed = re.search(r"NV Power Mode:\s*(\S+)(?:\s+(\d+)\s*$)?", nvpmodel, re.MULTILINE)
    if printed:
        return printed.group(1) + (f" ({printed.group(2)})" if printed.group(2) else ""), modes
    kept = _find(r"pmode:\s*(\d+)", read_text(os.path.join(root, "var/lib/nvpmodel/status")))
    return f"{names[int(kept)]} ({int(kept)})" if kept and int(kept) in names else None, modes


def is_low(mode: Optional[str], modes: Optional[Sequence[str]]) -> bool:
    """Return whether `mode`, such as `MAXN (0)`, is below the board's highest. If there is no mode MAXN, as on an Orin
    Nano before its Super mode, the mode of the most watts is the highest; without a list of modes only MAXN is."""
    name = (mode or "MAXN").split(" (")[0]
    if name.startswith("MAXN"):
        return False
    watts = [watts_of_mode(other) for other in modes or ()]
    return any(other.startswith("MAXN") for other in modes or ()) or not any(watts) or watts_of_mode(name) < max(watts)


def watts_of_mode(mode: str) -> float:
    """Return the watts in a power mode's name, or 0 if there are none."""
    return float(_find(r"(\d+(?:\.\d+)?)W", mode) or 0)


def jetson_gpu(root: str = "/") -> Optional[Dict[str, Any]]:
    """Return the facts about a Jetson's GPU; None if there is none. Its power is that of the rail that supplies it:
    alone, or on Orin Nano with the CPU."""
    # 1. The chip, and the frequency device: clocks in Hz, `load` in tenths of a percent.
    chips = read_text(os.path.join(root, "proc/device-tree/compatible")).split("\0")
    name, capability = next((CHIPS[chip] for chip in chips if chip in CHIPS), (None, None))
    device = next((folder for folder in sorted(glob.glob(os.path.join(root, "sys/class/devfreq/*")))
                   if read_text(os.path.join(folder, "device/of_node/name")).strip("\0\n") in GPU_NODES
                   or folder.endswith(tuple("." + node for node in GPU_NODES))), os.path.join(root, "absent"))
    numbers = [read_text(os.path.join(device, file)).strip() for file in ("cur_freq", "max_freq", "device/load")]
    clock, highest, load = (int(text) if text.isdigit() else None for text in numbers)
    if name is None and clock is None:
        return None
    # 2. The rail.
    rails = {}
    for rail, watts in ina3221_rails(root).items():
        with suppress(OSError, ValueError):
            rails[rail] = watts()
    own = next((rail for rail in sorted(rails, key=len) if "GPU" in rail.upper()), None)
    return {
        "name": name, "compute_capability": capability, "clock_mhz": None if clock is None else clock / 1e6,
        "clock_max_mhz": None if highest is None else highest / 1e6,
        "load_percent": None if load is None else load / 10, "power_w": rails[own] if own else None,
        "power_rail": own}


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


def _find(pattern: str, text: str) -> Optional[str]:
    """Return the group of the first line that matches, or None."""
    match = re.search(pattern, text, re.MULTILINE)
    return match.group(1) if match else None


def _read_all(root: str, pattern: str) -> List[Tuple[str, str]]:
    """Return (its folder's name, its text) of each file that matches, in the order of the numbers in the path. Files
    that cannot be read are left out, such as those of a temperature zone that is switched off."""
    paths = glob.glob(os.path.join(root, pattern))
    paths.sort(key=lambda path: [int(number) for number in re.findall(r"\d+", path[len(root):])])
    texts = [(os.path.basename(os.path.dirname(path)), read_text(path).strip()) for path in paths]
    return [(folder, text) for folder, text in texts if text]


def _numbers(root: str, pattern: str) -> List[Tuple[str, int]]:
    """Read the files of `_read_all`, without those that hold no integer: a driver may write `<unsupported>`."""
    return [(folder, int(text)) for folder, text in _read_all(root, pattern) if re.match(r"-?\d+$", text)]
