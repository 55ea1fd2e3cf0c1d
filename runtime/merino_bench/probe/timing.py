"""Measure one graph of the probe: its time in the backend, and the memory of a fresh process that opens it.

`python -m merino_bench.probe.timing [MODEL, OWN_KERNELS]` prints one JSON line: resident MB (2^20 bytes) after the
imports, after the graph was opened and run, and at the peak.
"""
import contextlib
import json
import os
import statistics
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from merino_bench.fresh_process import run_separately
from merino_bench.probe import tasks as plan
from merino_bench.probe.graphs import Kernel, bundle_of, kernels_of, write_weights
from merino_bench.probe.tasks import Machine, Task
from merino_runtime.backends import open_backend
from merino_runtime.backends.onnx import OnnxBackend
from merino_runtime.backends.onnx_arrays import element_type
from merino_runtime.backends.onnx_session import faster_attention, register_kernels, session_options
from merino_runtime.bundle import Port
from merino_runtime.errors import MerinoError
from merino_runtime.io import board

WARM_UP_RUNS, WARM_UP_S, LEAST_RUN_S, MOST_RUN_S = 12, 0.03, 0.01, 0.3
QUANTIZED_CODE = 0x55  # in 8 bits, or twice 5 in 4
LEAST_RUNS, ENOUGH_RUNS = 3, 20  # a lower decile of less than 20 is their least
MEMORY_TIMEOUT_S, MOST_RESIDENT_BYTES = 60, 48 * plan.MB


def time_task(onnxruntime: Any, task: Task, kernel: Optional[Kernel], work: str, seconds: float,
              cache_bytes: int, deadline: float) -> List[Dict[str, Any]]:
    """Time each run of a task for about `seconds`, and return a row per run. A decoder runs in the runtime's backend,
    with the argmax of a token at the end. kernel None: no graph, but the argmax of `rows` logits."""
    if kernel is None:
        logits = np.random.RandomState(0).uniform(size=task.rows).astype(np.float32)
        return [row_of(task, (0, 1), 0, True, repeat_ms(lambda: int(logits.argmax()), LEAST_RUN_S))]
    path = os.path.join(work, "model.onnx")
    with open(path, "wb") as file:
        file.write(kernel.model)
    backend: Optional[OnnxBackend] = None
    if task.kind == "decoder":
        opened = open_backend(bundle_of(work, kernel), task.threads)
        assert isinstance(opened, OnnxBackend)
        backend = opened
        for entries in backend.cache.values():
            entries.fill(0.5)  # this also gives them memory of their own
    else:
        with faster_attention(bundle_of(work, kernel)):
            session = open_graph(onnxruntime, path, task.threads, kernel.own_kernels)
    rows: List[Dict[str, Any]] = []
    for cached, tokens in task.runs:
        if rows and time.perf_counter() > deadline:
            break
        call = decoder_call(backend, cached, tokens) if backend else bound(session, kernel, cached, tokens)
        rows.append(row_of(task, (cached, tokens), kernel.weight_bytes,
                           kernel.weight_bytes <= plan.WITHIN * cache_bytes, repeat_ms(call, seconds)))
    if backend:
        backend.close()
    return rows


def decoder_call(backend: OnnxBackend, cached: int, tokens: int) -> Callable[[], Any]:
    """Return a call that runs the decoder over `tokens` new positions behind `cached` ones."""
    backend.truncate(0)
    backend.ids.extend([1] * cached)  # the values of the entries do not matter to the time
    ids = [1] * tokens

    def call() -> Any:
        backend.truncate(cached)
        return int((backend.step(1) if len(ids) == 1 else backend.prefill(ids)).argmax())
    return call


def open_graph(onnxruntime: Any, path: str, threads: int, own_kernels: bool = False) -> Any:
    """Return a session as the runtime opens it. own_kernels: whether the graph has operators of this project's
    kernels."""
    options = session_options(onnxruntime, threads)
    if own_kernels:
        register_kernels(onnxruntime, options, threads, threads)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def loads_kernels(onnxruntime: Any) -> bool:
    """Return whether this project's kernels can be loaded here."""
    try:
        register_kernels(onnxruntime, onnxruntime.SessionOptions(), 1, 1)
    except Exception:  # onnxruntime's exceptions have no base of their own
        return False
    return True


def bound(session: Any, kernel: Kernel, cached: int, tokens: int) -> Callable[[], Any]:
    """Return a call that runs the graph on arrays that stay where they are. Outputs of one shape share their memory."""
    binding, arrays, shared = session.io_binding(), {}, {}  # type: Any, Dict[str, np.ndarray], Dict[Any, np.ndarray]
    for port in kernel.inputs:
        array = np.full(_shape(port, tokens), _value(port, cached, tokens), port.dtype)
        arrays[port.name] = array
        binding.bind_input(port.name, "cpu", 0, element_type(array), list(array.shape), array.ctypes.data)
    for port in kernel.outputs:
        shape = _shape(port, tokens)
        if kernel.in_place and port.name.startswith("present."):
            array = arrays[port.name.replace("present", "past_key_values")]
        else:
            array = shared.setdefault((tuple(shape), port.dtype), np.zeros(shape, port.dtype))
        binding.bind_output(port.name, "cpu", 0, element_type(array), shape, array.ctypes.data)

    def call() -> Any:
        session.run_with_iobinding(binding)
        return arrays, shared  # which must live as long as the call
    return call


