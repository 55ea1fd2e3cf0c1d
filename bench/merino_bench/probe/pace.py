"""How fast the machine is at the moment, by one small graph that is timed again and again.

A board throttles. A virtual machine's host gives the other threads of its cores to other guests, and moves the cores
between clusters that share a cache and clusters that do not; small operators then take 1.2 to 1.8 times as long, for
minutes. So a probe times the graph before and after each measurement, and counts those that it was quick at.
"""
import os
from typing import Any, Callable, List, Optional, Sequence

from merino_bench.probe import graphs as kernels
from merino_bench.probe.timing import LEAST_RUN_S, bound, open_graph, repeat_ms, undisturbed_ms

SIDE, MATRICES = 256, 12  # 3 MB: what most last-level caches hold
SLOW = 1.15  # times the least seen: 1.03 is the spread of a quiet machine


def pace_meter(onnxruntime: Any, work: str, threads: int, fused: bool) -> Callable[[], float]:
    """A call that measures: us of a run of the graph, the lower decile. `work`: a folder for it."""
    kernel = kernels.kernel_of("fused" if fused else "portable", "linear", "fp32", rows=SIDE, columns=SIDE,
                               count=MATRICES)
    kernels.write_weights(work, kernel.weight_bytes, 0)
    path = os.path.join(work, "pace.onnx")
    with open(path, "wb") as file:
        file.write(kernel.model)
    run = bound(open_graph(onnxruntime, path, threads), kernel, 0, 1)
    return lambda: 1000 * undisturbed_ms(repeat_ms(run, LEAST_RUN_S))


def of_quick_machine(rows: Sequence[Any], paces_us: Sequence[Optional[float]], least_us: Optional[float]) -> List[Any]:
    """Those measured while the machine was quick, each at such a pace; all where there are none."""
    return [row for row, pace_us in zip(rows, paces_us) if not is_slow(pace_us, least_us)] or list(rows)


def is_slow(pace_us: Optional[float], least_us: Optional[float]) -> bool:
    """By the least that this machine has shown; not where nothing is known."""
    return pace_us is not None and least_us is not None and pace_us > SLOW * least_us
