"""Runs the completions of all models on one thread, in rounds: a token of each request that decodes, then prefills.

There is one thread because a step uses all cores already (docs/decisions/serving.md). If several requests to one model
have a decode step next, one run of the graph computes them all before their turns. All prefills of a round share one
budget of time, and take turns, so that any number of them delays a token by as much as one does. Between two turns a
request can start, be cancelled or run out of time. Background requests run only if no interactive request does.
"""
import collections
import sys
import threading
import time
import traceback
from typing import Any, Callable, List, Optional, Sequence, Tuple

from merino_runtime.errors import MerinoError
from merino_runtime.io.memory import return_free_pages
from merino_runtime.serving.completion import Completion, finished_without_slot
from merino_runtime.serving.metrics import Burden, Moment
from merino_runtime.serving.requests import Client, Event, Failed, Finished, GenerationRequest, Progress, RefusedError
from merino_runtime.serving.slots import PrefixCache, Slot, Slots

PREFILL_S = 0.25  # longest time that the prefills of a round block the requests that decode
LEAST_CHUNK, MOST_CHUNK = 16, 256  # ids
LONGEST_RETRY_S = 60
QUIET_S = 1.0  # without a request, before free memory is returned
STALLED_S = 180  # of one turn, before the server is reported as not healthy


class LoadedModel:
    """The slots of a model and its prefill speed."""

    def __init__(self, slots: Slots, prefixes: Optional[PrefixCache] = None) -> None:
        self.slots, self.model, self.prefixes = slots, slots.model, prefixes
        self.together = True  # whether steps of several requests are computed in one run
        self._id_s = 0.0  # prefill time of one id, a moving average

    def chunk_size(self, seconds: float) -> int:
        """Return how many ids are computed in this time; the fewest until the speed is known."""
        return max(LEAST_CHUNK, min(MOST_CHUNK, int(seconds / self._id_s))) if self._id_s else LEAST_CHUNK

    def prefilled(self, count: int, seconds: float) -> None:
        self._id_s = seconds / count if not self._id_s else 0.7 * self._id_s + 0.3 * seconds / count


class Job:
    """A request under way. take: gets its events, in the scheduler's thread."""

    def __init__(self, request: GenerationRequest, loaded: LoadedModel, take: Callable[[Event], None]) -> None:
        self.request, self.loaded, self.take = request, loaded, take
        self.cancelled = False
        self.arrived_s = time.monotonic()
        self.slot: Optional[Slot] = None
        self.completion: Optional[Completion] = None
        self.fault: Optional[Exception] = None  # why it got no slot
        self.prefilled = -1  # ids of the prompt; -1: not started
        self.prefills = not request.echo  # until the first token
        self.left_s = PREFILL_S  # of the round, for the next chunk
        self.keep = 0  # number of its ids that the prefix cache keeps
        self.since: Optional[Moment] = None  # its start
        self.busy_s = 0.0

    def chunk_size(self, at: int) -> int:
        """Return the number of ids in the chunk behind the first `at` ids of the prompt."""
        count = self.loaded.chunk_size(self.left_s)
        return min(count, self.keep - at) if at < self.keep else count

    def same_prompt(self, other: "Job") -> bool:
        return self.loaded is other.loaded and self.request.ids == other.request.ids and \
            self.request.client.owner == other.request.client.owner

    @property
    def late(self) -> bool:
        return self.request.limit_s is not None and time.monotonic() - self.arrived_s > self.request.limit_s


class Waiting:
    """Jobs without a slot. Clients take turns, and background jobs come last."""

    def __init__(self) -> None:
        # By whether they are background jobs, and by client; the client whose turn it is comes first.
        self._queues: "collections.OrderedDict[Tuple[bool, Client], List[Any]]" = collections.OrderedDict()

    @property
    def jobs(self) -> List[Any]:
        return [job for jobs in list(self._queues.values()) for job in jobs]  # another thread may change them

    def __len__(self) -> int:
        return len(self.jobs)

    def add(self, job: Any) -> None:
        self._queues.setdefault((job.request.background, job.request.client), []).append(job)

    def remove(self, job: Any) -> bool:
        """Remove a job -> whether it was waiting."""
        key = job.request.background, job.request.client
        jobs = self._queues.get(key, [])
        if job not in jobs:
            return False
        jobs.remove(job)
        if not jobs:
            del self._queues[key]
        return True

    def next(self, starts: Callable[[Any], bool]) -> Optional[Any]:
        """Remove and return the first job that `starts`. Its client then comes last."""
        for key in sorted(self._queues, key=lambda key: key[0]):  # a stable sort keeps the turns
            job = self._queues[key][0]
            if starts(job):
                self._queues.move_to_end(key)
                self.remove(job)
                return job
        return None


