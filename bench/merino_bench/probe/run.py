"""`merino probe`: what this machine can do, measured through the backend itself, as one JSON file.

Times the graphs of `plan`, reads memory (`probe`), and holds processes apart for their memory (`resident`). Raw
medians go out; what they mean for a model is found on the workstation (`merino-edge calibrate`). The file is described
in docs/formats.md.
"""
import datetime
import json
import os
import shutil
import statistics
import tempfile
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set, Tuple

from merino_bench.probe import bandwidth as probe
from merino_bench.probe import graphs as kernels
from merino_bench.probe import tasks as plan
from merino_bench.probe.memory import resident_rows
from merino_bench.probe.pace import is_slow, of_quick_machine, pace_meter
from merino_bench.probe.tasks import Machine, Task
from merino_bench.probe.timing import LEAST_RUN_S, MOST_RUN_S, row_of, time_task
from merino_bench.sensors import environment
from merino_runtime import board
from merino_runtime.backends.onnx_session import version_tuple
from merino_runtime.errors import MerinoError

SCHEMA = 4
MOST_SECONDS = 55.0  # of one minute; starting, writing and memory take the rest
READ_SHARE, RESIDENT_SHARE = 0.04, 0.2
PASSES, MOST_PASSES = 2, 6  # the most where the machine was slow
SHARES = 2  # of the time that is left to it a graph may take, since small ones take less
TIMES = ("ms", "median_ms", "least_ms")
# What tells rows apart
MEASURED = ("kind", "format", "rows", "columns", "heads", "count", "uses", "threads", "past", "tokens")
FIRST_FUSED, FIRST_BLOCKED, REFUSED = (1, 18), (1, 23), (1, 21, 0)


class Result(NamedTuple):
    rows: List[Dict[str, Any]]
    left_out: List[str]


def run_probe(path: str, seconds: float = MOST_SECONDS,
              tell: Optional[Callable[[str], None]] = None) -> Dict[str, Any]:
    """Writes and returns probe.json. Works in a folder beside `path`, which is removed: up to 130 MB."""
    folder = os.path.dirname(os.path.abspath(path))
    check_can_work(folder)
    tell = tell or (lambda _: None)
    deadline = time.perf_counter() + seconds
    work = tempfile.mkdtemp(prefix=".probe-", dir=folder)
    try:
        found = probe_machine(work, deadline, tell)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    beside = "{}.part".format(path)
    with open(beside, "w") as file:
        json.dump(found, file, indent=1)
        file.write("\n")
    os.replace(beside, path)
    return found


def check_can_work(folder: str) -> None:
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise MerinoError(f"cannot write into {folder!r}. Choose another -o.")
    free_mb = shutil.disk_usage(folder).free / board.MB
    if free_mb < 2 * plan.MOST_BEYOND_BYTES / board.MB:
        raise MerinoError(f"{folder!r} has {free_mb:.0f} MB free, the probe needs up to "
                          f"{2 * plan.MOST_BEYOND_BYTES // board.MB} MB for a while. Choose another -o.")


def probe_machine(work: str, deadline: float, tell: Callable[[str], None]) -> Dict[str, Any]:
    """The content of probe.json; `work` is a folder for the graphs and their weights."""
    began, before = environment.cpu_moment(), environment.state()
    onnxruntime = import_backend()
    machine = this_machine(version_tuple(onnxruntime.__version__))
    started = time.perf_counter()
    left_s = deadline - started
    tell("read bandwidth")
    reads = read_rows(machine, left_s * READ_SHARE)
    timed = timed_rows(onnxruntime, machine, work, deadline - left_s * RESIDENT_SHARE, tell)
    after, ended = environment.state(), environment.cpu_moment()
    share = environment.others_share(began, ended, os.cpu_count() or 1)
    tell("memory of processes")
    resident = resident_rows(work, machine, deadline)
    here = board.this_board()
    return {
        "schema": SCHEMA,
        "date": datetime.date.today().isoformat(),
        "seconds": round(time.perf_counter() - started, 1),
        "machine": environment.machine(),
        "isa": sorted(here.isa),
        "cores": here.physical_cores,
        "last_level_cache_mb": machine.cache_bytes / board.MB or None,
        "memory_mb": here.memory_total_mb,
        "dialect": "fused" if machine.fused else "portable",
        "flags": environment.flags_of(before, after, share) + ["slow"] * was_slow(timed.rows),
        "others_cpu_share": share,
        "left_out": timed.left_out,
        "measurements": reads + timed.rows,
        "resident": resident,
    }


