"""`merino probe`: measure this machine through the backend itself, and write the measurements as one JSON file.

Measures the read bandwidth (`bandwidth`), times graphs and reads the memory of fresh processes (`tasks` lists the
graphs, `timing` runs them). The workstation turns the file into coefficients of the latency model (`merino-edge
calibrate`). docs/formats.md describes the file.
"""
import datetime
import json
import os
import tempfile
import time
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from merino_bench.probe import bandwidth
from merino_bench.probe import graphs as kernels
from merino_bench.probe import tasks as plan
from merino_bench.probe.gpu import probe_gpu
from merino_bench.probe.tasks import Machine, Task
from merino_bench.probe.timing import LEAST_RUN_S, MOST_RUN_S, loads_kernels, resident_rows, row_of, time_task
from merino_bench.sensors import environment
from merino_runtime.backends import ONNXRUNTIME, TENSORRT
from merino_runtime.bundle import FIRST_QUANTIZED_CACHE, QUANTIZED_CACHES
from merino_runtime.bundle.requirements import require, version_tuple
from merino_runtime.errors import MerinoError
from merino_runtime.io import board
from merino_runtime.io.outputs import check_output, check_room, scratch_folder, target_of, write_output

SCHEMA = 10
MOST_SECONDS = 55.0  # of one minute; starting, writing and memory take the rest
MOST_LATE_SECONDS = 240.0  # more where the minute does not suffice for what a calibration needs
READ_SHARE, RESIDENT_SHARE = 0.04, 0.2
PASSES = 2
SHARES = 2  # a graph may take twice its share of the time left, since small ones take less than their share
# The keys that distinguish two rows
MEASURED = (
    "kind", "format", "rows", "columns", "heads", "kv_heads", "kv", "by_groups", "count", "uses", "threads", "past",
    "tokens")
FIRST_FUSED, REFUSED = (1, 18), (1, 21, 0)


def run_probe(path: str, seconds: float = MOST_SECONDS,
              report: Optional[Callable[[str], None]] = None, backend: str = ONNXRUNTIME) -> Dict[str, Any]:
    """Measure this machine for about `seconds` and write probe.json -> its content. A slow machine takes longer, and so
    does a GPU (backend `tensorrt`), for which engines are built.

    A scratch folder beside `path` takes up to 130 MB meanwhile; of a pipe or device, one in the system's folder for
    temporary files. Raise MerinoError if that is not there, or where the backend cannot be imported.
    """
    check_output(path)
    target = target_of(path)
    beside = os.path.join(tempfile.gettempdir(), "probe.json") if target.stream or target.special else target.path
    check_room(beside, os.path.dirname(beside), 2 * plan.MOST_BEYOND_BYTES)
    report = report or (lambda _: None)
    started, here = time.perf_counter(), board.this_board()
    with scratch_folder(beside) as work:
        measured = probe_gpu(work, report) if backend == TENSORRT else probe_cpu(work, started + seconds, report)
    probe = dict({
        "schema": SCHEMA, "backend": backend, "date": datetime.date.today().isoformat(),
        "seconds": round(time.perf_counter() - started, 1), "machine": environment.machine(), "isa": sorted(here.isa),
        "cores": here.physical_cores, "last_level_cache_mb": board.last_level_cache_bytes() / board.MB or None,
        "memory_mb": here.memory_total_mb}, **measured)
    probe["flags"] = [flag for flag in measured["flags"] if flag != "low-power"]  # the mode is the user's choice
    write_output(path, json.dumps(probe, indent=1) + "\n")
    return probe


def probe_cpu(work: str, deadline: float, report: Callable[[str], None]) -> Dict[str, Any]:
    """Return what probe.json says of the CPU. work: a folder for the graphs and their weights."""
    onnxruntime = require("onnxruntime", ["onnxruntime"])
    version = version_tuple(onnxruntime.__version__)
    if version == REFUSED:
        raise MerinoError("onnxruntime 1.21.0 dies on some boards: install another version.")
    machine = this_machine(version, loads_kernels(onnxruntime))
    left_s = deadline - time.perf_counter()
    resident_s = left_s * RESIDENT_SHARE
    with environment.watched() as seen:
        report("read bandwidth")
        reads = read_rows(machine, left_s * READ_SHARE)
        rows, left_out = timed_rows(onnxruntime, machine, work, deadline - resident_s, report)
    report("memory of processes")  # on a slow machine too
    resident = resident_rows(work, machine, max(deadline, time.perf_counter() + resident_s))
    return {"dialect": machine.dialect, "flags": seen["flags"], "others_cpu_share": seen["load"].others_cpu_share,
            "left_out": left_out, "measurements": reads + rows, "resident": resident}


