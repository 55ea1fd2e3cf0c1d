"""Find the power source of a machine: jtop, the INA3221 of Jetsons, the PMIC of the Raspberry Pi 5, RAPL, or none.

Each source has a function that takes a root folder, so that all are tested on recorded boards. A source reads the power
of the whole board if that is measured, and names the rail. `energy` integrates the readings.
"""
import glob
import os
import re
import subprocess
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from merino_runtime.io.board import read_text

# The rail that supplies the whole board; without one of these, the sum of all rails is taken.
TOTAL_RAILS = ("POM_5V_IN", "VDD_IN")
INA3221_CHANNELS = 3
SYSFS_INTERVAL_S, PROGRAM_INTERVAL_S = 0.1, 0.5
Rails = Dict[str, Callable[[], float]]  # by the rail's name a function that reads its watts, as `Source.read` does


class Source(NamedTuple):
    """`read` gives watts, or joules since some time where `counts_joules`; it raises OSError or ValueError when
    the sensor does not answer."""
    name: str
    rail: str
    interval_s: float
    read: Callable[[], float]
    counts_joules: bool = False
    close: Callable[[], None] = lambda: None


def find_source(root: str = "/") -> Tuple[Optional[Source], str]:
    """Return the first source that answers, and why the ones before it do not."""
    reasons: List[str] = []
    for find in (jtop_source, ina3221_source, pmic_source, rapl_source):
        source = None
        try:
            source = find(root)
            watts = source.read()
            if not (watts > 0 or source.counts_joules):
                raise ValueError(f"{source.name}: {source.rail} reads {watts:g} W")
            return source, "; ".join(reasons)
        except (OSError, ValueError) as error:
            reasons.append(str(error))
            if source is not None:
                source.close()
    return None, "; ".join(reasons)


def jtop_source(root: str) -> Source:
    """Return the source of jetson-stats, if it is installed and its service runs. It is AGPL, so it is imported and
    never shipped. `power` is the reading in mW; its `avg` is not a mean. The service sets the interval."""
    if root != "/":
        raise OSError("jtop: a recorded board has no service")
    try:
        from jtop import jtop
    except ImportError as error:
        raise OSError("jtop: not installed") from error
    client: Any = jtop(interval=PROGRAM_INTERVAL_S)
    try:
        client.start()
    except Exception as error:  # JtopException has no base of its own, and the service may be missing
        raise OSError(f"jtop: {error}") from error

    def read() -> float:
        if not client.ok():  # waits for the next reading
            raise OSError("jtop: the service stopped")
        return jtop_watts(client.power)[0]

    return Source("jtop", jtop_watts(client.power)[1], PROGRAM_INTERVAL_S, read, close=client.close)


def jtop_watts(power: Any) -> Tuple[float, str]:
    """Parse the `power` of jtop 4.x into (watts, rail). The total has a rail's name if the board measures it, else it
    is a sum."""
    total = power.get("tot") or {}
    if total.get("power") is None:
        raise OSError("jtop: it knows no power on this board")
    return total["power"] / 1000, total.get("name") or f"sum of {' + '.join(sorted(power.get('rail') or ()))}"


def ina3221_source(root: str) -> Source:
    """Return the chip's rail of the whole board, or the sum of its rails."""
    rails = ina3221_rails(root)
    if not rails:
        raise OSError("ina3221: no rail in /sys, of JetPack 4 or in hwmon")
    counted = [rail for rail in TOTAL_RAILS if rail in rails][:1] or sorted(rails)
    name = f"ina3221 ({'JetPack 4' if _jetpack4_rails(root) else 'hwmon'})"
    return Source(name, counted[0] if len(counted) == 1 else f"sum of {' + '.join(counted)}", SYSFS_INTERVAL_S,
                  lambda: sum(rails[rail]() for rail in counted))


def ina3221_rails(root: str) -> Rails:
    """Return the rails that either kernel shows; empty if there is no such chip."""
    return _jetpack4_rails(root) or _hwmon_rails(root)


def _jetpack4_rails(root: str) -> Rails:
    """Return the rails of JetPack 4: `in_power0_input` in mW beside `rail_name_0`, below the driver's folder."""
    names = sorted(glob.glob(os.path.join(root, "sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_*")))
    return {_word(path): _product((path.replace("rail_name_", "in_power") + "_input", 1e-3)) for path in names}


