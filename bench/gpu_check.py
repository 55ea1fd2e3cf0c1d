"""Checks a portable bundle on an NVIDIA GPU: the same logits and ids as ONNX Runtime on the CPU, and how fast.

    python bench/gpu_check.py [--fp16] [-o gpu-check.json] [BUNDLE]

Needs TensorRT 8.2 or 10.x: builds the engine and runs the backend that boards run, and times ONNX Runtime on the CPU
beside it. Without BUNDLE: the embedded model. The record holds all samples. Exit code 1: no GPU, no TensorRT, or a
difference that is too large.
"""

import argparse
import ctypes
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source
from merino_runtime.backends import open_backend
from merino_runtime.backends.backend import Backend
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError
from merino_runtime.io.outputs import write_output

SCHEMA = 2
STEPS, ROUNDS, WARM_UP_ROUNDS = 32, 5, 2
# Of the largest logit: ten times what float32 needs, and what float16 kernels of a small model may make.
TOLERANCES = {"fp32": 1e-3, "fp16": 5e-2}
Runner = Callable[[list[int]], np.ndarray]  # new ids behind those of earlier calls -> logits [vocab]; [] starts anew


def gpu_name() -> str | None:
    """By the driver; None where there is none, or no GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    driver.cuDeviceGetName(name, 256, 0)
    return name.value.decode("utf-8", "replace")


def of_backend(backend: Backend) -> Runner:
    def run(ids: list[int]) -> np.ndarray:
        if not ids:
            backend.truncate(0)
            return np.zeros(0)
        return backend.step(ids[0]) if len(ids) == 1 else backend.prefill(ids)

    return run


def greedy(
    run: Runner, prompt: list[int], steps: int, ids: list[int] | None = None
) -> tuple[np.ndarray, list[int]]:
    """(logits [steps, vocab], chosen ids). ids: followed in place of the own choices, so that logits compare."""
    run([])
    rows, chosen = [run(prompt).copy()], []
    for step in range(steps):
        chosen.append(int(rows[-1].argmax()))
        if step + 1 < steps:
            rows.append(run([ids[step] if ids else chosen[-1]]).copy())
    return np.array(rows), chosen


def compare(run: Runner, expected: Runner, prompt: list[int], precision: str) -> dict[str, Any]:
    rows, ids = greedy(expected, prompt, STEPS)
    own, choices = greedy(run, prompt, STEPS, ids)
    largest = float(np.abs(own - rows).max() / np.abs(rows).max())
    return {"steps": STEPS, "largest_difference": largest, "tolerance": TOLERANCES[precision],
            "same_choices": sum(a == b for a, b in zip(ids, choices, strict=True)),
            "ok": largest <= TOLERANCES[precision]}  # fmt: skip


def timed(run: Runner, prompt: list[int]) -> dict[str, Any]:
    """Samples in ms of a prefill of the prompt, and of the decode steps behind it. Every call waits for its logits."""
    prefill_ms: list[float] = []
    step_ms: list[float] = []
    for each in range(WARM_UP_ROUNDS + ROUNDS):
        run([])
        times = [time.perf_counter()]
        token = int(run(prompt).argmax())
        times.append(time.perf_counter())
        for _ in range(STEPS):
            token = int(run([token]).argmax())
            times.append(time.perf_counter())
        if each >= WARM_UP_ROUNDS:
            taken = [1000 * (after - before) for before, after in zip(times[:-1], times[1:], strict=True)]
            prefill_ms.append(taken[0])
            step_ms += taken[1:]
    return {"prompt": len(prompt), "prefill_ms": prefill_ms, "step_ms": step_ms,
            "prefill_tok_s": 1000 * len(prompt) / statistics.median(prefill_ms),
            "decode_tok_s": 1000 / statistics.median(step_ms)}  # fmt: skip


def check(folder: str, gpu: str, fp16: bool) -> dict[str, Any]:
    """The record. Raises MerinoError where nothing can run."""
    bundle = load_bundle(folder)
    if fp16 and bundle.precision != "fp16":
        from merino_runtime.backends.engine_build import build_engine

        build_engine(bundle, True, None, report)
    backend = open_backend(bundle, backend="tensorrt", say=report)
    engine, on_gpu = backend.engine, of_backend(backend)
    on_cpu = of_backend(open_backend(bundle, backend="onnxruntime"))
    count = max(1, min(128, bundle.context - STEPS - 1))
    prompt = np.random.RandomState(0).randint(0, bundle.vocab, count).tolist()
    precision = "fp16" if " fp16 " in engine or bundle.precision == "fp16" else "fp32"
    return {
        "schema": SCHEMA, "gpu": gpu, "engine": engine,
        "bundle": bundle.name, "params": bundle.params, "precision": precision, "machine": platform.machine(),
        "python": platform.python_version(), "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "parity": compare(on_gpu, on_cpu, prompt, precision),
        "speed": {engine: timed(on_gpu, prompt), "onnxruntime CPU": timed(on_cpu, prompt)},
    }  # fmt: skip


def report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", nargs="?", help="a portable bundle in fp32 or fp16; default: the embedded model")
    parser.add_argument("--fp16", action="store_true", help="an engine of float16 kernels")
    parser.add_argument("-o", default="gpu-check.json", metavar="FILE", dest="path")
    arguments = parser.parse_args()
    gpu = gpu_name()
    if gpu is None:
        report("gpu_check: no NVIDIA GPU, or no driver, on this machine. Nothing was run, and no record was written.")
        return 1
    try:
        with tempfile.TemporaryDirectory() as folder:
            if arguments.bundle is None:
                export(load_source("embedded"), Path(folder) / "bundle", ExportRequest("fp32", dialect="portable"))
            record = check(arguments.bundle or f"{folder}/bundle", gpu, arguments.fp16)
        write_output(arguments.path, json.dumps(record, indent=1) + "\n")
    except MerinoError as error:
        report(f"gpu_check: {error}")
        return 1
    parity = record["parity"]
    report(f"{record['engine']}: logits differ by {parity['largest_difference']:.1e} of the largest, allowed "
         f"{parity['tolerance']:g}; {parity['same_choices']} of {parity['steps']} choices are the same")
    for name, speed in record["speed"].items():
        report(f"{name}: prefill {speed['prefill_tok_s']:.0f} tok/s, decode {speed['decode_tok_s']:.1f} tok/s")
    return 0 if parity["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
