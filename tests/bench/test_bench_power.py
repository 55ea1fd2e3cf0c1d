"""Power sources on recorded boards, and energies of known courses of power."""
import os
import shutil
import sys
import tempfile
import time

import pytest

from merino_bench.sensors.energy import Reading, Sampler, energy_of, idle_watts, phases_j
from merino_bench.sensors.power import Source, find_source, jtop_watts, pmic_watts

# vcgencmd pmic_read_adc on a Raspberry Pi 5 at rest. HDMI has no voltage, EXT5V and BATT no current.
PMIC = """ 3V7_WL_SW_A current(0)=0.00780744A
   3V3_SYS_A current(1)=0.12199130A
   1V8_SYS_A current(2)=0.24300660A
  DDR_VDD2_A current(3)=0.02147046A
  DDR_VDDQ_A current(4)=0.00000000A
   1V1_SYS_A current(5)=0.18640260A
    0V8_SW_A current(6)=0.26935670A
  VDD_CORE_A current(7)=0.56259000A
   3V3_DAC_A current(17)=0.00000000A
   3V3_ADC_A current(18)=0.00000000A
   0V8_AON_A current(16)=0.00293040A
      HDMI_A current(22)=0.02551890A
 3V7_WL_SW_V volt(8)=3.70720000V
   3V3_SYS_V volt(9)=3.32580900V
   1V8_SYS_V volt(10)=1.80085800V
  DDR_VDD2_V volt(11)=1.11476000V
  DDR_VDDQ_V volt(12)=0.60842420V
   1V1_SYS_V volt(13)=1.10633200V
    0V8_SW_V volt(14)=0.80219700V
  VDD_CORE_V volt(15)=0.72070740V
   3V3_DAC_V volt(20)=3.31180700V
   3V3_ADC_V volt(21)=3.30966500V
   0V8_AON_V volt(19)=0.79902280V
      HDMI_V volt(23)=5.13840000V
     EXT5V_V volt(24)=5.13840000V
      BATT_V volt(25)=0.00000000V
"""
PMIC_W = (0.00780744 * 3.7072 + 0.1219913 * 3.325809 + 0.2430066 * 1.800858 + 0.02147046 * 1.11476
          + 0.1864026 * 1.106332 + 0.2693567 * 0.802197 + 0.56259 * 0.7207074 + 0.0029304 * 0.7990228
          + 0.0255189 * 5.1384)
# jtop's `power` on a Jetson Nano.
JTOP_NANO = {"rail": {"POM_5V_CPU": {"volt": 5032, "curr": 120, "power": 604, "avg": 588, "type": "I2C"},
                      "POM_5V_GPU": {"volt": 5032, "curr": 8, "power": 40, "avg": 40, "type": "I2C"}},
             "tot": {"volt": 5032, "curr": 592, "power": 2979, "avg": 2900, "name": "POM_5V_IN", "type": "I2C"}}
def write(root, folder, **files):
    path = os.path.join(str(root), folder)
    os.makedirs(path, exist_ok=True)
    for name, text in files.items():
        with open(os.path.join(path, name), "w") as file:
            file.write(f"{text}\n")


@pytest.fixture
def nano(tmp_path):
    """A Jetson Nano under JetPack 4: mW."""
    write(tmp_path, "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0", name="ina3221x", rail_name_0="POM_5V_IN",
          rail_name_1="POM_5V_GPU", rail_name_2="POM_5V_CPU", in_power0_input=2979, in_power1_input=40,
          in_power2_input=604, in_voltage0_input=5032, in_current0_input=592)
    return tmp_path


@pytest.fixture
def orin(tmp_path):
    """A Jetson Orin Nano under JetPack 6: mV and mA; channel 7 is the sum of shunt voltages, without a current."""
    write(tmp_path, "sys/class/hwmon/hwmon0", name="cpu_thermal", temp1_input=47000)
    write(tmp_path, "sys/class/hwmon/hwmon1", name="ina3221", in1_label="VDD_IN", in2_label="VDD_CPU_GPU_CV",
          in3_label="VDD_SOC", in7_label="sum of shunt voltages", in1_input=5056, in2_input=5048, in3_input=5048,
          in7_input=3, curr1_input=1040, curr2_input=184, curr3_input=272)
    return tmp_path


