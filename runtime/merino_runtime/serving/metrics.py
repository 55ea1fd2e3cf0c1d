"""What Prometheus reads at /metrics: llama.cpp's counters and vLLM's histograms, by their names. And /v1/stats."""
import bisect
import threading
import time
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

from merino_runtime.io import board
from merino_runtime.serving.requests import Ended, Event, Failed, Piece

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FIRST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
WHOLE_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


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


class Counted(NamedTuple):
    name: str
    kind: str
    help: str


COUNTERS = (
    Counted("llamacpp:prompt_tokens_total", "counter", "Number of prompt tokens processed."),
    Counted("llamacpp:prompt_seconds_total", "counter", "Prompt process time."),
    Counted("llamacpp:tokens_predicted_total", "counter", "Number of generation tokens processed."),
    Counted("llamacpp:tokens_predicted_seconds_total", "counter", "Predict process time."),
    Counted("merino:batches_total", "counter", "Runs of the graph that computed the decode steps of several requests."),
    Counted("merino:tokens_batched_total", "counter", "Generation tokens whose decode steps these runs computed."),
    Counted("merino:prompt_tokens_cached_total", "counter", "Prompt tokens that a slot held already."),
    Counted("merino:requests_total", "counter", "Answers that ended by themselves or by a limit."),
    Counted("merino:requests_cancelled_total", "counter", "Answers whose client left."),
    Counted("merino:requests_failed_total", "counter", "Answers that failed."),
)


class Metrics:
    """`watch` hears each event, in the scheduler's thread; `text` may be called from any."""

    def __init__(self) -> None:
        self.began_s = time.time()
        self._lock = threading.Lock()
        self.counts: Dict[str, float] = {each.name: 0 for each in COUNTERS}
        self._first, self._between, self._whole = Histogram(FIRST_S), Histogram(TOKEN_S), Histogram(WHOLE_S)
        self._latest: Dict[int, float] = {}  # time of a job's latest token

    def watch(self, job: Any, event: Event) -> None:
        with self._lock:
            if isinstance(event, Piece) and event.id is not None and not event.of_prompt:
                now = time.monotonic()
                before = self._latest.get(id(job))
                self._first.add(now - job.arrived_s) if before is None else self._between.add(now - before)
                self._latest[id(job)] = now
            elif isinstance(event, Ended):
                self._end(job, event)
            elif isinstance(event, Failed):
                self._latest.pop(id(job), None)
                self.counts["merino:requests_failed_total"] += 1

    def batched(self, steps: int) -> None:
        with self._lock:
            self.counts["merino:batches_total"] += 1
            self.counts["merino:tokens_batched_total"] += steps

    def _end(self, job: Any, event: Ended) -> None:
        self._latest.pop(id(job), None)
        used = event.used
        self._whole.add(used.total_ms / 1000)
        for name, value in (
                ("llamacpp:prompt_tokens_total", used.prompt_tokens - used.cached_tokens if used.prefill_ms else 0),
                ("llamacpp:prompt_seconds_total", used.prefill_ms / 1000),
                ("llamacpp:tokens_predicted_total", used.tokens),
                ("llamacpp:tokens_predicted_seconds_total", used.decode_ms / 1000),
                ("merino:prompt_tokens_cached_total", used.cached_tokens),
                ("merino:requests_total", event.reason != "cancelled"),
                ("merino:requests_cancelled_total", event.reason == "cancelled")):
            self.counts[name] += value

    def text(self, running: int, waiting: int) -> str:
        with self._lock:
            rows = [(each, [f"{each.name} {self.counts[each.name]}"]) for each in COUNTERS]
            for name, value, help_ in (
                    ("llamacpp:requests_processing", running, "Number of requests processing."),
                    ("llamacpp:requests_deferred", waiting, "Number of requests deferred."),
                    ("vllm:num_requests_running", running, "Number of requests that have a slot."),
                    ("vllm:num_requests_waiting", waiting, "Number of requests that wait for a slot."),
                    ("merino:peak_rss_mb", board.peak_rss_mb(), "Peak resident memory of the server in MB.")):
                rows.append((Counted(name, "gauge", help_), [f"{name} {value}"]))
            for name, histogram, help_ in (
                    ("vllm:time_to_first_token_seconds", self._first, "Time to first token."),
                    ("vllm:inter_token_latency_seconds", self._between, "Time between two tokens."),
                    ("vllm:e2e_request_latency_seconds", self._whole, "Time of a request, the wait included.")):
                rows.append((Counted(name, "histogram", help_), histogram.lines(name)))
        return "".join(f"# HELP {each.name} {each.help}\n# TYPE {each.name} {each.kind}\n" + "\n".join(lines) + "\n"
                       for each, lines in rows)

    def stats(self) -> Dict[str, Any]:
        """For people: totals and mean speeds."""
        with self._lock:
            counts = dict(self.counts)
        per_s = [(name, counts[f"llamacpp:{tokens}_total"], counts[f"llamacpp:{seconds}_total"])
                 for name, tokens, seconds in (("prefill_tok_s", "prompt_tokens", "prompt_seconds"),
                                               ("decode_tok_s", "tokens_predicted", "tokens_predicted_seconds"))]
        speeds = {name: count / seconds if seconds else None for name, count, seconds in per_s}
        return dict(speeds, up_s=time.time() - self.began_s, rss_mb=board.rss_mb(),
                    peak_rss_mb=board.peak_rss_mb(),
                    **{name.partition(":")[2]: value for name, value in counts.items()})


def of_models(models: Dict[str, Any]) -> List[Dict[str, Any]]:
    """What each slot holds, for /v1/stats."""
    rows = []
    for model in models.values():
        slots: List[Tuple[str, Any]] = []
        if model.served is not None:
            own = model.served.slots
            slots = [("person", each) for each in own.persons] + [("background", each) for each in own.background]
        rows.append({"model": model.name, "context": model.bundle.context, "loaded": model.served is not None,
                     "slots": [{"for": kind, "busy": slot.busy, "tokens": len(slot.ids)} for kind, slot in slots]})
    return rows
