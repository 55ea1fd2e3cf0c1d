"""The machine's state, read from texts and folders as boards give them."""
import pytest

from merino_bench.sensors import environment
from merino_bench.sensors.environment import Load

MEMINFO = "MemTotal: 4051232 kB\nSwapCached: 12 kB\nSwapTotal: 2025600 kB\nSwapFree: 2012288 kB\n"
X86_CPUINFO = """processor\t: 0
model name\t: AMD EPYC 7763 64-Core Processor
cpu MHz\t\t: 2445.404
processor\t: 1
model name\t: AMD EPYC 7763 64-Core Processor
cpu MHz\t\t: 3211.000
"""
PI_CPUINFO = "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd\n\nModel\t\t: Raspberry Pi 4 Model B\n"
QUIET = {"throttle_bits": None, "cpu_cooling": None, "gpu_cooling": None, "swapped_pages": None}


def write(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.fixture
def nano(tmp_path):
    """A Jetson Nano's /proc and /sys, with a tenth core to try the order."""
    write(tmp_path, "proc/device-tree/model", "NVIDIA Jetson Nano Developer Kit\0")
    write(tmp_path, "proc/loadavg", "0.52 0.40 0.31 2/391 8123\n")
    write(tmp_path, "proc/meminfo", MEMINFO)
    write(tmp_path, "proc/vmstat", "pgpgin 99\npswpin 100\npswpout 28\n")
    for core, khz in ((0, "1479000"), (2, "921600"), (10, "102000")):
        folder = f"sys/devices/system/cpu/cpu{core}/cpufreq/"
        write(tmp_path, folder + "scaling_governor", "schedutil\n")
        write(tmp_path, folder + "scaling_cur_freq", khz + "\n")
        write(tmp_path, folder + "scaling_max_freq", "1479000\n")
    for zone, name, temperature in ((0, "AO-therm", "41500"), (1, "CPU-therm", "33000"),
                                    (10, "CPU-therm", "34500"), (3, "off", "")):
        write(tmp_path, f"sys/class/thermal/thermal_zone{zone}/type", name + "\n")
        write(tmp_path, f"sys/class/thermal/thermal_zone{zone}/temp", temperature + "\n")
    for device, name, level in ((0, "pwm-fan", "3"), (1, "cpu-balanced", "0"), (2, "thermal-cpufreq-0", "2"),
                                (3, "devfreq-57000000.gpu", "1"), (4, "gpu-balanced", "0")):
        write(tmp_path, f"sys/class/thermal/cooling_device{device}/type", name + "\n")
        write(tmp_path, f"sys/class/thermal/cooling_device{device}/cur_state", level + "\n")
    return str(tmp_path)


def test_a_boards_state(nano):
    state = environment.state(nano)
    assert state["governor"] == "schedutil" and state["load_1m"] == 0.52
    assert state["clocks_mhz"] == [1479.0, 921.6, 102.0] and state["clocks_max_mhz"] == [1479.0] * 3
    assert state["temperatures_c"] == {"AO-therm": 41.5, "CPU-therm": 33.0, "CPU-therm thermal_zone10": 34.5}
    assert state["cpu_cooling"] == 2 and state["gpu_cooling"] == 1  # not the fan's 3
    assert state["swap_used_mb"] == 13.0 and state["swapped_pages"] == 128
    assert environment.machine(nano)["board"] == "NVIDIA Jetson Nano Developer Kit"


def test_what_is_missing_is_none(tmp_path):
    state = environment.state(str(tmp_path))
    sources = set(state) - {"throttle_bits", "power_mode"}  # of programs that may be here
    assert {name: state[name] for name in sources} == dict.fromkeys(sources)
    assert environment.machine(str(tmp_path))["board"] is None


def test_a_file_without_a_number_is_no_clock(tmp_path):
    write(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "<unsupported>\n")
    write(tmp_path, "proc/cpuinfo", X86_CPUINFO)
    assert environment.state(str(tmp_path))["clocks_mhz"] == [2445.404, 3211.0]


def test_models():
    assert environment.board_model("Raspberry Pi 5 Model B Rev 1.0\0") == "Raspberry Pi 5 Model B Rev 1.0"
    assert environment.board_model("\0") is None and environment.board_model(None) is None
    assert environment.cpu_model(X86_CPUINFO) == "AMD EPYC 7763 64-Core Processor"
    assert environment.cpu_model(PI_CPUINFO) is None  # "Model" is the board
    assert environment.cpuinfo_clocks_mhz(PI_CPUINFO) is None


@pytest.mark.parametrize("text, mode", [
    ("NV Power Mode: MAXN\n0\n", "MAXN (0)"), ("NV Fan Mode:quiet\nNV Power Mode: MODE_15W_6CORE\n2\n",
                                              "MODE_15W_6CORE (2)"),
    ("NVPM WARN: fan mode is not set!\nNV Power Mode: 25W\n1\n", "25W (1)"), ("NV Power Mode: 5W", "5W"),
    ("", None), (None, None), ("nvpmodel: command failed", None)])
def test_jetson_power_modes(text, mode):
    assert environment.power_mode(text) == mode


@pytest.mark.parametrize("text, bits", [
    ("throttled=0x0\n", "0x0"), ("throttled=0x50005\n", "0x50005"), ("VCHI initialization failed\n", None),
    (None, None)])
def test_raspberry_throttle_bits(text, bits):
    assert environment.throttle_bits(text) == bits


def test_swap_needs_both_lines():
    assert environment.swap_used_mb("SwapTotal: 100 kB\n") is None
    assert environment.swapped_pages("pgpgin 5\n") is None


def changed(**values):
    return dict(QUIET, **values)


@pytest.mark.parametrize("before, after, share, flags", [
    (QUIET, QUIET, None, []),
    (changed(throttle_bits="0x0"), changed(throttle_bits="0x0"), 0.01, []),
    (changed(throttle_bits="0x50000"), changed(throttle_bits="0x50000"), 0.0, []),  # long ago
    (changed(throttle_bits="0x0"), changed(throttle_bits="0x80000"), 0.0, ["throttled"]),  # in between
    (changed(throttle_bits="0x4"), changed(throttle_bits="0x0"), 0.0, ["throttled"]),
    (changed(throttle_bits="0x50000"), changed(throttle_bits="0x50005"), 0.0, ["throttled"]),
    (changed(cpu_cooling=0), changed(cpu_cooling=2), 0.0, ["throttled"]),
    (changed(gpu_cooling=0), changed(gpu_cooling=1), 0.0, ["throttled"]),
    (changed(cpu_cooling=-1), changed(cpu_cooling=-1), 0.0, []),  # a driver that is off
    (QUIET, QUIET, 0.051, ["busy"]), (QUIET, QUIET, 0.05, []),
    (changed(swapped_pages=1000), changed(swapped_pages=1257), 0.0, ["swapping"]),
    (changed(swapped_pages=1000), changed(swapped_pages=1256), 0.0, []),
    (changed(cpu_cooling=1, swapped_pages=0), changed(swapped_pages=9999), 0.5,
     ["throttled", "busy", "swapping"])])
def test_flags(before, after, share, flags):
    assert environment.flags_of(before, after, Load(share, None, None, None)) == flags