@pytest.fixture
def pc(tmp_path):
    """Two packages with DRAM, and what repeats them: parts of a package, the platform, the same by MMIO."""
    zones = {"intel-rapl:0": ("package-0", 1000000), "intel-rapl:0:0": ("core", 400000),
             "intel-rapl:0:1": ("dram", 200000), "intel-rapl:1": ("package-1", 500000),
             "intel-rapl:2": ("psys", 9000000), "intel-rapl-mmio:0": ("package-0", 1000000)}
    for folder, (name, energy_uj) in zones.items():
        write(tmp_path, "sys/class/powercap/" + folder, name=name, energy_uj=energy_uj,
              max_energy_range_uj=262143328850)
    write(tmp_path, "sys/class/powercap/intel-rapl", enabled=1)
    return tmp_path


def test_jetpack_4_gives_milliwatts_of_the_rail_that_carries_all(nano):
    source, _ = find_source(str(nano))
    assert (source.name, source.rail) == ("ina3221 (JetPack 4)", "POM_5V_IN")
    assert source.read() == pytest.approx(2.979) and not source.counts_joules


def test_jetpack_5_multiplies_millivolts_and_milliamperes(orin):
    source, _ = find_source(str(orin))
    assert (source.name, source.rail) == ("ina3221 (hwmon)", "VDD_IN")
    assert source.read() == pytest.approx(5.056 * 1.040)


def test_without_a_rail_that_carries_all_they_are_added_up(tmp_path):
    """A Jetson AGX Orin: two chips, one channel not connected."""
    write(tmp_path, "sys/class/hwmon/hwmon2", name="ina3221", in1_label="VDD_GPU_SOC", in2_label="VDD_CPU_CV",
          in3_label="VIN_SYS_5V0", in1_input=20000, in2_input=20000, in3_input=5000, curr1_input=200,
          curr2_input=40, curr3_input=600,
          # Current kernels: shunt voltages in in4 to in6, and the sum of the currents in curr4.
          in4_input=1, in5_input=1, in6_input=3, curr4_input=840)
    write(tmp_path, "sys/class/hwmon/hwmon3", name="ina3221", in1_label="NC", in1_input=0, curr1_input=0,
          in2_label="VDDQ_VDD2_1V8AO", in2_input=5000, curr2_input=100)
    write(tmp_path, "sys/class/hwmon/hwmon4", name="ucsi_source_psy", in1_input=20000, curr1_input=3000)  # its supply
    source, _ = find_source(str(tmp_path))
    assert source.rail == "sum of VDDQ_VDD2_1V8AO + VDD_CPU_CV + VDD_GPU_SOC + VIN_SYS_5V0"
    assert source.read() == pytest.approx(4 + 0.8 + 3 + 0.5)


def test_a_chip_that_gives_microwatts_is_read_in_microwatts(tmp_path):
    """An INA219 on a Raspberry Pi's HAT."""
    write(tmp_path, "sys/class/hwmon/hwmon1", name="ina219", in0_input=12, in1_input=5100, curr1_input=600,
          power1_input=3060000)
    source, _ = find_source(str(tmp_path))
    assert source.rail == "ina219" and source.read() == pytest.approx(3.06)


@pytest.mark.parametrize("power, expected", [
    (JTOP_NANO, (2.979, "POM_5V_IN")),
    ({"rail": {"CPU": {"power": 920}, "GPU": {"power": 310}}, "tot": {"power": 1230}}, (1.23, "sum of CPU + GPU"))])
def test_jtop_gives_milliwatts_and_the_name_of_its_total(power, expected):
    assert jtop_watts(power) == expected


@pytest.mark.parametrize("power", [{}, {"tot": None, "rail": None}])
def test_a_jtop_without_power_is_no_source(power):
    with pytest.raises(OSError, match="knows no power"):
        jtop_watts(power)


