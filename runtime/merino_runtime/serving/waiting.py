"""Requests that wait for a slot: interactive before background ones, and clients in turn, however many each sent."""
import collections
from typing import Any, Callable, Deque, Dict, List, Optional


class Waiting:
    def __init__(self) -> None:
        # By client; the client whose turn it is comes first.
        self._persons: Dict[str, Deque[Any]] = collections.OrderedDict()
        self._background: Dict[str, Deque[Any]] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self.all())

    def all(self) -> List[Any]:
        return [job for group in (self._persons, self._background) for jobs in group.values() for job in jobs]

    def add(self, job: Any) -> None:
        group = self._background if job.request.background else self._persons
        group.setdefault(job.request.client, collections.deque()).append(job)

    def remove(self, job: Any) -> bool:
        """Remove a job -> whether it was waiting."""
        group = self._background if job.request.background else self._persons
        jobs = group.get(job.request.client, ())
        if job not in jobs:
            return False
        jobs.remove(job)  # type: ignore[union-attr]
        if not jobs:
            del group[job.request.client]
        return True

    def next(self, starts: Callable[[Any], bool]) -> Optional[Any]:
        """Remove and return the first job that `starts`. Its client then comes last."""
        for group in (self._persons, self._background):
            for client, jobs in list(group.items()):
                job = jobs[0]
                if starts(job):
                    jobs.popleft()
                    del group[client]
                    if jobs:
                        group[client] = jobs
                    return job
        return None
