"""`merino probe --backend tensorrt`: what this machine's GPU can do, through TensorRT itself.

Builds an engine of each chain of matrix multiplications, in float32 and in float16, times it, and reads the memory of
a fresh process. The result has the form of the CPU's probe. The builds take most of the time: minutes on a Jetson Nano.

A multiplication of a chain needs the one before it, so the GPU runs them one after the other, a kernel each. Two chains
of small matrices separate the cost of a launch from the other costs of a run. A chain that no cache holds gives the
read bandwidth, over one new position, and the rate of multiplications, over many. A chain runs as the TensorRT backend
runs a decoder: one copy in, the network, one copy back, replayed as a CUDA graph where it is a decode step; one strided
copy on the device; one wait.

`python -m merino_bench.probe.gpu PLAN` prints the memory that TensorRT takes before any model, as one JSON line.
"""

import contextlib
import ctypes
import json
import os
import sys
from typing import Any, Callable, Dict, Iterator, List, Tuple

import numpy as np

from merino_bench.fresh_process import run_separately
from merino_bench.probe import graphs
from merino_bench.probe.bandwidth import available_bytes
from merino_bench.probe.tasks import Task
from merino_bench.probe.timing import MOST_RUN_S, repeat_ms, row_of
from merino_bench.sensors import environment
from merino_runtime.backends.cuda import ON_DEVICE, TO_DEVICE, TO_HOST, Cuda, device_of, open_cuda, raising_cuda_faults
from merino_runtime.backends.engine_build import DECODE, WORKSPACE_MB, build, builder_version
from merino_runtime.backends.engine_file import EngineKey
from merino_runtime.backends.tensorrt_model import NotLoadedError, bind, engine_of
from merino_runtime.backends.tensorrt_versions import TensorRt, open_tensorrt
from merino_runtime.bundle.requirements import version_tuple
from merino_runtime.errors import MerinoError
from merino_runtime.io import board

# (side of the square matrices, their number): 64 MiB in float32 first, which brings the GPU's clock up
CHAINS: Tuple[Tuple[int, int], ...] = ((1024, 16), (64, 8), (64, 64))
PRECISIONS = ("fp32", "fp16")
TOKENS = 256  # where computing takes longer than reading the weights, on the boards' GPUs
COPY_BYTES = (2 ** 16, 2 ** 22)  # to the host: two sizes, whose difference in time is the cost of the bytes
ENTRY_BYTES = 32  # width of the strided copy on the device, which stands for new keys and values
FLOAT_BYTES = 4  # of an engine's inputs and outputs, in each precision
COLUMNS = 64  # of the small chain, whose engine the memory of a process is read with
MEMORY_TIMEOUT_S = 120.0
Report = Callable[[str], None]


@contextlib.contextmanager
def opened(trt: TensorRt, cuda: Cuda, plan: Any, columns: int) -> Iterator[List[Tuple[int, Callable[[], None]]]]:
    """Yield (tokens, a call that runs the chain over them and waits) of both profiles. Raise MerinoError, CudaError."""
    row, size = FLOAT_BYTES * columns, FLOAT_BYTES * columns * TOKENS
    with contextlib.ExitStack() as stack:
        try:
            engine = engine_of(stack, trt, plan)
        except NotLoadedError as error:
            raise MerinoError(f"TensorRT {trt.version} does not load a plan that it has just built: {error}. Stop "
                              "programs that use the GPU.") from error
        loaded = bind(stack, trt, cuda, engine, TOKENS)
        stream = loaded.stream
        source, target, entries = (cuda.malloc(length, stack) for length in (size, size, row))
        pinned = cuda.host_alloc(2 * row, stack)
        stack.callback(cuda.settle, stream)  # first of all
        cuda.memset(source, 0, size, stream)
        ctypes.memset(pinned, 0, row)
        addresses = {name: source if tensor.is_input else target for name, tensor in loaded.tensors.items()}

        def enqueue(number: int) -> None:
            cuda.memcpy(source, pinned, row, TO_DEVICE, stream)
            loaded.bound[number].enqueue(stream)
            cuda.memcpy(pinned + row, target, row, TO_HOST, stream)

        def run(number: int, graph: int) -> None:
            if graph:
                cuda.launch(graph, stream)
            else:
                enqueue(number)
            cuda.memcpy_2d(entries, ENTRY_BYTES, target, ENTRY_BYTES, ENTRY_BYTES, row // ENTRY_BYTES, ON_DEVICE,
                           stream)
            cuda.synchronize(stream)

        calls: List[Tuple[int, Callable[[], None]]] = []
        for number, tokens in enumerate((1, TOKENS)):
            loaded.bound[number].set_addresses(addresses)
            run(number, 0)
            graph = cuda.captured(stream, lambda: enqueue(DECODE), stack) if number == DECODE else 0
            calls.append((tokens, lambda number=number, graph=graph: run(number, graph)))  # type: ignore[misc]
        yield calls


