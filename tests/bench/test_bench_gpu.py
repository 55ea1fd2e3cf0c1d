"""The GPU of both Jetsons from files of the kernel and of nvpmodel; `probe --backend tensorrt` on the stand-in."""
import json
import os

import pytest

from merino_bench.harness import worker
from merino_bench.harness.cases import Case
from merino_bench.harness.record import identity_of, record_of
from merino_bench.probe import gpu as gpu_probe
from merino_bench.probe.run import run_probe
from merino_bench.sensors import environment
from merino_bench.sensors.environment import Load
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError
from tests.sample_gpu_probe import SPEEDS, probed
from tests.tensorrt_stand_in import VERSIONS, Gpu, put_in

QUIET = Load(0.0, 0.0)
NANO_CONF = "# comment\n< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=5W >\n"
ORIN_CONF = "".join(f"< POWER_MODEL ID={number} NAME={name} >\n"
                    for number, name in enumerate(("15W", "25W", "MAXN_SUPER", "7W")))


def write(root, path, text):
    path = os.path.join(str(root), path)
    if not os.path.isdir(os.path.dirname(path)):
        os.makedirs(os.path.dirname(path))
    with open(path, "w") as file:
        file.write(f"{text}\n")


@pytest.fixture
def nano(tmp_path):
    """JetPack 4."""
    write(tmp_path, "proc/device-tree/compatible", "nvidia,p3449-0000-b00\0nvidia,jetson-nano\0nvidia,tegra210\0")
    clock = "sys/class/devfreq/57000000.gpu/"
    write(tmp_path, clock + "cur_freq", 921600000)
    write(tmp_path, clock + "max_freq", 921600000)
    write(tmp_path, clock + "device/load", 634)
    rails = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/"
    for number, (name, milliwatts) in enumerate((("POM_5V_IN", 4412), ("POM_5V_GPU", 1206), ("POM_5V_CPU", 842))):
        write(tmp_path, rails + f"rail_name_{number}", name)
        write(tmp_path, rails + f"in_power{number}_input", milliwatts)
    write(tmp_path, "etc/nvpmodel.conf", NANO_CONF)
    write(tmp_path, "var/lib/nvpmodel/status", "pmode:0001")
    return str(tmp_path)


@pytest.fixture
def orin(tmp_path):
    """JetPack 6, with a second frequency device."""
    write(tmp_path, "proc/device-tree/compatible", "nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0")
    write(tmp_path, "sys/class/devfreq/15340000.vic/cur_freq", 115200000)
    clock = "sys/class/devfreq/17000000.gpu/"
    write(tmp_path, clock + "cur_freq", 306000000)
    write(tmp_path, clock + "max_freq", 1020000000)
    write(tmp_path, clock + "device/of_node/name", "gpu\0")
    write(tmp_path, clock + "device/load", 0)
    chip = "sys/class/hwmon/hwmon1/"
    write(tmp_path, chip + "name", "ina3221")
    for number, (name, volts, amperes) in enumerate((("VDD_IN", 5056, 1840), ("VDD_CPU_GPU_CV", 5048, 912)), 1):
        write(tmp_path, chip + f"in{number}_label", name)
        write(tmp_path, chip + f"in{number}_input", volts)
        write(tmp_path, chip + f"curr{number}_input", amperes)
    write(tmp_path, "etc/nvpmodel.conf", ORIN_CONF)
    write(tmp_path, "var/lib/nvpmodel/status", "pmode:0002")
    return str(tmp_path)


def test_files_of_a_nano(nano):
    state = environment.state(nano)
    assert state["gpu"] == {
        "name": "Tegra X1 GPU (Maxwell)", "compute_capability": "5.3", "clock_mhz": 921.6,
        "clock_max_mhz": 921.6, "load_percent": 63.4, "power_w": 1.206, "power_rail": "POM_5V_GPU"}
    assert (state["power_mode"], state["power_modes"]) == ("5W (1)", ["MAXN", "5W"])
    assert environment.flags_of(state, state, QUIET) == ["low-power"]


def test_files_of_an_orin(orin, monkeypatch):
    state = environment.state(orin)
    assert environment.flags_of(state, state, QUIET) == [] and state["power_mode"] == "MAXN_SUPER (2)"
    printed = "NV Power Mode: 25W\n1\n"  # nvpmodel's own answer stands
    monkeypatch.setattr(environment, "output_of", lambda *command: printed if command[0] == "nvpmodel" else "")
    state = environment.state(orin)
    assert state["gpu"] == {
        "name": "Orin GPU (Ampere)", "compute_capability": "8.7", "clock_mhz": 306.0,
        "clock_max_mhz": 1020.0, "load_percent": 0.0, "power_w": pytest.approx(5.048 * 0.912),
        "power_rail": "VDD_CPU_GPU_CV"}
    assert state["power_mode"] == "25W (1)" and environment.flags_of(state, state, QUIET) == ["low-power"]