def import_backend() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MerinoError(f"onnxruntime cannot be imported ({error}): the probe measures through it. "
                          "Run: python3 -m pip install --only-binary=:all: onnxruntime") from error
    if version_tuple(onnxruntime.__version__) == REFUSED:
        raise MerinoError("onnxruntime 1.21.0 dies on some boards: install another version.")
    return onnxruntime


def this_machine(version: Tuple[int, ...]) -> Machine:
    """What to probe here: formats that this version has no operators for are left out."""
    fused = version >= FIRST_FUSED
    formats = ("fp32", "int8", "int4") if version >= FIRST_BLOCKED else ("fp32",) if fused else ("fp32", "int8")
    cores = board.physical_core_count()
    counts = sorted({count for count in (1, 2, 4) if count < cores} | {cores})
    return Machine(probe.last_level_cache_bytes(), probe.available_bytes(), tuple(counts), formats, fused)


def read_rows(machine: Machine, seconds: float) -> List[Dict[str, Any]]:
    """Pure reads per thread count, beyond the cache and within it; ms for all of `weight_bytes`."""
    rows = []
    sizes = [probe.buffer_bytes()] + ([int(plan.WITHIN * machine.cache_bytes)] if machine.cache_bytes else [])
    for index, size in enumerate(sizes):
        cached = index > 0
        buffer = probe.touched_buffer(size)
        for threads in machine.threads:
            rate = probe.read_gb_s(threads, seconds / len(machine.threads) / 2, buffer)
            rows.append(row_of(Task("read", "fp32", 0, 0, 0, 1, threads, ()), (0, 0), buffer.nbytes, cached,
                               [1000 * buffer.nbytes / rate / 1e9]))
    return rows


def timed_rows(onnxruntime: Any, machine: Machine, work: str, deadline: float,
               tell: Callable[[str], None]) -> Result:
    """Every task of the plan that the time allows, in passes: of each row the median of the passes counts, since what
    memory gives comes and goes. A pass while the machine was slow counts where no other does, and is made up for while
    there is time."""
    tasks = plan.tasks(machine)
    due = tasks * PASSES
    found: Dict[Tuple[Any, ...], List[Dict[str, Any]]] = {}
    done: Set[Task] = set()
    pace = pace_meter(onnxruntime, work, machine.threads[-1], machine.fused)
    before_us = least_us = pace()
    written, slot = os.path.getsize(os.path.join(work, kernels.WEIGHTS_FILE)), 0
    while slot < len(due) and time.perf_counter() < deadline:
        task, left_s = due[slot], deadline - time.perf_counter()
        tell(f"{slot + 1} of {len(due)}: {task_name(task)}")
        seconds = SHARES * left_s / (len(due) - slot) / (len(task.runs) + 1)
        slot += 1
        kernel = plan.kernel_of(task, machine.fused) if task.kind != "choose" else None
        written = kernels.write_weights(work, kernel.weight_bytes if kernel else 0, written)
        rows = time_task(onnxruntime, task, kernel, work, min(MOST_RUN_S, max(LEAST_RUN_S, seconds)),
                         machine.cache_bytes or plan.DEFAULT_CACHE_BYTES, deadline)
        after_us = pace()
        least_us = min(least_us, after_us)
        worst_us = round(max(before_us, after_us), 3)
        before_us = after_us
        for row in rows:
            found.setdefault(tuple(row[name] for name in MEASURED), []).append(dict(row, pace_us=worst_us))
        if is_slow(worst_us, least_us) and due.count(task) < MOST_PASSES:
            due.append(task)
        done.add(task)
    return Result([middle(passes, least_us) for passes in found.values()],
                  [task_name(task) for task in tasks if task not in done])


def middle(passes: List[Dict[str, Any]], least_us: float) -> Dict[str, Any]:
    """Of one row, the median of each time over the passes of a quick machine; over all where there are none."""
    quick = of_quick_machine(passes, [row["pace_us"] for row in passes], least_us)
    return {**quick[-1], **{key: statistics.median(row[key] for row in quick) for key in TIMES},
            "repeats": sum(row["repeats"] for row in quick)}


def was_slow(rows: List[Dict[str, Any]]) -> bool:
    """Whether some rows were only measured while the machine was slower than for others."""
    least_us = min((row["pace_us"] for row in rows), default=None)
    return any(is_slow(row["pace_us"], least_us) for row in rows)


def task_name(task: Task) -> str:
    return f"{task.kind} {task.format} {task.rows}x{task.columns} x{task.count} on {task.threads} threads"