def test_the_pmics_rails_are_currents_times_voltages():
    watts, rails = pmic_watts(PMIC)
    assert watts == pytest.approx(PMIC_W) and rails == 12
    for text in ("", "VCHI initialization failed\n", "VDD_CORE_A current(7)=0.5A\n",
                 'error=1 error_msg="Command not registered"\n'):
        with pytest.raises(OSError, match="vcgencmd"):
            pmic_watts(text)


def test_rapl_counts_packages_and_their_dram_once(pc):
    source, _ = find_source(str(pc))
    assert (source.name, source.rail) == ("RAPL", "package-0 + dram + package-1") and source.counts_joules
    before = source.read()
    write(pc, "sys/class/powercap/intel-rapl:0", energy_uj=4000000)
    write(pc, "sys/class/powercap/intel-rapl:0:1", energy_uj=700000)
    write(pc, "sys/class/powercap/intel-rapl:2", energy_uj=99000000)
    assert source.read() - before == pytest.approx(3.5)


def test_rapl_goes_round(pc):
    write(pc, "sys/class/powercap/intel-rapl:0", energy_uj=262143328850 - 250000)
    source, _ = find_source(str(pc))
    before = source.read()
    write(pc, "sys/class/powercap/intel-rapl:0", energy_uj=500000)
    assert source.read() - before == pytest.approx(0.75)
    write(pc, "sys/class/powercap/intel-rapl:0", energy_uj=100000)  # once more
    assert source.read() - before == pytest.approx(0.75 + 262143.32885 - 0.4)


def test_a_counter_that_may_not_be_read_is_none_and_says_why(pc):
    """As the kernel ships it: for root alone. Where root runs this, it is asked as somebody else."""
    folder = tempfile.mkdtemp()
    try:
        shutil.copytree(str(pc / "sys"), os.path.join(folder, "sys"))
        os.chmod(folder, 0o755)
        os.chmod(os.path.join(folder, "sys/class/powercap/intel-rapl:0/energy_uj"), 0o400 if os.geteuid() == 0 else 0)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            source, why_none = find_source(folder)
        finally:
            if root:
                os.seteuid(0)
    finally:
        shutil.rmtree(folder)
    assert source is None and "RAPL: this user may not read" in why_none


def test_no_sensor_says_what_was_looked_for(tmp_path):
    source, reasons = find_source(str(tmp_path))
    assert source is None
    assert all(word in reasons for word in ("jtop", "JetPack 4", "hwmon", "vcgencmd", "RAPL"))


@pytest.mark.parametrize("reads, reason", [("", ""), (0, "POM_5V_IN reads 0 W")])
def test_a_rail_without_a_number_or_with_0_is_no_source(nano, reads, reason):
    write(nano, "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0", in_power0_input=reads)
    source, why_none = find_source(str(nano))
    assert source is None and reason in why_none


def test_a_counter_that_stands_still_gives_no_energy():
    """As in some virtual machines. A record with 0 J could not be read."""
    still = Recorded([(second, 100) for second in range(9)], counts_joules=True, interval_s=1.0)
    result = energy_of(still, None, [[1.5, 5.5]], [[5.6, 7.9]])
    assert result["prefill_j"] is None and result["decode_j"] is None


# ---- integration


class Recorded:
    """What energies are made of: a source and its readings, without the thread."""

    def __init__(self, readings, counts_joules=False, interval_s=0.5):
        self.source = Source("recorded", "VDD_IN", interval_s, lambda: 0.0, counts_joules)
        self.readings = [Reading(*values) for values in readings]

    def wait_past(self, time_s):
        pass


def ramp():
    """1 W rising to 5 W in 4 s, a reading each half second: 12 J."""
    return Recorded([(half / 2, 1 + half / 2) for half in range(9)])


