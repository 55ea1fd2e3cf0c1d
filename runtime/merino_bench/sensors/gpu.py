"""Read the GPU of a Jetson and the board's power mode, before and after a run.

From the files of the kernel and of nvpmodel. A fact that this machine lacks is None; a machine without a GPU of this
kind has no facts.
"""
import glob
import os
import re
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from merino_bench.sensors.power import ina3221_rails, rail_watts
from merino_runtime.io.board import read_text

# By the chip in the device tree's `compatible`: name, and CUDA's compute capability.
CHIPS = {
    "nvidia,tegra210": ("Tegra X1 GPU (Maxwell)", "5.3"), "nvidia,tegra186": ("Tegra X2 GPU (Pascal)", "6.2"),
    "nvidia,tegra194": ("Xavier GPU (Volta)", "7.2"), "nvidia,tegra234": ("Orin GPU (Ampere)", "8.7"),
}
NODES = ("gpu", "gp10b", "gv11b", "ga10b")  # of the GPU in the device tree, and so the end of its folder's name
HZ_PER_MHZ = 1e6


def with_gpu(state: Dict[str, Any], root: str = "/") -> Dict[str, Any]:
    """Return the state of `environment`, with `gpu`: {source, name, compute_capability, clock_mhz, clock_max_mhz,
    load_percent, power_w, power_rail} or None; with `power_modes`, the names of all; and with `power_mode` if nvpmodel
    itself did not report it."""
    name, capability = gpu_name(root)
    readings = file_facts(root)
    mode, modes = readings.pop("mode"), readings.pop("modes")
    known = name is not None or readings["clock_mhz"] is not None
    facts = dict({"source": readings.pop("source"), "name": name, "compute_capability": capability}, **readings)
    return dict(state, gpu=facts if known else None, power_mode=state.get("power_mode") or mode, power_modes=modes)


def mode_flags(before: Mapping[str, Any], after: Mapping[str, Any]) -> List[str]:
    """Return `low-power` if the board's mode was below its highest. before, after: from `with_gpu`."""
    low = any(is_low(state.get("power_mode"), state.get("power_modes")) for state in (before, after))
    return ["low-power"] if low else []


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
    match = re.search(r"(\d+(?:\.\d+)?)W", mode)
    return float(match.group(1)) if match else 0.0


def gpu_name(root: str = "/") -> Tuple[Optional[str], Optional[str]]:
    """Return (name, compute capability), or Nones if the chip is not a known one."""
    chips = read_text(os.path.join(root, "proc/device-tree/compatible")).split("\0")
    return next((CHIPS[chip] for chip in chips if chip in CHIPS), (None, None))


def gpu_rail(rails: Mapping[str, float]) -> Optional[str]:
    """Return the rail that supplies the GPU: alone, or on Orin Nano with the CPU."""
    return next((rail for rail in sorted(rails, key=len) if "GPU" in rail.upper()), None)


def file_facts(root: str = "/") -> Dict[str, Any]:
    """Return the facts from files: a frequency device in Hz, `load` in tenths of a percent, the INA3221,
    nvpmodel's files."""
    folder = next((path for path in sorted(glob.glob(os.path.join(root, "sys/class/devfreq/*")))
                   if read_text(os.path.join(path, "device/of_node/name")).strip("\0\n") in NODES
                   or path.endswith(tuple("." + node for node in NODES))), "")
    clock, highest, load = (_number(os.path.join(folder, name)) if folder else None
                            for name in ("cur_freq", "max_freq", "device/load"))
    rails = rail_watts(ina3221_rails(root))
    rail = gpu_rail(rails)
    mode, modes = nvpmodel_files(root)
    return {
        "source": "files", "clock_mhz": _scaled(clock, HZ_PER_MHZ), "clock_max_mhz": _scaled(highest, HZ_PER_MHZ),
        "load_percent": _scaled(load, 10),
        "power_w": rails[rail] if rail else None, "power_rail": rail, "mode": mode, "modes": modes}


def nvpmodel_files(root: str = "/") -> Tuple[Optional[str], Optional[List[str]]]:
    """Return (`MAXN (0)`, names of all modes) from the state that nvpmodel keeps, and from its configuration."""
    names = {int(number): name for number, name in re.findall(
        r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", read_text(os.path.join(root, "etc/nvpmodel.conf")))}
    chosen = re.search(r"pmode:\s*(\d+)", read_text(os.path.join(root, "var/lib/nvpmodel/status")))
    number = int(chosen.group(1)) if chosen else None
    mode = f"{names[number]} ({number})" if number in names else None
    return mode, [names[mode_id] for mode_id in sorted(names)] or None


def _scaled(value: Optional[float], divisor: float) -> Optional[float]:
    return None if value is None else value / divisor


def _number(path: str) -> Optional[int]:
    text = read_text(path).strip()
    return int(text) if re.match(r"\d+$", text) else None
