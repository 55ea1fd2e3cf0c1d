"""What other processes, and other guests of the host, took of the CPU between two moments.

Clock ticks see what runs for 10 ms or longer. A shorter burst shows in two exact counters of the kernel: the time that
runnable threads of this process waited for a core (schedstat), and the involuntary context switches. A source that this
machine lacks gives None.
"""
import glob
import os
import re
import time
from typing import Any, Dict, NamedTuple, Optional

BUSY_SHARE = 0.05  # of the time: more than that changes the measurement
LEAST_WINDOW_S = 0.25  # the kernel counts CPU time in steps of 0.01 s


class CpuMoment(NamedTuple):
    """Readings to subtract. Times in seconds; of this process where nothing else is said."""
    clock_s: float
    busy_s: Optional[float]  # of all processes on all cores, stolen time included
    stolen_s: Optional[float]  # by other guests of the host
    own_s: float
    waited_s: Optional[float]  # its threads were runnable and had no core
    preemptions: Optional[int]  # involuntary context switches


class Load(NamedTuple):
    """Shares from 0 to 1; None where the source is missing or the time was too short to tell."""
    others_cpu_share: Optional[float]  # of all cores' time, that other processes and guests took
    steal_share: Optional[float]  # of all cores' time, that other guests took
    waiting_share: Optional[float]  # of the time that our threads were runnable, that they had no core
    preemptions_per_s: Optional[float]

    @property
    def busy(self) -> bool:
        shares = (self.others_cpu_share, self.waiting_share)
        return any(share is not None and share > BUSY_SHARE for share in shares)

    def as_record(self) -> Dict[str, Any]:
        return dict(self._asdict())


def cpu_moment(root: str = "/") -> CpuMoment:
    own, stat = os.times(), _read(os.path.join(root, "proc/stat"))
    return CpuMoment(clock_s=time.perf_counter(), busy_s=busy_s(stat), stolen_s=stolen_s(stat),
                     own_s=own.user + own.system, waited_s=waited_s(root), preemptions=_preemptions())


def load_between(before: CpuMoment, after: CpuMoment, cpus: int) -> Load:
    window_s = after.clock_s - before.clock_s
    long_enough = window_s >= LEAST_WINDOW_S
    own_s = after.own_s - before.own_s
    busy, stolen = _grown(before.busy_s, after.busy_s), _grown(before.stolen_s, after.stolen_s)
    waited, preemptions = _grown(before.waited_s, after.waited_s), _grown(before.preemptions, after.preemptions)
    return Load(
        others_cpu_share=_share(None if busy is None else busy - own_s, window_s * cpus) if long_enough else None,
        steal_share=_share(stolen, window_s * cpus) if long_enough else None,
        waiting_share=None if waited is None else _share(waited, own_s + waited),
        preemptions_per_s=None if preemptions is None else round(preemptions / max(window_s, 1e-9), 1))


def busy_s(stat: Optional[str], ticks_per_s: Optional[int] = None) -> Optional[float]:
    """Seconds of all cores since boot: user + nice + system + irq + softirq + steal, without idle and iowait."""
    found = re.search(r"^cpu +(.+)$", stat or "", re.MULTILINE)
    if not found:
        return None
    ticks = [int(word) for word in found.group(1).split()[:8]]  # guest time is in user's already
    return (sum(ticks) - sum(ticks[3:5])) / (ticks_per_s or os.sysconf("SC_CLK_TCK"))


def stolen_s(stat: Optional[str], ticks_per_s: Optional[int] = None) -> Optional[float]:
    """Seconds since boot in which a core had work and the host gave it to another guest."""
    found = re.search(r"^cpu +(?:\d+ +){7}(\d+)", stat or "", re.MULTILINE)
    return int(found.group(1)) / (ticks_per_s or os.sysconf("SC_CLK_TCK")) if found else None


def waited_s(root: str = "/") -> Optional[float]:
    """Seconds that the threads of this process have waited for a core; None where the kernel does not count them."""
    texts = [_read(path) for path in glob.glob(os.path.join(root, "proc/self/task/*/schedstat"))]
    waits_ns = [int(text.split()[1]) for text in texts if text]  # a thread may end meanwhile
    return sum(waits_ns) / 1e9 if waits_ns else None


def _preemptions() -> Optional[int]:
    try:
        import resource  # here, because Windows has no such module
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _grown(before: Optional[float], after: Optional[float]) -> Optional[float]:
    return None if before is None or after is None else after - before


def _share(part_s: Optional[float], whole_s: float) -> Optional[float]:
    return None if part_s is None or whole_s <= 0 else round(max(0.0, part_s) / whole_s, 4)


def _read(path: str) -> Optional[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return None