def copy_ms(cuda: Cuda, size: int, seconds: float) -> List[float]:
    """Return the samples of bringing `size` bytes to where a sampler reads them: to pinned memory, and from there to an
    array."""
    with contextlib.ExitStack() as stack:
        stream = cuda.stream_create(stack)
        source, pinned = cuda.malloc(size, stack), cuda.host_alloc(size, stack)
        stack.callback(cuda.settle, stream)  # first of all
        cuda.memset(source, 0, size, stream)
        array = np.zeros(size, np.uint8)
        shown = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pinned))

        def call() -> None:
            cuda.memcpy(pinned, source, size, TO_HOST, stream)
            cuda.synchronize(stream)
            np.copyto(array, shown)

        return repeat_ms(call, seconds)


def probe_gpu(work: str, report: Report) -> Dict[str, Any]:
    """Return what probe.json says of the GPU. work: a folder for graphs and plans, 140 MB. Raise MerinoError if
    TensorRT or the GPU is missing or fails."""
    trt = open_tensorrt()
    cuda = open_cuda(version_tuple(trt.version))
    small = os.path.join(work, "small.plan")
    rows: List[Dict[str, Any]] = []
    with environment.watched() as seen, raising_cuda_faults("measuring the GPU"):
        device = device_of(cuda)
        for side, count in CHAINS:
            # 1. A folder with the chain's graph and weights.
            kernel = graphs.kernel_of("portable", "chain", "fp32", columns=side, count=count)
            folder = os.path.join(work, f"{side}x{count}")
            os.mkdir(folder)
            graphs.write_weights(folder, kernel.weight_bytes, 0)
            os.truncate(os.path.join(folder, graphs.WEIGHTS_FILE), kernel.weight_bytes)
            with open(os.path.join(folder, "model.onnx"), "wb") as file:
                file.write(kernel.model)
            for precision in PRECISIONS:
                # 2. Build its engine.
                report(f"{count} multiplications of {side} x {side} in {precision}")
                built = (trt.version, cuda.runtime, "", precision, 1, TOKENS, builder_version())
                key = EngineKey(device.name, device.capability, *built)
                need_mb = 4 * kernel.weight_bytes / board.MB + WORKSPACE_MB + board.CUDA_MB + board.PROCESS_MB
                plan = build(graphs.bundle_of(folder, kernel), trt, key, workspace_mb=WORKSPACE_MB, need_mb=need_mb)
                if side == COLUMNS and precision == "fp32":
                    with open(small, "wb") as file:
                        file.write(plan)
                # 3. Time it over one token and over many.
                task = Task("chain", precision, side, side, count=count)
                size = kernel.weight_bytes // (2 if precision == "fp16" else 1)
                with opened(trt, cuda, plan, side) as calls:
                    rows += [row_of(task, (0, tokens), size, False, repeat_ms(call, MOST_RUN_S))
                             for tokens, call in calls]
        report("copies to the host")
        rows += [row_of(Task("copy", "fp32"), (0, 0), size, False, copy_ms(cuda, size, MOST_RUN_S))
                 for size in COPY_BYTES]
    report("memory of a process")
    resident = []
    with contextlib.suppress(MerinoError):
        memory = run_separately("merino_bench.probe.gpu", small, MEMORY_TIMEOUT_S)
        resident = [dict(memory, kind="call", format="fp32", weight_bytes=0)]
    return {
        "gpu": {"name": device.name, "compute_capability": device.capability, "shares_memory": device.integrated,
                "cuda": cuda.runtime, "clock_mhz": (seen["after"]["gpu"] or {}).get("clock_mhz")},
        "power_mode": seen["after"]["power_mode"], "dialect": "portable", "flags": seen["flags"],
        "others_cpu_share": seen["load"].others_cpu_share, "left_out": [], "measurements": rows, "resident": resident,
    }


def measure_memory(path: str) -> Dict[str, float]:
    """Return the resident MB (2^20 bytes) after the imports, after CUDA was started and a small engine was run, and at
    the peak. `gpu_mb` is what the whole machine lost meanwhile beyond what became resident here: the CUDA context on a
    Jetson, whose GPU shares the memory."""
    with contextlib.suppress(ImportError):
        import tokenizers  # noqa: F401 - text needs it, so its memory counts
    trt = open_tensorrt()
    with open(path, "rb") as file:
        plan = file.read()
    imports_mb, free_mb = board.rss_mb() or 0.0, available_bytes() / board.MB
    cuda = open_cuda(version_tuple(trt.version))
    with opened(trt, cuda, plan, COLUMNS) as calls:
        calls[0][1]()
        open_mb, lost_mb = board.rss_mb() or 0.0, free_mb - available_bytes() / board.MB
    return {"imports_mb": imports_mb, "open_mb": open_mb, "peak_mb": board.peak_rss_mb(),
            "gpu_mb": max(0.0, lost_mb - (open_mb - imports_mb))}


if __name__ == "__main__":
    print(json.dumps(measure_memory(sys.argv[1])))
