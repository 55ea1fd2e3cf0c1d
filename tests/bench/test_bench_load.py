"""What others took of the CPU: shares from known readings, and real neighbors, of long and of short bursts."""
import os
import subprocess
import sys
import time

import pytest

from merino_bench.sensors.environment import CpuMoment, Load, busy_s, cpu_moment, load_between, stolen_s, waited_s

STAT = """cpu  1000 50 300 8000 200 7 13 30 400 5
cpu0 500 25 150 4000 100 3 6 15 200 2
intr 12345
"""
BEFORE = CpuMoment(clock_s=10.0, busy_s=500.0, stolen_s=7.0, own_s=3.0, waited_s=1.0, preemptions=100)
BURSTS = """
import time
while True:
    end = time.perf_counter() + 0.003
    while time.perf_counter() < end:
        pass
    time.sleep(0.009)
"""


def later(seconds, **grown):
    """The readings after so many seconds."""
    changed = {name: getattr(BEFORE, name) + more for name, more in grown.items()}
    return BEFORE._replace(clock_s=BEFORE.clock_s + seconds, **changed)


def test_cpu_time_is_all_but_idle_waiting_and_guests():
    assert busy_s(STAT, ticks_per_s=100) == (1000 + 50 + 300 + 7 + 13 + 30) / 100
    assert stolen_s(STAT, ticks_per_s=100) == 0.3
    for text in ("intr 5\n", None):
        assert busy_s(text) is None and stolen_s(text) is None


def test_shares_are_of_all_cores_and_of_our_threads():
    load = load_between(BEFORE, later(2.0, busy_s=5.0, own_s=3.0, stolen_s=0.4, waited_s=1.0, preemptions=30), cpus=4)
    assert load == Load(0.25, 0.05, 0.25, 15.0)  # 2 of 8 s, 0.4 of 8 s, 1 of 3 + 1 s, 30 in 2 s
    assert load_between(BEFORE, later(2.0, busy_s=2.0, own_s=3.0), 4).others_cpu_share == 0.0  # rounding of ticks


def test_ticks_say_nothing_of_a_short_time_and_a_missing_source_is_none():
    short = load_between(BEFORE, later(0.2, busy_s=0.4, own_s=0.2, waited_s=0.05), cpus=4)
    assert short.others_cpu_share is None and short.steal_share is None
    assert short.waiting_share == 0.2 and short.busy  # exact, however short
    blind = BEFORE._replace(busy_s=None, stolen_s=None, waited_s=None, preemptions=None)
    assert load_between(blind, later(2.0), 4) == Load(None, None, None, None)
    assert not load_between(blind, later(2.0), 4).busy


def test_a_machine_without_proc_has_no_readings(tmp_path):
    result = cpu_moment(str(tmp_path))
    assert result.busy_s is None and result.stolen_s is None and result.waited_s is None and result.own_s > 0


@pytest.mark.parametrize("others, waiting, busy", [
    (0.05, 0.05, False), (0.051, 0.0, True), (0.0, 0.051, True), (None, 0.2, True), (None, None, False)])
def test_busy_is_more_than_a_twentieth_of_the_time(others, waiting, busy):
    assert Load(others, 0.0, waiting, 0.0).busy == busy


def busy_loop(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


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
    before = cpu_moment()
    busy_loop(1)
    after = cpu_moment()
    assert after.own_s - before.own_s > 0.2
    assert load_between(before, after, 1).others_cpu_share < after.busy_s - before.busy_s - 0.2


@pytest.mark.slow
@pytest.mark.skipif(waited_s() is None, reason="the kernel does not count waits")
def test_bursts_shorter_than_a_clock_tick_are_seen():
    """A neighbor on our own core that runs for 3 ms of every 12. A tenth of a second is ten ticks, too few to tell."""
    before_affinity = os.sched_getaffinity(0)
    core = {min(before_affinity)}
    neighbor = subprocess.Popen([sys.executable, "-c", BURSTS])
    try:
        os.sched_setaffinity(neighbor.pid, core)
        os.sched_setaffinity(0, core)
        time.sleep(0.2)
        before = cpu_moment()
        busy_loop(0.2)
        load = load_between(before, cpu_moment(), os.cpu_count())
    finally:
        os.sched_setaffinity(0, before_affinity)
        neighbor.kill()
        neighbor.wait()
    assert load.others_cpu_share is None and load.busy and load.preemptions_per_s > 0
