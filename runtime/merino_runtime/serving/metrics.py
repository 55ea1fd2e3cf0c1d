"""What serving costs: metrics for Prometheus at /metrics, with the names of llama.cpp's counters and vLLM's histograms;
/v1/stats; the energy of a request, if there is a sensor; and a limit on the temperature.

The sensors are the caller's (`merino_bench.sensors` has them): a meter's `joules(start_s, end_s)`, and a function that
gives degrees Celsius by sensor.
"""
import bisect
import threading
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from merino_runtime.io import board
from merino_runtime.serving.requests import Event, Failed, Finished, TextChunk

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FIRST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
WHOLE_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
COOLER_C = 2.0  # degrees below the ceiling at which full speed resumes
LOOK_S = 1.0  # between two readings of the sensors
LONGEST_PAUSE_S = 1.0  # between two turns, so that completions continue slowly


class Histogram:
    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str) -> List[str]:
        lines, count = [], 0
        for bound, more in zip([*map(str, self.bounds), "+Inf"], self.counts):  # noqa: B905, not in 3.6
            count += more
            lines.append(f'{name}_bucket{{le="{bound}"}} {count}')
        return [*lines, f"{name}_sum {self.total}", f"{name}_count {count}"]


# Name, help.
COUNTERS = (
    ("llamacpp:prompt_tokens_total", "Number of prompt tokens processed."),
    ("llamacpp:prompt_seconds_total", "Prompt process time."),
    ("llamacpp:tokens_predicted_total", "Number of generation tokens processed."),
    ("llamacpp:tokens_predicted_seconds_total", "Predict process time."),
    ("merino:batches_total", "Runs of the graph that computed the decode steps of several requests."),
    ("merino:tokens_batched_total", "Generation tokens whose decode steps these runs computed."),
    ("merino:prompt_tokens_cached_total", "Prompt tokens that a slot held already."),
    ("merino:requests_total", "Answers that ended by themselves or by a limit."),
    ("merino:requests_cancelled_total", "Answers whose client left."),
    ("merino:requests_failed_total", "Answers that failed."),
)


class Metrics:
    """`watch` gets every event, in the scheduler's thread; `text` may be called from any thread."""

    def __init__(self) -> None:
        self.started_s = time.time()
        self._lock = threading.Lock()
        self.counts: Dict[str, float] = {name: 0 for name, _ in COUNTERS}
        self._first, self._between, self._whole = Histogram(FIRST_S), Histogram(TOKEN_S), Histogram(WHOLE_S)
        self._latest: Dict[int, float] = {}  # time of a job's latest token

    def watch(self, job: Any, event: Event) -> None:
        with self._lock:
            if isinstance(event, TextChunk) and event.id is not None and not event.of_prompt:
                now = time.monotonic()
                before = self._latest.get(id(job))
                self._first.add(now - job.arrived_s) if before is None else self._between.add(now - before)
                self._latest[id(job)] = now
            elif isinstance(event, Finished):
                self._end(job, event)
            elif isinstance(event, Failed):
                self._latest.pop(id(job), None)
                self.counts["merino:requests_failed_total"] += 1

    def batched(self, steps: int) -> None:
        with self._lock:
            self.counts["merino:batches_total"] += 1
            self.counts["merino:tokens_batched_total"] += steps

    def _end(self, job: Any, event: Finished) -> None:
        self._latest.pop(id(job), None)
        usage = event.usage
        self._whole.add(usage.total_ms / 1000)
        for name, value in (
                ("llamacpp:prompt_tokens_total", usage.prompt_tokens - usage.cached_tokens if usage.prefill_ms else 0),
                ("llamacpp:prompt_seconds_total", usage.prefill_ms / 1000),
                ("llamacpp:tokens_predicted_total", usage.tokens),
                ("llamacpp:tokens_predicted_seconds_total", usage.decode_ms / 1000),
                ("merino:prompt_tokens_cached_total", usage.cached_tokens),
                ("merino:requests_total", event.reason != "cancelled"),
                ("merino:requests_cancelled_total", event.reason == "cancelled")):
            self.counts[name] += value

    def text(self, running: int, waiting: int) -> str:
        with self._lock:
            rows = [(name, "counter", help_, [f"{name} {self.counts[name]}"]) for name, help_ in COUNTERS]
            for name, value, help_ in (
                    ("llamacpp:requests_processing", running, "Number of requests processing."),
                    ("llamacpp:requests_deferred", waiting, "Number of requests deferred."),
                    ("vllm:num_requests_running", running, "Number of requests that have a slot."),
                    ("vllm:num_requests_waiting", waiting, "Number of requests that wait for a slot."),
                    ("merino:peak_rss_mb", board.peak_rss_mb(), "Peak resident memory of the server in MB.")):
                rows.append((name, "gauge", help_, [f"{name} {value}"]))
            for name, histogram, help_ in (
                    ("vllm:time_to_first_token_seconds", self._first, "Time to first token."),
                    ("vllm:inter_token_latency_seconds", self._between, "Time between two tokens."),
                    ("vllm:e2e_request_latency_seconds", self._whole, "Time of a request, the wait included.")):
                rows.append((name, "histogram", help_, histogram.lines(name)))
        return "".join(f"# HELP {name} {help_}\n# TYPE {name} {kind}\n" + "\n".join(lines) + "\n"
                       for name, kind, help_, lines in rows)

    def stats(self) -> Dict[str, Any]:
        """Return totals and mean speeds, for people."""
        with self._lock:
            counts = dict(self.counts)
        per_s = [(name, counts[f"llamacpp:{tokens}_total"], counts[f"llamacpp:{seconds}_total"])
                 for name, tokens, seconds in (("prefill_tok_s", "prompt_tokens", "prompt_seconds"),
                                               ("decode_tok_s", "tokens_predicted", "tokens_predicted_seconds"))]
        speeds = {name: count / seconds if seconds else None for name, count, seconds in per_s}
        return dict(speeds, up_s=time.time() - self.started_s, rss_mb=board.rss_mb(),
                    peak_rss_mb=board.peak_rss_mb(),
                    **{name.partition(":")[2]: value for name, value in counts.items()})


def of_models(models: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Describe the slots of all models, for /v1/stats."""
    rows = []
    for model in models.values():
        slots: List[Tuple[str, Any]] = []
        if model.loaded is not None:
            own = model.loaded.slots
            slots = [("person", slot) for slot in own.persons] + [("background", slot) for slot in own.background]
        rows.append({"model": model.name, "context": model.bundle.context, "loaded": model.loaded is not None,
                     "slots": [{"for": kind, "busy": slot.busy, "tokens": len(slot.ids)} for kind, slot in slots]})
    return rows


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
