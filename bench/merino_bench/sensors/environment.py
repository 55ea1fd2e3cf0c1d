"""The machine's state before and after a run: clocks, temperatures, throttling, swap.

A source that this machine lacks gives None. Parsers take text and readers take a root folder, so that both are tested
on recorded boards. Instruction set and memory are in `merino_runtime.io.board`, power is in `power`, the load of the
CPU in `load`.
"""
import glob
import os
import platform
import re
import subprocess
import sys
from typing import Any, Dict, List, Optional, Tuple

import merino_runtime
from merino_bench.sensors.load import Load

SWAPPED_PAGES = 256  # 1 MB
NOW_BITS, SINCE_BOOT_BITS = 0xF, 0xF0000  # Raspberry Pi: under-voltage, capped, throttled, soft limit


def machine(root: str = "/") -> Dict[str, Any]:
    """Facts that do not change during a run."""
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
    """Facts that may change, so they are taken before and after a run."""
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
    """`throttled`, `busy` and `swapping`, each where it was seen; a missing source raises no flag. before, after: of
    `state`; load: of the time between them."""
    flags = []
    bits_before, bits_after = (int(one["throttle_bits"] or "0", 16) for one in (before, after))
    newly = bits_after & ~bits_before & SINCE_BOOT_BITS
    cooled = any((one[unit] or 0) > 0 for one in (before, after) for unit in ("cpu_cooling", "gpu_cooling"))
    if (bits_before | bits_after) & NOW_BITS or newly or cooled:
        flags.append("throttled")
    if load.busy:
        flags.append("busy")
    pages = [one["swapped_pages"] for one in (before, after)]
    if None not in pages and pages[1] - pages[0] > SWAPPED_PAGES:
        flags.append("swapping")
    return flags


def board_model(device_tree: Optional[str]) -> Optional[str]:
    return (device_tree or "").strip("\0\n ") or None


def cpu_model(cpuinfo: Optional[str]) -> Optional[str]:
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo or "", re.MULTILINE)
    return found.group(1).strip() if found else None


def cpuinfo_clocks_mhz(cpuinfo: Optional[str]) -> Optional[List[float]]:
    found = re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", cpuinfo or "", re.MULTILINE)
    return [float(mhz) for mhz in found] or None


def throttle_bits(vcgencmd: Optional[str]) -> Optional[str]:
    """"throttled=0x50000" -> "0x50000"."""
    found = re.search(r"throttled=(0x[0-9a-fA-F]+)", vcgencmd or "")
    return found.group(1) if found else None


def power_mode(nvpmodel: Optional[str]) -> Optional[str]:
    """The name and, in parentheses, the number that `nvpmodel -m` takes."""
    found = re.search(r"NV Power Mode:\s*(\S+)(?:\s+(\d+)\s*$)?", nvpmodel or "", re.MULTILINE)
    if not found:
        return None
    return f"{found.group(1)} ({found.group(2)})" if found.group(2) else found.group(1)


def swap_used_mb(meminfo: Optional[str]) -> Optional[float]:
    kib = dict(re.findall(r"^(SwapTotal|SwapFree):\s*(\d+) kB", meminfo or "", re.MULTILINE))
    return (int(kib["SwapTotal"]) - int(kib["SwapFree"])) / 1024 if len(kib) == 2 else None


def swapped_pages(vmstat: Optional[str]) -> Optional[int]:
    """Pages swapped in and out since boot."""
    found = re.findall(r"^pswp(?:in|out) (\d+)", vmstat or "", re.MULTILINE)
    return sum(map(int, found)) if found else None


def temperatures_c(root: str = "/") -> Optional[Dict[str, float]]:
    """Degrees Celsius by the zone's name; a second zone of one name has its folder's name added."""
    found: Dict[str, float] = {}
    zones = "sys/class/thermal/thermal_zone*/"
    names = dict(_read_all(root, zones + "type"))
    for folder, millidegrees in _numbers(root, zones + "temp"):
        name = names.get(folder, folder)
        found[name if name not in found else f"{name} {folder}"] = millidegrees / 1000
    return found or None


def cooling_level(root: str, words: Tuple[str, ...]) -> Optional[int]:
    """The highest level of the kernel's throttling devices whose type has one of the words, 0: not throttled. A GPU's
    are called `devfreq-17000000.ga10b`, `thermal-devfreq-0` or `gpu-balanced`, by kernel."""
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
    """(its folder's name, its text) of each file that matches, in the order of the numbers in the path. Files that
    cannot be read are left out, as those of a temperature zone that is switched off."""
    paths = glob.glob(os.path.join(root, pattern))
    paths.sort(key=lambda path: [int(number) for number in re.findall(r"\d+", path[len(root):])])
    texts = [(os.path.basename(os.path.dirname(path)), (_read("", path) or "").strip()) for path in paths]
    return [(folder, text) for folder, text in texts if text]


def _numbers(root: str, pattern: str) -> List[Tuple[str, int]]:
    """As `_read_all`, without what is no whole number: a driver may write `<unsupported>`."""
    return [(folder, int(text)) for folder, text in _read_all(root, pattern) if re.match(r"-?\d+$", text)]


def output_of(*command: str) -> Optional[str]:
    """A program's stdout; None where there is none or it hangs."""
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