def test_power_is_integrated_by_the_trapezoid_rule():
    assert phases_j(ramp(), [[0.0, 3.9999999]]) == pytest.approx(12)
    assert phases_j(ramp(), [[0.5, 1.5], [2.0, 3.5]]) == pytest.approx(2.0 + 5.625)
    assert phases_j(ramp(), [[0.25, 2.0]]) == pytest.approx(4.0 - 1.25 * 0.5 / 2)  # half of the first piece's


def test_joules_are_subtracted():
    counter = Recorded([(second, 100 + 7 * second) for second in range(9)], counts_joules=True, interval_s=1.0)
    assert phases_j(counter, [[1.5, 5.5]]) == pytest.approx(28)


def test_phases_that_the_readings_do_not_cover_have_no_energy():
    assert phases_j(ramp(), []) is None
    assert phases_j(ramp(), [[1.0, 4.5]]) is None and phases_j(ramp(), [[-1.0, 2.0]]) is None
    assert phases_j(ramp(), [[1.1, 1.2], [2.1, 2.2]]) is None  # between the readings


def test_a_sensor_that_falls_silent_gives_no_energy():
    readings = [reading for reading in ramp().readings if not 0.6 < reading.time_s < 3.4]  # 3 s without one
    assert phases_j(Recorded(readings), [[0.1, 3.9]]) is None
    assert phases_j(Recorded([reading for reading in ramp().readings if reading.time_s < 2.6]), [[0.1, 3.9]]) is None


def test_prefill_and_decode_apart_in_all_and_above_idle():
    result = energy_of(ramp(), 0.5, prefill=[[0.0, 1.5]], decode=[[1.5, 3.5]])
    assert result == {
        "source": "recorded", "rail": "VDD_IN", "interval_s": 0.5, "samples": 8, "idle_w": 0.5,
        "prefill_j": pytest.approx(2.625), "decode_j": pytest.approx(7.0),
        "prefill_net_j": pytest.approx(2.625 - 0.75), "decode_net_j": pytest.approx(6.0)}
    without = energy_of(ramp(), None, prefill=[[0.0, 1.5]], decode=[])
    assert without["prefill_j"] == pytest.approx(2.625) and without["prefill_net_j"] is None
    assert without["decode_j"] is None and without["decode_net_j"] is None


def sampled(root, seconds, change=lambda: None):
    """A real sampler on a recorded board; `change` is called after half of the time -> (energy, idle)."""
    source, _ = find_source(str(root))
    sampler = Sampler(source)
    try:
        idle_w = idle_watts(sampler, 0.5)
        start_s = time.perf_counter()
        time.sleep(seconds / 2)
        change()
        time.sleep(seconds / 2)
        end_s = time.perf_counter()
        return energy_of(sampler, idle_w, [[start_s, end_s]], []), end_s - start_s
    finally:
        sampler.close()


@pytest.mark.slow
def test_a_sensor_that_vanishes_in_the_middle_gives_none_and_no_crash(nano):
    result, _ = sampled(nano, 0.6, change=lambda: shutil.rmtree(str(nano / "sys")))
    assert result["idle_w"] == pytest.approx(2.979) and result["samples"] > 0
    assert result["prefill_j"] is None and result["prefill_net_j"] is None


def test_a_recorded_jtop_is_read_and_closed(tmp_path, monkeypatch):
    """jetson-stats cannot run here: a module of its interface, with what it says on a Nano."""
    (tmp_path / "jtop.py").write_text(
        "class jtop:\n    closed = []\n"
        "    def __init__(self, interval):\n        self.interval = interval\n"
        "    runs = True\n"
        "    def start(self):\n        pass\n    def ok(self):\n        return self.runs\n"
        "    def close(self):\n        self.closed.append(self.interval)\n"
        f"    power = {JTOP_NANO!r}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    source, reasons = find_source()
    assert (source.name, source.rail, reasons) == ("jtop", "POM_5V_IN", "")
    assert source.read() == pytest.approx(2.979)
    monkeypatch.setattr(sys.modules["jtop"].jtop, "runs", False)
    with pytest.raises(OSError, match="the service stopped"):
        source.read()
    source.close()
    assert sys.modules.pop("jtop").jtop.closed == [0.5]
