"""Runs the answers of all models on one thread, in turns: one piece of a prefill or one token each.

One thread, since a step has all the cores already (docs/decisions/serving.md). Where several requests to one model have
a decode step next, one run of the graph computes them all before their turns. Between two turns a request can begin, be
cancelled or run out of its time. Background requests have a turn only where no request of a person runs.
"""
import sys
import threading
import time
import traceback
from typing import Callable, List, Optional, Sequence

from merino_runtime.errors import MerinoError
from merino_runtime.io import heap
from merino_runtime.serving.answering import Answering, unanswered
from merino_runtime.serving.burden import Burden, Moment
from merino_runtime.serving.prefix_cache import PrefixCache
from merino_runtime.serving.requests import (
    FAULT,
    TOO_MANY,
    UNAVAILABLE,
    Ended,
    Event,
    Failed,
    GenerationRequest,
    Progress,
    RefusedError,
)
from merino_runtime.serving.slots import Slot, Slots
from merino_runtime.serving.waiting import Waiting

TURN_S = 0.25  # how long one piece of a prefill may keep the others waiting
FIRST_PIECE, LEAST_PIECE, MOST_PIECE = 64, 16, 256  # ids
LONGEST_RETRY_S = 60
QUIET_S = 1.0  # without a request, before free memory is given back


class Served:
    """A model that answers: its slots, and how fast it prefills."""

    def __init__(self, slots: Slots, prefixes: Optional[PrefixCache] = None) -> None:
        self.slots, self.model, self.prefixes = slots, slots.model, prefixes
        self.together = True  # whether steps of several requests are computed in one run
        self._id_s = 0.0  # of one id in a prefill, as a moving average

    def piece(self) -> int:
        """How many ids take about TURN_S."""
        return max(LEAST_PIECE, min(MOST_PIECE, int(TURN_S / self._id_s))) if self._id_s else FIRST_PIECE

    def prefilled(self, count: int, seconds: float) -> None:
        self._id_s = seconds / count if not self._id_s else 0.7 * self._id_s + 0.3 * seconds / count


class Job:
    """An answer under way. take: gets its events, in the scheduler's thread."""

    def __init__(self, request: GenerationRequest, served: Served, take: Callable[[Event], None]) -> None:
        self.request, self.served, self.take = request, served, take
        self.cancelled = False
        self.arrived_s = time.monotonic()
        self.slot: Optional[Slot] = None
        self.answering: Optional[Answering] = None
        self.fault: Optional[Exception] = None  # of making its slot
        self.prefilled = -1  # ids of the prompt; -1: not begun
        self.keep = 0  # number of its ids that the prefix cache keeps
        self.since: Optional[Moment] = None  # its beginning
        self.busy_s = 0.0

    def piece(self, at: int) -> int:
        """How many ids of the prompt the next piece of its prefill has, behind `at` of them."""
        count = self.served.piece()
        return min(count, self.keep - at) if at < self.keep else count

    @property
    def late(self) -> bool:
        return self.request.limit_s is not None and time.monotonic() - self.arrived_s > self.request.limit_s


