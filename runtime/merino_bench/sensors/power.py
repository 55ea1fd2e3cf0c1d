"""Find the power source of a machine: jtop, the INA3221 of Jetsons, the PMIC of the Raspberry Pi 5, RAPL, or none.

Each source has a function that takes a root folder, so that all are tested on recorded boards. A source reads the power
of the whole board if that is measured, and names the rail. `energy` integrates the readings.
"""
import glob
import os
import re
from contextlib import suppress
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from merino_bench.sensors.environment import output_of

# The rail that supplies the whole board; without one of these, the sum of all rails is taken.
TOTAL_RAILS = ("POM_5V_IN", "VDD_IN")
INA3221_CHANNELS = 3
SYSFS_INTERVAL_S, PROGRAM_INTERVAL_S = 0.1, 0.5


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
    return total["power"] / 1000, total.get("name") or f"sum of {' + '.join(sorted(jtop_rails(power)))}"


def jtop_rails(power: Any) -> Dict[str, float]:
    """Parse jtop's `power` into the watts of each rail but the total."""
    return {name: rail["power"] / 1000 for name, rail in (power.get("rail") or {}).items()}


def ina3221_source(root: str) -> Source:
    """Return the chip's rail of the whole board, or the sum of its rails."""
    rails = ina3221_rails(root)
    if not rails:
        raise OSError("ina3221: no rail in /sys, of JetPack 4 or in hwmon")
    counted: List[str] = [rail for rail in TOTAL_RAILS if rail in rails][:1] or sorted(rails)

    def read() -> float:
        return sum(_rail_watts(rails[rail]) for rail in counted)

    name = f"ina3221 ({'JetPack 4' if _jetpack4_rails(root) else 'hwmon'})"
    return Source(name, counted[0] if len(counted) == 1 else f"sum of {' + '.join(counted)}", SYSFS_INTERVAL_S, read)


def ina3221_rails(root: str) -> Dict[str, Sequence[Any]]:
    """Return the rails that either kernel shows, as arguments of `_rail_watts`; empty if there is no such chip."""
    return _jetpack4_rails(root) or _hwmon_rails(root)


def rail_watts(rails: Dict[str, Sequence[Any]]) -> Dict[str, float]:
    """Return the watts of each rail that answers."""
    watts = {}
    for rail, readings in rails.items():
        with suppress(OSError, ValueError):
            watts[rail] = _rail_watts(readings)
    return watts


def _jetpack4_rails(root: str) -> Dict[str, Sequence[Any]]:
    """Return the rails of JetPack 4: `in_power0_input` in mW beside `rail_name_0`, below the driver's folder."""
    folder = "sys/bus/i2c/drivers/ina3221x/*/iio:device*/"
    rails: Dict[str, Sequence[Any]] = {}
    for path in sorted(glob.glob(os.path.join(root, folder + "rail_name_*"))):
        number = path.rsplit("_", 1)[1]
        rails[_word(path)] = (os.path.join(os.path.dirname(path), f"in_power{number}_input"), 1e-3)
    return rails


def _hwmon_rails(root: str) -> Dict[str, Sequence[Any]]:
    """Return the rails of JetPack 5 and later: inN_input in mV, currN_input in mA, inN_label; `NC` is not connected. If
    a chip of this family has powerN_input, that is in uW. An INA3221 has 3 channels: its curr4 is the sum of the
    currents, and its in4 a shunt voltage."""
    rails: Dict[str, Sequence[Any]] = {}
    for folder in sorted(glob.glob(os.path.join(root, "sys/class/hwmon/hwmon*/"))):
        chip = _word_or_none(folder + "name")
        if not chip.startswith("ina"):
            continue
        for path in sorted(glob.glob(folder + "curr*_input")):
            number = re.findall(r"\d+", os.path.basename(path))[0]
            label = _word_or_none(f"{folder}in{number}_label") or chip
            is_sum = chip == "ina3221" and int(number) > INA3221_CHANNELS
            if is_sum or "NC" in label or not os.path.exists(f"{folder}in{number}_input"):
                continue
            if os.path.exists(f"{folder}power{number}_input"):
                rails[label] = (f"{folder}power{number}_input", 1e-6)
            else:
                rails[label] = (f"{folder}in{number}_input", 1e-3, path, 1e-3)
    return rails


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


def pmic_watts(text: Optional[str]) -> Tuple[float, int]:
    """Return (watts, number of rails), over the rails that have both a current and a voltage. Raise OSError if there is
    none."""
    readings = re.findall(r"^\s*(\S+)_([AV]) (?:current|volt)\(\d+\)=([\d.]+)[AV]\s*$", text or "", re.MULTILINE)
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
        name = _word_or_none(folder + "name")
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


def _rail_watts(readings: Sequence[Any]) -> float:
    """Return the watts of a rail. readings: a path and its factor to W, or two such pairs (volts, amperes) whose
    product is W."""
    value = 1.0
    for path, factor in zip(readings[::2], readings[1::2]):
        value *= float(_word(path)) * factor
    return value


def _uj(path: str) -> int:
    try:
        return int(_word(path))
    except PermissionError as error:
        raise OSError(f"RAPL: this user may not read {path} (root may)") from error


def _word(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read().strip()


def _word_or_none(path: str) -> str:
    try:
        return _word(path)
    except OSError:
        return ""