def _hwmon_rails(root: str) -> Rails:
    """Return the rails of JetPack 5 and later: inN_input in mV, currN_input in mA, inN_label; `NC` is not connected. If
    a chip of this family has powerN_input, that is in uW. An INA3221 has 3 channels: its curr4 is the sum of the
    currents, and its in4 a shunt voltage."""
    rails: Rails = {}
    for folder in sorted(glob.glob(os.path.join(root, "sys/class/hwmon/hwmon*/"))):
        chip = read_text(folder + "name").strip()
        if not chip.startswith("ina"):
            continue
        for path in sorted(glob.glob(folder + "curr*_input")):
            number = re.findall(r"\d+", os.path.basename(path))[0]
            volts, power = (f"{folder}{kind}{number}_input" for kind in ("in", "power"))
            label = read_text(f"{folder}in{number}_label").strip() or chip
            is_sum = chip == "ina3221" and int(number) > INA3221_CHANNELS
            if not is_sum and "NC" not in label and os.path.exists(volts):
                in_microwatts = os.path.exists(power)
                rails[label] = _product((power, 1e-6)) if in_microwatts else _product((volts, 1e-3), (path, 1e-3))
    return rails


def _product(*factors: Tuple[str, float]) -> Callable[[], float]:
    """Return a function that multiplies the numbers in files, each scaled: a power, or volts and amperes."""
    def read() -> float:
        value = 1.0
        for path, scale in factors:
            value *= float(_word(path)) * scale
        return value
    return read


def pmic_source(root: str) -> Source:
    """Return the source of the Raspberry Pi 5: an estimate, because the PMIC measures its own rails and not the current
    that USB and HATs draw from 5 V."""
    if root != "/":
        raise OSError("vcgencmd: a recorded board has no firmware")

    def read() -> float:
        return pmic_watts(output_of("vcgencmd", "pmic_read_adc"))[0]

    count = pmic_watts(output_of("vcgencmd", "pmic_read_adc"))[1]
    return Source("vcgencmd pmic_read_adc", f"sum of {count} PMIC rails: an estimate, without the 5 V of USB and HATs",
                  PROGRAM_INTERVAL_S, read)


def pmic_watts(text: str) -> Tuple[float, int]:
    """Return (watts, number of rails), over the rails that have both a current and a voltage. Raise OSError if there is
    none."""
    readings = re.findall(r"^\s*(\S+)_([AV]) (?:current|volt)\(\d+\)=([\d.]+)[AV]\s*$", text, re.MULTILINE)
    values = {(rail, kind): float(value) for rail, kind, value in readings}
    rails = [rail for rail, kind in values if kind == "A" and (rail, "V") in values]
    if not rails:
        raise OSError("vcgencmd: no pmic_read_adc (Raspberry Pi 5 alone has one)")
    return sum(values[rail, "A"] * values[rail, "V"] for rail in rails), len(rails)


def rapl_source(root: str) -> Source:
    """Return the energy counters of the packages and their DRAM, in uJ, which wrap at max_energy_range_uj. `psys` and
    the zones inside a package would count the same energy twice."""
    zones = []
    for folder in sorted(glob.glob(os.path.join(root, "sys/class/powercap/intel-rapl:*/"))):
        name = read_text(folder + "name").strip()
        if re.match(r"package-\d+$", name) or name == "dram":
            zones.append((name, folder + "energy_uj", int(_word(folder + "max_energy_range_uj"))))
    if not zones:
        raise OSError("RAPL: no package in /sys/class/powercap")
    last_uj = [_uj(path) for _, path, _ in zones]  # raises where this user may not read
    total_uj = [0]

    def read() -> float:
        for index, (_, path, range_uj) in enumerate(zones):
            now_uj = _uj(path)
            total_uj[0] += now_uj - last_uj[index] + (range_uj if now_uj < last_uj[index] else 0)
            last_uj[index] = now_uj
        return total_uj[0] / 1e6

    return Source("RAPL", " + ".join(name for name, _, _ in zones), SYSFS_INTERVAL_S, read, counts_joules=True)


def _uj(path: str) -> int:
    try:
        return int(_word(path))
    except PermissionError as error:
        raise OSError(f"RAPL: this user may not read {path} (root may)") from error


def _word(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read().strip()


def output_of(*command: str) -> str:
    """Return a program's stdout; empty if there is no such program or it hangs."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no such program, no memory to start one, or it hangs
        return ""
    return done.stdout.decode("utf-8", "replace")
