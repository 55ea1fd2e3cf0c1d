"""The machine's state, read from texts and folders as boards give them.

What others took of the CPU: shares from known readings, and real neighbors, of long and of short bursts.
"""
import os
import subprocess
import sys
import time

import pytest

from merino_bench.sensors import environment
from merino_bench.sensors.environment import CpuMoment, Load, cpu_moment, load_between

MEMINFO = "MemTotal: 4051232 kB\nSwapCached: 12 kB\nSwapTotal: 2025600 kB\nSwapFree: 2012288 kB\n"
X86_CPUINFO = """processor\t: 0
model name\t: AMD EPYC 7763 64-Core Processor
cpu MHz\t\t: 2445.404
processor\t: 1
model name\t: AMD EPYC 7763 64-Core Processor
cpu MHz\t\t: 3211.000
"""
PI_CPUINFO = "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd\n\nModel\t\t: Raspberry Pi 4 Model B\n"
QUIET = {"throttle_bits": None, "cpu_cooling": None, "gpu_cooling": None, "swapped_pages": None,
         "power_mode": None, "power_modes": None}


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


@pytest.mark.parametrize("device_tree, cpuinfo, model", [
    ("Raspberry Pi 5 Model B Rev 1.0\0", X86_CPUINFO, "Raspberry Pi 5 Model B Rev 1.0"),
    ("\0", X86_CPUINFO, "AMD EPYC 7763 64-Core Processor"), ("\0", PI_CPUINFO, None)])  # "Model" is the board
def test_models(device_tree, cpuinfo, model, tmp_path):
    write(tmp_path, "proc/device-tree/model", device_tree)
    write(tmp_path, "proc/cpuinfo", cpuinfo)
    assert environment.machine(str(tmp_path))["board"] == model
    assert (environment.state(str(tmp_path))["clocks_mhz"] is None) == (cpuinfo == PI_CPUINFO)


@pytest.mark.parametrize("text, mode", [
    ("NV Power Mode: MAXN\n0\n", "MAXN (0)"), ("NV Fan Mode:quiet\nNV Power Mode: MODE_15W_6CORE\n2\n",
                                              "MODE_15W_6CORE (2)"),
    ("NVPM WARN: fan mode is not set!\nNV Power Mode: 25W\n1\n", "25W (1)"), ("NV Power Mode: 5W", "5W"),
    ("", None), ("nvpmodel: command failed", None)])
def test_jetson_power_modes(text, mode, tmp_path):
    assert environment.power_modes(text, str(tmp_path)) == (mode, None)


@pytest.mark.parametrize("text, bits", [
    ("throttled=0x0\n", "0x0"), ("throttled=0x50005\n", "0x50005"), ("VCHI initialization failed\n", None),
    ("", None)])
def test_raspberry_throttle_bits(text, bits, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "output_of", lambda *command: text if command[0] == "vcgencmd" else "")
    assert environment.state(str(tmp_path))["throttle_bits"] == bits


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
    assert environment.flags_of(before, after, Load(share, None)) == flags


STAT = """cpu  1000 50 300 8000 200 7 13 30 400 5
cpu0 500 25 150 4000 100 3 6 15 200 2
intr 12345
"""
BEFORE = CpuMoment(clock_s=10.0, busy_s=500.0, own_s=3.0, waited_s=1.0)


def later(seconds, **grown):
    """The readings after so many seconds."""
    changed = {name: getattr(BEFORE, name) + more for name, more in grown.items()}
    return BEFORE._replace(clock_s=BEFORE.clock_s + seconds, **changed)


def test_cpu_time_is_all_but_idle_waiting_and_guests(tmp_path):
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    write(tmp_path, "proc/stat", STAT)
    assert cpu_moment(str(tmp_path)).busy_s == (1000 + 50 + 300 + 7 + 13 + 30) / ticks_per_s
    write(tmp_path, "proc/stat", "intr 5\n")
    assert cpu_moment(str(tmp_path)).busy_s is None


def test_shares_are_of_all_cores_and_of_our_threads():
    load = load_between(BEFORE, later(2.0, busy_s=5.0, own_s=3.0, waited_s=1.0), cpus=4)
    assert load == Load(0.25, 0.25)  # 2 of 8 s, 1 of 3 + 1 s
    assert load_between(BEFORE, later(2.0, busy_s=2.0, own_s=3.0), 4).others_cpu_share == 0.0  # rounding of ticks


def test_ticks_say_nothing_of_a_short_time_and_a_missing_source_is_none():
    short = load_between(BEFORE, later(0.2, busy_s=0.4, own_s=0.2, waited_s=0.05), cpus=4)
    assert short.others_cpu_share is None
    assert short.waiting_share == 0.2 and short.busy  # exact, however short
    blind = BEFORE._replace(busy_s=None, waited_s=None)
    assert load_between(blind, later(2.0), 4) == Load(None, None)
    assert not load_between(blind, later(2.0), 4).busy


def test_a_machine_without_proc_has_no_readings(tmp_path):
    result = cpu_moment(str(tmp_path))
    assert result.busy_s is None and result.waited_s is None and result.own_s > 0


@pytest.mark.slow
@pytest.mark.skipif(cpu_moment().busy_s is None, reason="no /proc/stat")
def test_another_process_is_seen_and_our_own_work_is_not():
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        before = cpu_moment()
        time.sleep(1)
        with_burner = load_between(before, cpu_moment(), cpus=1).others_cpu_share
    finally:
        burner.kill()
        burner.wait()
    assert with_burner > 0.2  # of one core
    before, end = cpu_moment(), time.process_time() + 0.5  # of its own time, however long a busy machine takes for it
    while time.process_time() < end:
        pass
    after = cpu_moment()
    assert after.own_s - before.own_s > 0.2
    others_s = load_between(before, after, 1).others_cpu_share * (after.clock_s - before.clock_s)
    assert others_s < after.busy_s - before.busy_s - 0.2
