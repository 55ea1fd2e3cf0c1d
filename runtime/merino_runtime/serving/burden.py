"""What requests cost the board: energy where a sensor is read, and a ceiling on its temperature.

The sensors are the caller's (`merino_bench.sensors` has them): a meter's `joules(start_s, end_s)`, and a function that
gives degrees Celsius by sensor.
"""
import time
from typing import Any, Callable, Dict, NamedTuple, Optional

COOLER_C = 2.0  # below the ceiling: so far it cools before it goes on at full speed
LOOK_S = 1.0  # between two looks at the sensors
LONGEST_PAUSE_S = 1.0  # between two turns: an answer goes on, slowly


class Sensors(NamedTuple):
    temperatures_c: Callable[[], Optional[Dict[str, float]]] = lambda: None
    meter: Any = None


class Moment(NamedTuple):
    """Of a request's beginning."""
    time_s: float
    busy_s: float
    paused_s: float


class Burden:
    """Of all that the scheduler's thread computes. ceiling_c: None: none."""

    def __init__(self, sensors: Sensors, ceiling_c: Optional[float]) -> None:
        self._sensors, self._ceiling_c = sensors, ceiling_c
        self.busy_s = self.paused_s = 0.0
        self.hottest_c: Optional[float] = None
        self._looked_s = 0.0

    def moment(self) -> Moment:
        return Moment(time.perf_counter(), self.busy_s, self.paused_s)

    def hot(self, margin_c: float = 0.0) -> bool:
        """Whether the hottest sensor is at the ceiling, or nearer than the margin."""
        if self._ceiling_c is None:
            return False
        now_s = time.perf_counter()
        if now_s - self._looked_s >= LOOK_S or margin_c:
            self._looked_s = now_s
            temperatures = self._sensors.temperatures_c()
            self.hottest_c = max(temperatures.values()) if temperatures else None
        return self.hottest_c is not None and self.hottest_c >= self._ceiling_c - margin_c

    def cool(self) -> None:
        """Waits where it is too hot, for at most LONGEST_PAUSE_S."""
        if not self.hot():
            return
        start_s = time.perf_counter()
        while time.perf_counter() - start_s < LONGEST_PAUSE_S:
            time.sleep(0.1)
            if not self.hot(COOLER_C):
                break
        self.paused_s += time.perf_counter() - start_s

    def energy(self, since: Moment, own_busy_s: float) -> Optional[Dict[str, Any]]:
        """Of one request: the board's energy since then, by the request's share of the computing. None without a
        sensor, and for what was shorter than a few readings."""
        meter = self._sensors.meter
        if meter is None:
            return None
        joules = meter.joules(since.time_s, time.perf_counter())
        busy_s = self.busy_s - since.busy_s
        if joules is None or busy_s <= 0:
            return None
        return {"joules": joules * min(1.0, own_busy_s / busy_s), "sensor": meter.name}

    def thermal(self, since: Moment) -> Optional[Dict[str, Any]]:
        """What the ceiling did to one request."""
        if self._ceiling_c is None:
            return None
        return {"ceiling_c": self._ceiling_c, "hottest_c": self.hottest_c,
                "paused_ms": 1000 * (self.paused_s - since.paused_s)}