@pytest.mark.parametrize("lost", ["proc", "sys/class/devfreq", "sys/bus", "etc", "var"])
def test_a_part_that_is_missing_is_none(lost, nano):
    for folder, _, names in os.walk(os.path.join(nano, lost), topdown=False):
        for name in names:
            os.remove(os.path.join(folder, name))
    state = environment.state(nano)
    result = state["gpu"]
    assert (result["name"] is None) == (lost == "proc")
    assert (result["clock_mhz"] is None) == (result["load_percent"] is None) == (lost == "sys/class/devfreq")
    assert (result["power_w"] is None) == (lost == "sys/bus")
    assert (state["power_mode"] is None) == (lost in ("etc", "var"))
    assert (state["power_modes"] is None) == (lost == "etc")


def test_a_file_without_a_number_is_no_clock(nano):
    write(nano, "sys/class/devfreq/57000000.gpu/cur_freq", "<unsupported>")
    write(nano, "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power1_input", "")
    result = environment.state(nano)["gpu"]
    assert result["clock_mhz"] is None and result["clock_max_mhz"] == 921.6 and result["power_w"] is None


def test_a_machine_without_such_a_gpu_has_none(tmp_path):
    write(tmp_path, "sys/class/devfreq/15340000.vic/cur_freq", 115200000)
    state = environment.state(str(tmp_path))
    assert (state["gpu"], state["power_mode"], state["power_modes"]) == (None, None, None)


@pytest.mark.parametrize("mode, modes, low", [
    (None, None, False), ("MAXN (0)", None, False), ("5W (1)", None, True), ("MAXN_SUPER (2)", ["15W"], False),
    ("15W (0)", ["15W", "7W"], False), ("7W (1)", ["15W", "7W"], True),  # an Orin Nano before its Super mode
    ("MODE_15W_6CORE (2)", ["MODE_15W_6CORE", "MODE_10W_2CORE"], False), ("odd (4)", ["odd"], True)])
def test_low_power(mode, modes, low):
    assert environment.is_low(mode, modes) is low


def test_a_row_of_tensorrt_names_backend_gpu_clocks_mode_and_power(nano, bundle_dirs, tmp_path, monkeypatch):
    """The benchmark's own process code, on the stand-in as its GPU and a Nano's files as its system."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    put_in(Gpu(name="NVIDIA Tegra X1"), "8.2.1.8", monkeypatch)
    read = environment.state
    monkeypatch.setattr(environment, "state", lambda: read(nano))
    case = Case("tg4", 8, 4)
    folder = str(bundle_dirs["portable"])
    measured = worker.measure(folder, case, 1, backend_name="tensorrt")
    bundle = load_bundle(folder)
    row = record_of(identity_of(folder, bundle), bundle, case, [dict(measured, turn=0, attempt=0)], read_gb_s=10.0)
    assert row["engine"] == "tensorrt 8.2.1.8 fp32 NVIDIA Tegra X1" and row["mbu"] is None
    assert row["environment"]["versions"]["tensorrt"] == "8.2.1.8" and "low-power" in row["flags"]
    for state in (row["environment"]["before"], row["environment"]["after"]):
        result = state["gpu"]
        assert (result["name"], result["clock_mhz"], result["power_w"]) == ("Tegra X1 GPU (Maxwell)", 921.6, 1.206)
        assert state["power_mode"] == "5W (1)"


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_each_chain_takes_the_devices_own_time(version, tmp_path, monkeypatch):
    path = tmp_path / "probe.json"
    result = probed(version, path, monkeypatch)
    assert json.loads(path.read_text()) == result and os.listdir(str(tmp_path)) == ["probe.json"]
    assert (result["backend"], result["dialect"], result["left_out"]) == ("tensorrt", "portable", [])
    assert result["gpu"]["name"] == "NVIDIA Stand-In X1" and result["gpu"]["compute_capability"] == "5.3"
    assert result["machine"]["versions"]["tensorrt"] == version
    chains = {(row["format"], row["rows"], row["count"], row["tokens"]): row
              for row in result["measurements"] if row["kind"] == "chain"}
    assert set(chains) == {(form, side, count, tokens) for form in gpu_probe.PRECISIONS
                           for side, count in gpu_probe.CHAINS for tokens in (1, gpu_probe.TOKENS)}
    for (form, side, count, tokens), row in chains.items():
        half = form == "fp16"
        assert row["weight_bytes"] == 4 * side * side * count // (2 if half else 1)
        plan = {"flags": ["FP16"] if half else [], "weight_bytes": 4 * side * side * count, "matmuls": count}
        truth_ms = 1e3 * (SPEEDS.run_s(plan, tokens) + SPEEDS.copy_s(4 * side))
        assert row["ms"] == pytest.approx(truth_ms, rel=1e-4, abs=2e-5) and row["repeats"] >= 3
    (memory,) = result["resident"]
    assert 0 < memory["imports_mb"] < memory["open_mb"] < memory["peak_mb"] + 1 and memory["gpu_mb"] >= 0


def test_without_a_driver_the_probe_says_so(tmp_path, monkeypatch):
    put_in(Gpu(driver=0), "10.3.0", monkeypatch)
    with pytest.raises(MerinoError, match="no NVIDIA driver"):
        run_probe(str(tmp_path / "probe.json"), backend="tensorrt")
