"""The cost of requests to the board: their energy, if there is a sensor, and a limit on the temperature.

The sensors are the caller's (`merino_bench.sensors` has them): a meter's `joules(start_s, end_s)`, and a function that
gives degrees Celsius by sensor.
"""
import time
from typing import Any, Callable, Dict, NamedTuple, Optional

COOLER_C = 2.0  # degrees below the ceiling at which full speed resumes
LOOK_S = 1.0  # between two readings of the sensors
LONGEST_PAUSE_S = 1.0  # between two turns, so that completions continue slowly


class Sensors(NamedTuple):
    temperatures_c: Callable[[], Optional[Dict[str, float]]] = lambda: None
    meter: Any = None


class Moment(NamedTuple):
    """Counters at the start of a request."""
    time_s: float
    busy_s: float
    paused_s: float


class Burden:
    """Counts the computing time of the scheduler's thread, and pauses it. ceiling_c: None for no limit."""

    def __init__(self, sensors: Sensors, ceiling_c: Optional[float]) -> None:
        self._sensors, self._ceiling_c = sensors, ceiling_c
        self.busy_s = self.paused_s = 0.0
        self.hottest_c: Optional[float] = None
        self._looked_s = 0.0

    def moment(self) -> Moment:
        return Moment(time.perf_counter(), self.busy_s, self.paused_s)

    def hot(self, margin_c: float = 0.0) -> bool:
        """Return whether the hottest sensor is within `margin_c` of the ceiling."""
        if self._ceiling_c is None:
            return False
        now_s = time.perf_counter()
        if now_s - self._looked_s >= LOOK_S or margin_c:
            self._looked_s = now_s
            temperatures = self._sensors.temperatures_c()
            self.hottest_c = max(temperatures.values()) if temperatures else None
        return self.hottest_c is not None and self.hottest_c >= self._ceiling_c - margin_c

    def cool(self) -> None:
        """If it is too hot, wait for at most LONGEST_PAUSE_S."""
        if not self.hot():
            return
        start_s = time.perf_counter()
        while time.perf_counter() - start_s < LONGEST_PAUSE_S:
            time.sleep(0.1)
            if not self.hot(COOLER_C):
                break
        self.paused_s += time.perf_counter() - start_s

    def energy(self, since: Moment, own_busy_s: float) -> Optional[Dict[str, Any]]:
        """Return the energy of one request: the board's energy since its start times the request's share of the
        computing time. None without a sensor, or if the request was shorter than a few readings."""
        meter = self._sensors.meter
        if meter is None:
            return None
        joules = meter.joules(since.time_s, time.perf_counter())
        busy_s = self.busy_s - since.busy_s
        if joules is None or busy_s <= 0:
            return None
        return {"joules": joules * min(1.0, own_busy_s / busy_s), "sensor": meter.name}

    def thermal(self, since: Moment) -> Optional[Dict[str, Any]]:
        """Return the temperature and the pauses during one request; None without a limit."""
        if self._ceiling_c is None:
            return None
        return {"ceiling_c": self._ceiling_c, "hottest_c": self.hottest_c,
                "paused_ms": 1000 * (self.paused_s - since.paused_s)}