class Scheduler:
    """most_waiting: number of requests that may wait for a slot; more are refused. watch: gets each event. batched:
    gets the number of decode steps of each run of the graph that computed several."""

    def __init__(self, most_waiting: int, burden: Burden, watch: Callable[[Job, Event], None] = lambda *_: None,
                 batched: Callable[[int], None] = lambda _: None) -> None:
        self.most_waiting, self.burden, self._watch, self._batched = most_waiting, burden, watch, batched
        self.waiting = Waiting()
        self.running: List[Job] = []
        self._changed = threading.Condition()
        self._closing = False
        self._turn_s = time.monotonic()  # the beginning of the current turn

    @property
    def stalled(self) -> bool:
        """Return whether the current turn takes so long that no other request makes progress."""
        return bool(self.running) and time.monotonic() - self._turn_s > STALLED_S

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue all jobs or none. Raise RefusedError if too many wait."""
        with self._changed:
            if self._closing:
                raise RefusedError("the server is being stopped. Try again when it is back.", 503, retry_s=10)
            free = max(0, jobs[0].loaded.slots.count - len(self.running))
            waiting = len(self.waiting)
            if waiting + len(jobs) > self.most_waiting + max(free, len(jobs) if not waiting else 0):
                # A slot may be free after as long as the running requests have taken so far.
                ages = [time.monotonic() - job.arrived_s for job in list(self.running)]
                retry_s = max(1, min(LONGEST_RETRY_S, int(sum(ages) / len(ages)) if ages else 1))
                raise RefusedError(f"{waiting} requests are waiting, allowed are {self.most_waiting}. Try again later.",
                                   429, code="queue_full", retry_s=retry_s)
            for job in jobs:
                self.waiting.add(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Cancel a waiting job at once, a running one before its next token."""
        with self._changed:
            job.cancelled = True
            if self.waiting.remove(job):
                self._deliver(job, finished_without_slot(job.request, "cancelled", job.arrived_s))

    def close(self) -> None:
        """Make `run` return after the current turn; all other requests fail."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def run(self) -> None:
        while True:
            with self._changed:
                self._wait_for_work()
                self._turn_s = time.monotonic()
                if self._closing:
                    break
                self._admit()
            jobs = [job for job in self.running if not job.request.background] or list(self.running)
            self.burden.cool()
            for loaded in {id(job.loaded): job.loaded for job in jobs}.values():
                if loaded.together:
                    self._step_ahead(loaded, [job for job in jobs if job.loaded is loaded])
            prefilling = [job for job in jobs if job.prefills]
            for job in jobs:
                if not job.prefills:
                    self._safe_turn(job)
            end_s, turns = time.perf_counter() + PREFILL_S, 0
            for job in prefilling:
                job.left_s = end_s - time.perf_counter()
                if job.completion is None and any(other.prefills and other.completion is not None
                                                  and job.same_prompt(other) for other in prefilling):
                    continue  # it copies what the other one computes
                if turns and job.left_s < PREFILL_S / 4 and not (job.cancelled or job.late):
                    continue
                turns += 1
                self._safe_turn(job)
                if job in self.running:  # its next turn comes after the others'
                    self.running.remove(job)
                    self.running.append(job)
        for job in [*self.running, *self.waiting.jobs]:
            if job.completion is not None:
                job.completion.close()
            self._deliver(job, Failed(RefusedError("the server was stopped.", 503, retry_s=10)))

    def _wait_for_work(self) -> None:
        quiet_s: Optional[float] = QUIET_S
        while not (len(self.waiting) or self.running or self._closing):
            if not self._changed.wait(quiet_s):
                return_free_pages()
                quiet_s = None

    def _admit(self) -> None:
        for job in self.waiting.jobs:
            if job.late:
                self.waiting.remove(job)
                self._deliver(job, finished_without_slot(job.request, "time", job.arrived_s))
        while True:
            job = self.waiting.next(self._takes_slot)
            if job is None:
                return
            self.running.append(job)

    def _takes_slot(self, job: Job) -> bool:
        try:
            request, prefixes = job.request, job.loaded.prefixes
            job.slot = job.loaded.slots.take(request)
            if job.slot is not None and prefixes is not None and not (request.echo or request.embeds):
                job.keep = prefixes.to_keep(request.ids, request.client.owner)
                prefixes.load(job.slot.backend, request.ids, request.client.owner)
        except Exception as error:  # such as a lack of memory: only this request fails
            job.fault = error
        return job.slot is not None or job.fault is not None

    def _step_ahead(self, loaded: LoadedModel, jobs: Sequence[Job]) -> None:
        """Compute the decode steps that are next in several requests to one model, in one run of the graph."""
        by_backend = {job.slot.backend: (job, job.completion.generation) for job in jobs
                      if job.slot is not None and job.completion is not None and job.completion.generation is not None
                      and not (job.cancelled or job.late)}
        next_ids = [(backend, generation.next_id) for backend, (_, generation) in by_backend.items()]
        steps = [(backend, next_id) for backend, next_id in next_ids if next_id is not None]
        if len(steps) < 2:
            return
        start = time.perf_counter()
        try:
            computed = steps[0][0].step_ahead(steps)
        except MerinoError as error:  # such as a lack of memory: a single step needs less
            loaded.together = False
            print(f"steps of several requests are computed one by one from now on: {error}", file=sys.stderr)
            return
        if not computed:
            return
        took_s = time.perf_counter() - start
        self.burden.busy_s += took_s
        self._batched(len(computed))
        for backend in computed:
            job, generation = by_backend[backend]
            job.busy_s += took_s / len(computed)
            generation.computed_ahead(1000 * took_s)

    def _safe_turn(self, job: Job) -> None:
        try:
            self._turn(job)
        except MerinoError as error:
            self._end(job, [Failed(RefusedError(str(error), 500))])
        except Exception:  # a bug in one request must not end the others
            traceback.print_exc(file=sys.stderr)
            self._end(job, [Failed(RefusedError("the server failed at this request. Look into its log.", 500))])

    def _turn(self, job: Job) -> None:
        self._turn_s = time.monotonic()
        if job.fault is not None:
            raise job.fault
        if job.completion is None:
            assert job.slot is not None
            job.loaded.slots.copy_prefix(job.slot, job.request)
            job.completion = Completion(job.request, job.loaded.model, job.slot.backend, job.arrived_s, job.chunk_size)
            job.since = self.burden.moment()
        if job.cancelled or job.late:
            self._end(job, job.completion.finish("cancelled" if job.cancelled else "time"))
            return
        start = time.perf_counter()
        event = next(job.completion)
        took_s = time.perf_counter() - start
        job.busy_s += took_s
        self.burden.busy_s += took_s
        job.prefills = isinstance(event, Progress)
        if isinstance(event, Progress):
            count = event.ids - job.prefilled
            if job.prefilled >= 0 and count:
                job.loaded.prefilled(count, took_s)
            job.prefilled = event.ids
            if job.keep and event.ids == job.keep and job.loaded.prefixes is not None and job.slot is not None:
                job.loaded.prefixes.save(job.slot.backend, job.request.client.owner)
        if isinstance(event, Finished):
            self._end(job, [event])
        else:
            self._deliver(job, event)

    def _end(self, job: Job, events: Sequence[Event]) -> None:
        self.running.remove(job)
        if job.completion is not None:
            job.completion.close()
        if job.slot is not None:
            job.loaded.slots.give(job.slot)
        for event in events:
            if isinstance(event, Finished) and job.since is not None:
                event = event._replace(usage=event.usage._replace(
                    energy=self.burden.energy(job.since, job.busy_s), thermal=self.burden.thermal(job.since)))
            self._deliver(job, event)

    def _deliver(self, job: Job, event: Event) -> None:
        self._watch(job, event)
        job.take(event)
