"""Measure the energy of the timed phases: a thread reads the power source while child processes measure, and the
readings are integrated over prefill and over decode.

The thread runs in the parent, which only waits, so it takes no core or memory from the measured process. Phases are
times of `time.perf_counter`, which on Linux is one clock for all processes. `power` finds the sources. A server takes
the energy of a past span from `Sampler.joules`, and limits its heaps first: so numpy is imported inside functions.
"""
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from merino_bench.sensors.environment import temperatures_c
from merino_bench.sensors.power import Source, find_source
from merino_runtime.serving.metrics import Sensors

if TYPE_CHECKING:
    import numpy as np

IDLE_S = 3.0
LEAST_SAMPLES = 3  # inside the phases; fewer say nothing about them
MOST_GAPS = 4.0  # of the interval: a longer silence is a sensor that went away
KEPT_S = 900.0  # of readings: longer spans are judged by their end

Phases = Sequence[Sequence[float]]  # [[start_s, end_s], ...]


class Reading(NamedTuple):
    time_s: float
    value: float  # watts, or joules where the source counts them


class Sampler:
    """Reads a source in a thread until it is closed. A reading that fails leaves a gap."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.readings: List[Reading] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.source.close()

    def wait_past(self, time_s: float) -> None:
        """Return as soon as there is a reading later than `time_s`, or the sensor has been silent for too long."""
        latest_s = time_s + MOST_GAPS * self.source.interval_s
        while time.perf_counter() < latest_s and not (self.readings and self.readings[-1].time_s > time_s):
            time.sleep(self.source.interval_s / 20)

    @property
    def name(self) -> str:
        return f"{self.source.name} {self.source.rail}"

    def joules(self, start_s: float, end_s: float) -> Optional[float]:
        """Return the joules of a server's request between two times of time.perf_counter: the mean power of the
        readings within, times the span. None if fewer than LEAST_SAMPLES readings are within."""
        oldest_s = time.perf_counter() - KEPT_S
        outdated = next((index for index, reading in enumerate(self.readings) if reading.time_s > oldest_s), 0)
        del self.readings[:outdated]
        within = [reading for reading in list(self.readings) if start_s <= reading.time_s <= end_s]
        if len(within) < LEAST_SAMPLES:
            return None
        joules = float(cumulative_j(within, self.source.counts_joules)[1][-1])
        return joules / (within[-1].time_s - within[0].time_s) * (end_s - start_s) if joules > 0 else None

    def _run(self) -> None:
        while not self._stop.is_set():
            start_s = time.perf_counter()
            with suppress(OSError, ValueError):
                value = self.source.read()
                # The time at the end: jtop waits for the sensor's next value, for up to an interval.
                self.readings.append(Reading(time.perf_counter(), value))
            self._stop.wait(max(0.0, self.source.interval_s - (time.perf_counter() - start_s)))


def idle_watts(sampler: Sampler, seconds: float = IDLE_S) -> Optional[float]:
    """Return the mean power in W while nothing of this project runs, so it must be called before anything is started;
    None if too few readings came."""
    sampler.wait_past(time.perf_counter())
    start_s = time.perf_counter()
    time.sleep(seconds)
    end_s = time.perf_counter()
    sampler.wait_past(end_s)
    joules = phases_j(sampler, [[start_s, end_s]])
    return None if joules is None else joules / (end_s - start_s)


def energy_of(sampler: Sampler, idle_w: Optional[float], prefill: Phases, decode: Phases) -> Dict[str, Any]:
    """Return a record's `energy`: joules over all repetitions, None for a phase that the readings do not cover.
    samples: readings inside the phases. Wait for the reading after the last phase."""
    sampler.wait_past(max((end_s for _, end_s in [*prefill, *decode]), default=0.0))
    energy: Dict[str, Any] = {
        "source": sampler.source.name, "rail": sampler.source.rail, "interval_s": sampler.source.interval_s,
        "samples": inside(sampler.readings, [*prefill, *decode]),
        "idle_w": idle_w}
    for name, phases in (("prefill", prefill), ("decode", decode)):
        joules = phases_j(sampler, phases)
        energy[f"{name}_j"] = joules
        duration_s = sum(end_s - start_s for start_s, end_s in phases)
        energy[f"{name}_net_j"] = None if joules is None or idle_w is None else joules - idle_w * duration_s
    return energy


def phases_j(sampler: Sampler, phases: Phases) -> Optional[float]:
    """Return the joules of all phases, or None if too few readings are inside them, or the sensor was silent or read
    nothing but 0."""
    import numpy as np

    readings = list(sampler.readings)
    if not phases or inside(readings, phases) < LEAST_SAMPLES:
        return None
    times_s, curve_j = cumulative_j(readings, sampler.source.counts_joules)
    joules = 0.0
    for phase in phases:
        # 1. The readings around the phase, without a long gap between them.
        first, last = np.searchsorted(times_s, phase[0], "right") - 1, np.searchsorted(times_s, phase[1], "right")
        most_gap_s = MOST_GAPS * sampler.source.interval_s
        if first < 0 or last == len(times_s) or np.diff(times_s[first:last + 1]).max() > most_gap_s:
            return None
        # 2. The joules between its two times, by linear interpolation.
        start_j, end_j = np.interp(phase, times_s, curve_j)
        joules += end_j - start_j
    return float(joules) if joules > 0 else None


def why_no_energy(sampler: Sampler, phases: Phases) -> str:
    """Explain to people why `phases_j` returns None."""
    source, count = sampler.source, inside(sampler.readings, phases)
    if count < LEAST_SAMPLES:
        return (f"no energy: {count} readings of {source.name}, one each {source.interval_s:g} s, fell into the timed "
                f"phases, {LEAST_SAMPLES} are needed. Measure longer: more repetitions (-r), or longer tests")
    return f"no energy: {source.name} was silent for a while, or gave 0"


def inside(readings: Sequence[Reading], phases: Phases) -> int:
    return sum(any(start_s <= reading.time_s <= end_s for start_s, end_s in phases) for reading in readings)


def cumulative_j(readings: Sequence[Reading], counts_joules: bool) -> Tuple["np.ndarray", "np.ndarray"]:
    """Return the time in s [readings] and the joules since the first reading [readings]; powers are integrated by the
    trapezoid rule."""
    import numpy as np

    times_s, values = np.array(readings, float).T
    if counts_joules:
        return times_s, values - values[0]
    return times_s, np.append(0.0, np.cumsum(np.diff(times_s) * (values[1:] + values[:-1]) / 2))


def open_sensors() -> Sensors:
    """Return the sensors of this machine, for `merino_runtime.serving`."""
    source, _ = find_source()
    return Sensors(temperatures_c, None if source is None else Sampler(source))