def _value(port: Port, cached: int, tokens: int) -> float:
    """Return the value that fills an input. Any number will do for activations, weights and cached entries; positions
    must lie within the context."""
    if port.dtype == "float32":
        return 0.5
    if port.name.startswith("past_key_values."):
        return QUANTIZED_CODE
    return cached + tokens if port.name == "total" else cached + tokens - 1


def _shape(port: Port, tokens: int) -> List[int]:
    return [axis if isinstance(axis, int) else tokens for axis in port.shape]


def repeat_ms(call: Callable[[], Any], seconds: float) -> List[float]:
    """Return the ms of repeated calls, over at most so many seconds, or until there are enough of them. The first dozen
    calls are not counted: they allocate memory, read pages in and fill the caches."""
    began = time.perf_counter()
    for _ in range(WARM_UP_RUNS):
        call()
        if time.perf_counter() - began > min(WARM_UP_S, seconds):
            break
    samples = []  # type: List[float]
    began = time.perf_counter()
    while len(samples) < LEAST_RUNS or time.perf_counter() - began < (
            LEAST_RUN_S if len(samples) >= ENOUGH_RUNS else seconds):
        start = time.perf_counter()
        call()
        samples.append(1000 * (time.perf_counter() - start))
    return samples


def lower_decile_ms(samples_ms: Sequence[float]) -> float:
    """Return the ms that a tenth of the runs undercut, because a disturbance only adds time. On an idle machine the
    median is within 2 % of it. Bursts of other work, milliseconds long, move the median but not the lower decile."""
    return sorted(samples_ms)[len(samples_ms) // 10]


def row_of(task: Task, tokens: Tuple[int, int], weight_bytes: int, cached: bool,
           samples_ms: List[float]) -> Dict[str, Any]:
    return {
        "kind": task.kind, "format": task.format, "rows": task.rows, "columns": task.columns,
        "heads": task.heads, "kv_heads": task.cached_heads, "kv": task.kv, "count": task.count,
        "uses": task.uses, "by_groups": task.by_groups, "threads": task.threads, "past": tokens[0], "tokens": tokens[1],
        "weight_bytes": weight_bytes, "cached": cached,
        "ms": round(lower_decile_ms(samples_ms), 5), "median_ms": round(statistics.median(samples_ms), 5),
        "least_ms": round(min(samples_ms), 5), "repeats": len(samples_ms),
    }


def resident_rows(work: str, machine: Machine, deadline: float) -> List[Dict[str, Any]]:
    """Return one row for a graph of one operator, and per format one for matrices and one for a tied embedding, as
    large as the machine can spare. A process that fails or that the deadline leaves no time for has no row."""
    # 1. The graphs: of each group the largest that the machine can spare memory for, or the smallest.
    (rows, columns), most = plan.SQUARE, min(MOST_RESIDENT_BYTES, plan.beyond_bytes(machine))
    groups = [kernels_of(machine.dialect, "call", "fp32")]
    for form in machine.formats:
        groups.append(kernels_of(machine.dialect, "linear", form, rows=rows, columns=columns))
        if form in plan.EMBEDDING_FORMATS[machine.dialect]:
            groups.append(kernels_of(machine.dialect, "table", form))
    resident, written = [], 0
    for group in groups:
        group = sorted(group, key=lambda kernel: kernel.weight_bytes)
        kernel = ([kernel for kernel in group if kernel.weight_bytes <= most] or group[:1])[-1]
        kind = "head" if kernel.kind == "table" else kernel.kind
        if kind != "call" and time.perf_counter() > deadline:
            break
        # 2. Its weights and its process.
        written = write_weights(work, kernel.weight_bytes, written)
        path = os.path.join(work, "resident.onnx")
        with open(path, "wb") as file:
            file.write(kernel.model)
        with contextlib.suppress(MerinoError):
            row = run_separately("merino_bench.probe.timing", json.dumps([path, kernel.own_kernels]), MEMORY_TIMEOUT_S)
            weights = 0 if kind == "call" else kernel.weight_bytes
            resident.append(dict(row, kind=kind, format=kernel.format, weight_bytes=weights))
    return resident


def measure_graph(path: str, own_kernels: bool = False) -> Dict[str, float]:
    """Return the MB after the imports, after the graph was opened and run, and at the peak. own_kernels:
    see `open_graph`."""
    import onnxruntime

    with contextlib.suppress(ImportError):
        import tokenizers  # noqa: F401 - text needs it, so its memory counts
    imports_mb = board.rss_mb() or 0.0  # None: the system does not report it
    session = open_graph(onnxruntime, path, 1, own_kernels)
    port = session.get_inputs()[0]
    if port.name == "input_ids":
        session.run(None, {port.name: np.ones((1, 1), np.int64)})
    else:
        session.run(None, {"x": np.full((1, 1, port.shape[-1]), 0.5, np.float32)})
    return {"imports_mb": imports_mb, "open_mb": board.rss_mb() or 0.0, "peak_mb": board.peak_rss_mb()}


if __name__ == "__main__":
    print(json.dumps(measure_graph(*json.loads(sys.argv[1]))))