def this_machine(version: Tuple[int, ...], own_kernels: bool = False) -> Machine:
    """Return the facts that the tasks depend on. Formats whose operators this version of ONNX Runtime lacks are left
    out. own_kernels: see `Machine`; they compute int4, and in dialect `fused` int8 too."""
    fused = version >= FIRST_FUSED
    formats = ("fp32", "int8", "int4") if own_kernels else ("fp32",) if fused else ("fp32", "int8")
    cores = board.physical_core_count()
    counts = sorted({count for count in (1, 2, 4) if count < cores} | {cores})
    caches = QUANTIZED_CACHES if version >= version_tuple(FIRST_QUANTIZED_CACHE) else ()
    return Machine(board.last_level_cache_bytes(), bandwidth.available_bytes(), tuple(counts), formats, fused,
                   caches=caches, own_kernels=own_kernels)


def read_rows(machine: Machine, seconds: float) -> List[Dict[str, Any]]:
    """Read without arithmetic, by thread count: of a buffer beyond the last-level cache, and of one within it. `ms` is
    for all of `weight_bytes`."""
    rows = []
    sizes = [bandwidth.buffer_bytes()] + ([int(plan.WITHIN * machine.cache_bytes)] if machine.cache_bytes else [])
    for index, size in enumerate(sizes):
        cached = index > 0
        buffer = bandwidth.touched_buffer(size)
        for threads in machine.threads:
            rate = bandwidth.read_gb_s(threads, seconds / len(machine.threads) / 2, buffer)
            rows.append(row_of(Task("read", "fp32", threads=threads), (0, 0), buffer.nbytes, cached,
                               [1000 * buffer.nbytes / rate / 1e9]))
    return rows


def timed_rows(onnxruntime: Any, machine: Machine, work: str, deadline: float,
               report: Callable[[str], None]) -> Tuple[List[Dict[str, Any]], List[str]]:
    """Time every task in two passes, as far as the time allows, because an interruption of seconds spoils only one of
    them. Return the rows and the names of the tasks that were left out.

    Of each row the pass with the smaller `ms` counts, because a disturbance only adds time. The tasks that a
    calibration needs at least are timed once even after the deadline, for MOST_LATE_SECONDS at most. A task that the
    deadline cuts keeps its rows and counts as left out.
    """
    tasks, latest = plan.tasks(machine), deadline + MOST_LATE_SECONDS
    needed = plan.needed_of(tasks)
    due = tasks * PASSES
    best: Dict[Tuple[Any, ...], Dict[str, Any]] = {}
    done: Set[Task] = set()
    written = 0
    for index, task in enumerate(due):
        now = time.perf_counter()
        late = now >= deadline
        if late and (now >= latest or task in done or task not in needed):
            continue
        left_s = max(0.0, deadline - now)
        report(f"{index + 1} of {len(due)}: {task_name(task)}")
        seconds = SHARES * left_s / (len(due) - index) / (len(task.runs) + 1)
        kernel = plan.kernel_of(task, machine.dialect) if task.kind != "argmax" else None
        written = kernels.write_weights(work, kernel.weight_bytes if kernel else 0, written)
        must_end = task in needed and task not in done
        rows = time_task(onnxruntime, task, kernel, work, min(MOST_RUN_S, max(LEAST_RUN_S, seconds)),
                         cache_bytes=machine.cache_bytes or plan.DEFAULT_CACHE_BYTES,
                         deadline=latest if must_end else deadline)
        for row in rows:
            key = tuple(row[name] for name in MEASURED)
            best[key] = min(best.get(key, row), row, key=lambda timing: float(timing["ms"]))
        if len(rows) == len(task.runs):
            done.add(task)
    return list(best.values()), [task_name(task) for task in tasks if task not in done]


def task_name(task: Task) -> str:
    shared = f" {task.kv_heads} kv heads" if task.kv_heads else ""
    shared += " by groups" if task.by_groups else ""
    cache = f" {task.kv} cache" if task.kv != "fp32" else ""
    size = f"{task.rows}x{task.columns} x{task.count}{shared}{cache}"
    return f"{task.kind} {task.format} {size} on {task.threads} threads"
