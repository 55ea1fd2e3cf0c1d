"""Resident memory of fresh processes: of the interpreter with its imports, and with a graph opened in it.

`python -m merino_bench.probe.memory MODEL` prints one JSON line: resident MB after the imports, after the graph was
opened and run, and at the peak. MB are 2^20 bytes.
"""

import contextlib
import json
import os
import sys
import time
from typing import Any, Dict, List

from merino_bench.fresh_process import run_separately
from merino_bench.probe.graphs import Kernel, kernel_of, kernels_of, write_weights
from merino_bench.probe.tasks import EMBEDDING_FORMATS, SQUARE, Machine, beyond_bytes
from merino_runtime.errors import MerinoError
from merino_runtime.io import board

TIMEOUT_S = 60
MOST_BYTES = 48 * 2 ** 20


def resident_rows(work: str, machine: Machine, deadline: float) -> List[Dict[str, Any]]:
    """Return one row for a graph of one operator, and per format one for matrices and one for a tied embedding, as
    large as the machine can spare. A process that fails or that the deadline leaves no time for has no row."""
    graphs = [kernel_of(machine.dialect, "call", "fp32")]
    for form in machine.formats:
        graphs.append(largest(machine, kernels_of(machine.dialect, "linear", form, rows=SQUARE[0], columns=SQUARE[1])))
        if form in EMBEDDING_FORMATS[machine.dialect]:
            graphs.append(largest(machine, kernels_of(machine.dialect, "table", form)))
    rows, written = [], 0
    for kernel in graphs:
        kind = "head" if kernel.kind == "table" else kernel.kind
        if kind != "call" and time.perf_counter() > deadline:
            break
        written = write_weights(work, kernel.weight_bytes, written)
        path = os.path.join(work, "resident.onnx")
        with open(path, "wb") as file:
            file.write(kernel.model)
        request = json.dumps([path, kernel.own_kernels])
        with contextlib.suppress(MerinoError):
            row = run_separately("merino_bench.probe.memory", request, TIMEOUT_S)
            weights = 0 if kind == "call" else kernel.weight_bytes
            rows.append(dict(row, kind=kind, format=kernel.format, weight_bytes=weights))
    return rows


def largest(machine: Machine, graphs: List[Kernel]) -> Kernel:
    """Return the largest graph that the machine can spare memory for, or the smallest if there is none."""
    most = min(MOST_BYTES, beyond_bytes(machine))
    graphs = sorted(graphs, key=lambda kernel: kernel.weight_bytes)
    return ([kernel for kernel in graphs if kernel.weight_bytes <= most] or graphs[:1])[-1]


def measure_graph(path: str, own_kernels: bool = False) -> Dict[str, float]:
    """Return the MB after the imports, after the graph was opened and run, and at the peak. own_kernels:
    see `open_graph`."""
    import numpy as np
    import onnxruntime

    from merino_bench.probe.timing import open_graph

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
