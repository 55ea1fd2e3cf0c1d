"""Measurements at this machine's best pace: a small graph is timed before and after, and what was slower is repeated.

For a shared virtual machine. Its host gives the other threads of the cores to other guests and moves the cores between
clusters that share a cache and clusters that do not: small operators then take 1.2 to 1.8 times as long, for minutes.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from merino_bench.probe.timing import LEAST_RUN_S, lower_decile_ms, repeat_ms
from merino_runtime.backends.onnx_session import session_options
from merino_runtime.board import usable_cpus

SIDE, MATRICES = 256, 12  # 3 MB of float32: what most last-level caches hold
SLOW = 1.15  # times the shortest seen: 1.03 is the spread of a quiet machine
PAUSE_S = 2.0
FLAG = "slow"


def pace_meter(folder: Path, threads: int) -> Callable[[], float]:
    """A call that runs the graph for some milliseconds -> us of one run, the lower decile."""
    random = np.random.default_rng(0)
    names = ["x", *(f"y{index}" for index in range(MATRICES))]
    weights = [
        numpy_helper.from_array(random.normal(0, SIDE**-0.5, (SIDE, SIDE)).astype(np.float32), f"w{index}")
        for index in range(MATRICES)
    ]
    nodes = [helper.make_node("MatMul", [names[at], f"w{at}"], [names[at + 1]]) for at in range(MATRICES)]
    first, last = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, SIDE]) for name in (names[0], names[-1]))
    graph = helper.make_graph(nodes, "pace", [first], [last], weights)
    path = folder / "pace.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    session = onnxruntime.InferenceSession(
        str(path), session_options(onnxruntime, threads), providers=["CPUExecutionProvider"]
    )
    feeds = {"x": np.full((1, SIDE), 0.5, np.float32)}
    return lambda: 1000 * lower_decile_ms(repeat_ms(lambda: session.run(None, feeds), LEAST_RUN_S))


class AtPace:
    """Calls measurements while the machine is as quick as this object ever saw it; pauses `pauses` times in all."""

    def __init__(self, folder: Path, pauses: int) -> None:
        self.pauses = pauses
        self.pace_us = pace_meter(folder, len(usable_cpus()))
        self.least_us = min(self.pace_us() for _ in range(10))

    def __call__(self, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `measure` returns, with `slow` among its flags once no pause is left."""
        while True:
            while self.slow() and self.pauses:
                self.pauses -= 1
                time.sleep(PAUSE_S)
            found = measure()
            if not self.slow():
                return found
            if not self.pauses:
                return {**found, "flags": [*found["flags"], FLAG]}
            self.pauses -= 1

    def slow(self) -> bool:
        now_us = self.pace_us()
        self.least_us = min(now_us, self.least_us)
        return now_us > SLOW * self.least_us
