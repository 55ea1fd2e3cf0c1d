"""Measure the energy of a server's requests: a sensor is read all the time, and reports the energy of a past span."""
import time
from typing import Optional

from merino_bench.sensors.energy import LEAST_SAMPLES, Sampler, cumulative_j
from merino_bench.sensors.environment import temperatures_c
from merino_bench.sensors.power import find_source
from merino_runtime.serving.metrics import Sensors

KEPT_S = 900.0  # of readings: longer spans are judged by their end


class Meter:
    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self.name = f"{sampler.source.name} {sampler.source.rail}"

    def joules(self, start_s: float, end_s: float) -> Optional[float]:
        """Return the joules between two times of time.perf_counter: the mean power of the readings within, times the
        span. None if fewer than LEAST_SAMPLES readings are within."""
        readings = self._sampler.readings
        oldest_s = time.perf_counter() - KEPT_S
        outdated = next((index for index, reading in enumerate(readings) if reading.time_s > oldest_s), 0)
        del readings[:outdated]
        within = [reading for reading in list(readings) if start_s <= reading.time_s <= end_s]
        if len(within) < LEAST_SAMPLES:
            return None
        joules = cumulative_j(within, self._sampler.source.counts_joules)[-1][1]
        return joules / (within[-1].time_s - within[0].time_s) * (end_s - start_s) if joules > 0 else None

    def close(self) -> None:
        self._sampler.close()


def open_sensors() -> Sensors:
    """Return the sensors of this machine, for `merino_runtime.serving`."""
    source, _ = find_source()
    return Sensors(temperatures_c, None if source is None else Meter(Sampler(source)))
