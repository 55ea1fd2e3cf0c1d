"""`merino probe --backend tensorrt`: what this machine's GPU can do, through TensorRT itself.

Builds an engine of each chain that `gpu_plan` lists, in float32 and in float16, times it, and reads the memory of a
fresh process. The result has the form of the CPU's probe. The builds take most of the time: minutes on a Jetson Nano.
"""
import datetime
import os
import time
from typing import Any, Callable, Dict, List, Tuple

from merino_bench.fresh_process import run_apart
from merino_bench.probe import gpu_plan, graphs
from merino_bench.probe.gpu_memory import COLUMNS
from merino_bench.probe.gpu_timing import copy_ms, opened
from merino_bench.probe.graphs import Kernel
from merino_bench.probe.tasks import Task
from merino_bench.probe.timing import MOST_RUN_S, repeat_ms, row_of
from merino_bench.sensors import environment
from merino_bench.sensors.gpu import with_gpu
from merino_bench.sensors.load import cpu_moment, load_between
from merino_runtime.backends.cuda import Cuda, cuda_faults_told
from merino_runtime.backends.engine_build import WORKSPACE_MB, Build, build, builder_version
from merino_runtime.backends.engine_file import EngineKey
from merino_runtime.backends.gpu import Device, device_of, open_cuda
from merino_runtime.backends.tensorrt_versions import TensorRt, open_tensorrt
from merino_runtime.bundle.requirements import version_tuple
from merino_runtime.errors import MerinoError
from merino_runtime.io import board

MEMORY_TIMEOUT_S = 120.0
Tell = Callable[[str], None]


def probe_gpu(work: str, schema: int, tell: Tell) -> Dict[str, Any]:
    """-> the content of probe.json. work: a folder for graphs and plans, 140 MB. Raises MerinoError where TensorRT or
    the GPU is not there, or fails."""
    trt = open_tensorrt()
    cuda = open_cuda(version_tuple(trt.version))
    started, began, before = time.perf_counter(), cpu_moment(), with_gpu(environment.state())
    with cuda_faults_told("measuring the GPU"):
        device = device_of(cuda)
        rows, small = _chain_rows(trt, cuda, device, work, tell)
        tell("copies to the host")
        rows += [row_of(Task("copy", "fp32", 0, 0, 0, 1, 1, ()), (0, 0), size, False, copy_ms(cuda, size, MOST_RUN_S))
                 for size in gpu_plan.COPY_BYTES]
    after, ended = with_gpu(environment.state()), cpu_moment()
    load = load_between(began, ended, os.cpu_count() or 1)
    tell("memory of a process")
    here = board.this_board()
    return {
        "schema": schema,
        "backend": "tensorrt",
        "date": datetime.date.today().isoformat(),
        "seconds": round(time.perf_counter() - started, 1),
        "machine": environment.machine(),
        "gpu": {"name": device.name, "compute_capability": device.capability, "shares_memory": device.integrated,
                "cuda": device.runtime, "clock_mhz": (after["gpu"] or {}).get("clock_mhz")},
        "power_mode": after["power_mode"],
        "isa": sorted(here.isa),
        "cores": here.physical_cores,
        "last_level_cache_mb": board.last_level_cache_bytes() / board.MB or None,
        "memory_mb": here.memory_total_mb,
        "dialect": "portable",
        "flags": environment.flags_of(before, after, load),
        "others_cpu_share": load.others_cpu_share,
        "left_out": [],
        "measurements": rows,
        "resident": _resident_rows(small),
    }


def _chain_rows(trt: TensorRt, cuda: Cuda, device: Device, work: str, tell: Tell) -> Tuple[List[Dict[str, Any]], str]:
    """Rows of all chains, and the path of the plan of a small one."""
    rows: List[Dict[str, Any]] = []
    small = os.path.join(work, "small.plan")
    for side, count in gpu_plan.CHAINS:
        kernel = graphs.kernel_of("portable", "chain", "fp32", columns=side, count=count)
        folder = _written(work, kernel)
        for precision in gpu_plan.PRECISIONS:
            tell(f"{count} products of {side} x {side} in {precision}")
            plan = _built(trt, device, folder, kernel, precision, tell)
            if side == COLUMNS and precision == "fp32":
                with open(small, "wb") as file:
                    file.write(plan)
            task = Task("chain", precision, side, side, 0, count, 1, ())
            size = kernel.weight_bytes // (2 if precision == "fp16" else 1)
            with opened(trt, cuda, plan, side) as calls:
                rows += [row_of(task, (0, tokens), size, False, repeat_ms(call, MOST_RUN_S)) for tokens, call in calls]
    return rows, small


def _written(work: str, kernel: Kernel) -> str:
    """-> a folder with the graph and weights."""
    folder = os.path.join(work, f"{kernel.columns}x{kernel.count}")
    os.mkdir(folder)
    graphs.write_weights(folder, kernel.weight_bytes, 0)
    os.truncate(os.path.join(folder, graphs.WEIGHTS_FILE), kernel.weight_bytes)
    with open(os.path.join(folder, "model.onnx"), "wb") as file:
        file.write(kernel.model)
    return folder


def _built(trt: TensorRt, device: Device, folder: str, kernel: Kernel, precision: str, tell: Tell) -> memoryview:
    """-> the plan."""
    key = EngineKey(device.name, device.capability, trt.version, device.runtime, "", precision, 1, gpu_plan.TOKENS,
                    builder_version())
    need_mb = 4 * kernel.weight_bytes / board.MB + WORKSPACE_MB + board.CUDA_MB + board.PROCESS_MB
    return build(graphs.chain_bundle(folder, kernel), trt, Build(key, WORKSPACE_MB, need_mb), tell)


def _resident_rows(plan: str) -> List[Dict[str, Any]]:
    """One row; none where the process fails."""
    try:
        found = run_apart("merino_bench.probe.gpu_memory", plan, MEMORY_TIMEOUT_S)
    except MerinoError:
        return []
    return [dict(found, kind="call", format="fp32", weight_bytes=0)]
