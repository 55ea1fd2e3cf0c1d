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

import numpy as np

from merino_bench import environment, kernels, plan, probe
from merino_bench.decoder_graph import decoder_bundle
from merino_bench.kernels import Kernel
from merino_bench.onnx_writer import FLOAT, Port
from merino_bench.plan import Machine, Task
from merino_bench.resident import resident_rows
from merino_runtime import board
from merino_runtime.backends import open_backend
from merino_runtime.backends.onnx_session import session_options, version_tuple
from merino_runtime.errors import MerinoError

SCHEMA = 1
MOST_SECONDS = 55.0  # of one minute; starting, writing and memory take the rest
READ_SHARE, RESIDENT_SHARE, LEAST_RUN_S, MOST_RUN_S = 0.04, 0.2, 0.01, 0.12
LEAST_RUNS = 3
PASSES = 2
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
        "flags": environment.flags_of(before, after, share),
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
    """Every task of the plan that the time allows, in passes: of each row the quietest pass counts, since what
    disturbs a machine comes and goes."""
    tasks = plan.tasks(machine)
    best: Dict[Tuple[Any, ...], Dict[str, Any]] = {}
    done: Set[Task] = set()
    written, slots = 0, PASSES * len(tasks)
    for slot in range(slots):
        task, left_s = tasks[slot % len(tasks)], deadline - time.perf_counter()
        if left_s <= 0:
            break
        tell(f"{slot + 1} of {slots}: {task_name(task)}")
        seconds = left_s / (slots - slot) / (len(task.runs) + 1)
        kernel = plan.kernel_of(task, machine.fused) if task.kind != "choose" else None
        written = kernels.write_weights(work, kernel.weight_bytes if kernel else 0, written)
        for row in time_task(onnxruntime, task, kernel, work, min(MOST_RUN_S, max(LEAST_RUN_S, seconds)),
                             machine.cache_bytes or plan.USUAL_CACHE_BYTES, deadline):
            key = (task, row["past"], row["tokens"])
            if key not in best or row["ms"] < best[key]["ms"]:
                best[key] = row
        done.add(task)
    return Result(list(best.values()), [task_name(task) for task in tasks if task not in done])


def task_name(task: Task) -> str:
    return f"{task.kind} {task.format} {task.rows}x{task.columns} x{task.count} on {task.threads} threads"


def time_task(onnxruntime: Any, task: Task, kernel: Optional[Kernel], work: str, seconds: float,
              cache_bytes: int, deadline: float) -> List[Dict[str, Any]]:
    """kernel None: no graph, but the choice of a token among `rows` logits."""
    if kernel is None:
        logits = np.random.RandomState(0).uniform(size=task.rows).astype(np.float32)
        return [row_of(task, (0, 1), 0, True, repeat_ms(lambda: int(logits.argmax()), LEAST_RUN_S))]
    path = os.path.join(work, "model.onnx")
    with open(path, "wb") as file:
        file.write(kernel.model)
    if task.kind == "decoder":
        return time_decoder(task, kernel, work, seconds, cache_bytes, deadline)
    session = onnxruntime.InferenceSession(path, session_options(onnxruntime, task.threads),
                                           providers=["CPUExecutionProvider"])
    rows: List[Dict[str, Any]] = []
    for cached_tokens, tokens in task.runs:
        if rows and time.perf_counter() > deadline:
            break
        call = bound(session, kernel, cached_tokens, tokens)
        rows.append(row_of(task, (cached_tokens, tokens), kernel.weight_bytes,
                           kernel.weight_bytes <= plan.WITHIN * cache_bytes, repeat_ms(call, seconds)))
    return rows


def time_decoder(task: Task, kernel: Kernel, work: str, seconds: float, cache_bytes: int,
                 deadline: float) -> List[Dict[str, Any]]:
    """By the runtime's backend, with the choice of a token at the end, as the benchmark has it."""
    backend = open_backend(decoder_bundle(work, kernel, task.format, task.columns, task.heads, task.count),
                           task.threads)
    rows: List[Dict[str, Any]] = []
    for cached, tokens in task.runs:
        if rows and time.perf_counter() > deadline:
            break
        backend.truncate(0)
        ids = [1] * tokens
        if cached:
            backend.prefill([1] * cached)

        def call(cached: int = cached, ids: List[int] = ids) -> Any:
            backend.truncate(cached)
            return int((backend.step(1) if len(ids) == 1 else backend.prefill(ids)).argmax())

        rows.append(row_of(task, (cached, tokens), kernel.weight_bytes,
                           kernel.weight_bytes <= plan.WITHIN * cache_bytes, repeat_ms(call, seconds)))
    backend.close()
    return rows


def bound(session: Any, kernel: Kernel, cached: int, tokens: int) -> Callable[[], Any]:
    """A call that runs the graph on arrays that stay where they are. Outputs of one shape share their memory."""
    binding, arrays, shared = session.io_binding(), {}, {}  # type: Any, Dict[str, np.ndarray], Dict[Any, np.ndarray]
    array: np.ndarray
    for port in kernel.inputs:
        shape = _shape(port, tokens)
        if port.kind == FLOAT:
            array = np.full(shape, 0.5, np.float32)
        else:
            array = np.full(shape, cached + tokens - (port.name == "last"), np.int32)
        arrays[port.name] = array
        binding.bind_input(port.name, "cpu", 0, array.dtype.type, shape, array.ctypes.data)
    for port in kernel.outputs:
        shape = _shape(port, tokens)
        if port.name.endswith(".new"):
            array = arrays[port.name[:-len(".new")]]
        else:
            array = shared.setdefault(tuple(shape), np.zeros(shape, np.float32))
        binding.bind_output(port.name, "cpu", 0, np.float32, shape, array.ctypes.data)

    def call() -> Any:
        session.run_with_iobinding(binding)
        return arrays, shared  # which must live as long as the call
    return call


def _shape(port: Port, tokens: int) -> List[int]:
    return [axis if isinstance(axis, int) else tokens for axis in port.shape]


def repeat_ms(call: Callable[[], Any], seconds: float) -> List[float]:
    """The first two runs allocate and page in; they are not counted."""
    start = time.perf_counter()
    call()
    if time.perf_counter() - start < seconds:
        call()
    samples = []  # type: List[float]
    end = time.perf_counter() + seconds
    while len(samples) < LEAST_RUNS or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        samples.append(1000 * (time.perf_counter() - start))
    return samples


def row_of(task: Task, tokens: Tuple[int, int], weight_bytes: int, cached: bool,
           samples_ms: List[float]) -> Dict[str, Any]:
    return {
        "kind": task.kind, "format": task.format, "rows": task.rows, "columns": task.columns,
        "heads": task.heads, "count": task.count, "threads": task.threads, "past": tokens[0], "tokens": tokens[1],
        "weight_bytes": weight_bytes, "cached": cached, "ms": round(statistics.median(samples_ms), 5),
        "least_ms": round(min(samples_ms), 5), "repeats": len(samples_ms),
    }