class Scheduler:
    """most_waiting: requests beyond those that have a slot; more are refused. watch: gets each event. batched: gets the
    number of steps of each run of the graph that computed several."""

    def __init__(self, most_waiting: int, burden: Burden, watch: Callable[[Job, Event], None] = lambda *_: None,
                 batched: Callable[[int], None] = lambda _: None) -> None:
        self.most_waiting, self.burden, self._watch, self._batched = most_waiting, burden, watch, batched
        self.waiting = Waiting()
        self.running: List[Job] = []
        self._changed = threading.Condition()
        self._closing = False

    def submit(self, jobs: Sequence[Job]) -> None:
        """All of them or none. Raises RefusedError where too many wait."""
        with self._changed:
            if self._closing:
                raise RefusedError("the server is being stopped. Try again when it is back.", UNAVAILABLE, retry_s=10)
            free = max(0, jobs[0].served.slots.count - len(self.running))
            waiting = len(self.waiting)
            if waiting + len(jobs) > self.most_waiting + max(free, len(jobs) if not waiting else 0):
                raise RefusedError(f"{waiting} requests are waiting, allowed are {self.most_waiting}. Try again later.",
                              TOO_MANY, code="queue_full", retry_s=self._retry_s())
            for job in jobs:
                self.waiting.add(job)
            self._changed.notify()

    def _retry_s(self) -> int:
        """When a slot may be free: as long as the running requests have taken so far."""
        ages = [time.monotonic() - job.arrived_s for job in list(self.running)]
        return max(1, min(LONGEST_RETRY_S, int(sum(ages) / len(ages)) if ages else 1))

    def cancel(self, job: Job) -> None:
        """At once where it waits, else before its next token."""
        with self._changed:
            job.cancelled = True
            if self.waiting.remove(job):
                self._deliver(job, unanswered(job.request, "cancelled", job.arrived_s))

    def close(self) -> None:
        """`run` returns after the current turn; every request that is not over fails."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def run(self) -> None:
        while True:
            with self._changed:
                self._wait_for_work()
                if self._closing:
                    break
                self._admit()
            persons = [job for job in self.running if not job.request.background]
            jobs = persons or list(self.running)
            self.burden.cool()
            for served in {id(job.served): job.served for job in jobs}.values():
                if served.together:
                    self._step_ahead(served, [job for job in jobs if job.served is served])
            for job in jobs:
                self._guarded_turn(job)
        for job in [*self.running, *self.waiting.all()]:
            if job.answering is not None:
                job.answering.close()
            self._deliver(job, Failed(RefusedError("the server was stopped.", UNAVAILABLE, retry_s=10)))

    def _wait_for_work(self) -> None:
        quiet_s: Optional[float] = QUIET_S
        while not (len(self.waiting) or self.running or self._closing):
            if not self._changed.wait(quiet_s):
                heap.return_free_pages()
                quiet_s = None

    def _admit(self) -> None:
        for job in self.waiting.all():
            if job.late:
                self.waiting.remove(job)
                self._deliver(job, unanswered(job.request, "time", job.arrived_s))
        while True:
            job = self.waiting.next(self._takes_slot)
            if job is None:
                return
            self.running.append(job)

    def _takes_slot(self, job: Job) -> bool:
        try:
            job.slot = job.served.slots.take(job.request.ids, job.request.background, job.request.watched)
            prefixes = job.served.prefixes
            if job.slot is not None and prefixes is not None and not job.request.echo:
                job.keep = prefixes.to_keep(job.request.ids)
                prefixes.load(job.slot.backend, job.request.ids)
        except Exception as error:  # such as of memory: this request fails with it
            job.fault = error
        return job.slot is not None or job.fault is not None

    def _step_ahead(self, served: Served, jobs: Sequence[Job]) -> None:
        """Computes the decode steps of requests to one model in one run of the graph, for those that have one next."""
        by_backend = {job.slot.backend: (job, job.answering) for job in jobs
                      if job.slot is not None and job.answering is not None and not (job.cancelled or job.late)}
        next_ids = [(backend, answering.next_id) for backend, (_, answering) in by_backend.items()]
        steps = [(backend, next_id) for backend, next_id in next_ids if next_id is not None]
        if len(steps) < 2:
            return
        start = time.perf_counter()
        try:
            computed = steps[0][0].step_ahead(steps)
        except MerinoError as error:  # such as of memory: a step alone needs less
            served.together = False
            print(f"steps of several requests are computed one by one from now on: {error}", file=sys.stderr)
            return
        if not computed:
            return
        took_s = time.perf_counter() - start
        self.burden.busy_s += took_s
        self._batched(len(computed))
        for backend in computed:
            job, answering = by_backend[backend]
            job.busy_s += took_s / len(computed)
            answering.computed_ahead(1000 * took_s)

    def _guarded_turn(self, job: Job) -> None:
        try:
            self._turn(job)
        except MerinoError as error:
            self._end(job, [Failed(RefusedError(str(error), FAULT))])
        except Exception:  # the fault of one request ends no other one
            traceback.print_exc(file=sys.stderr)
            self._end(job, [Failed(RefusedError("the server failed at this request. Look into its log.", FAULT))])

    def _turn(self, job: Job) -> None:
        if job.fault is not None:
            raise job.fault
        if job.answering is None:
            assert job.slot is not None
            job.answering = Answering(job.request, job.served.model, job.slot.backend, job.arrived_s, job.piece)
            job.since = self.burden.moment()
        if job.cancelled or job.late:
            self._end(job, job.answering.leave("cancelled" if job.cancelled else "time"))
            return
        start = time.perf_counter()
        event = next(job.answering)
        took_s = time.perf_counter() - start
        job.busy_s += took_s
        self.burden.busy_s += took_s
        if isinstance(event, Progress):
            self._prefilled(job, event, took_s)
        if isinstance(event, Ended):
            self._end(job, [event])
        else:
            self._deliver(job, event)

    def _prefilled(self, job: Job, event: Progress, took_s: float) -> None:
        count = event.ids - job.prefilled
        if job.prefilled >= 0 and count:
            job.served.prefilled(count, took_s)
        job.prefilled = event.ids
        if job.keep and event.ids == job.keep and job.served.prefixes is not None and job.slot is not None:
            job.served.prefixes.save(job.slot.backend)

    def _end(self, job: Job, events: Sequence[Event]) -> None:
        self.running.remove(job)
        if job.answering is not None:
            job.answering.close()
        if job.slot is not None:
            job.served.slots.give(job.slot)
        for event in events:
            if isinstance(event, Ended) and job.since is not None:
                event = event._replace(used=event.used._replace(
                    energy=self.burden.energy(job.since, job.busy_s), thermal=self.burden.thermal(job.since)))
            self._deliver(job, event)

    def _deliver(self, job: Job, event: Event) -> None:
        self._watch(job, event)
        job.take(event)
