"""Check a portable bundle on an NVIDIA GPU: the same logits and ids as ONNX Runtime on the CPU.

    python bench/gpu_check.py [--fp16] [-o gpu-check.json] [BUNDLE]

Needs TensorRT 8.2 or 10.x: builds the engine and runs the backend that boards run. Without BUNDLE: the embedded model.
`merino bench --backend tensorrt` measures how fast it is. Exit code 1: no GPU, no TensorRT, or a difference that is too
large.
"""

import argparse
import ctypes
import json
import platform
import sys
import tempfile
import time
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

SCHEMA = 3
STEPS = 32
# Of the largest logit: ten times what float32 needs, and what float16 kernels of a small model may make.
TOLERANCES = {"fp32": 1e-3, "fp16": 5e-2}


def gpu_name() -> str | None:
    """Return the name that the driver gives; None if there is no driver, or no GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    driver.cuDeviceGetName(name, 256, 0)
    return name.value.decode("utf-8", "replace")


def greedy(backend: Backend, prompt: list[int], ids: list[int] | None = None) -> tuple[np.ndarray, list[int]]:
    """Return (logits [STEPS, vocab], chosen ids). ids: followed in place of the own choices, so that logits compare."""
    backend.truncate(0)
    rows, chosen = [backend.prefill(prompt).copy()], []
    for step in range(STEPS):
        chosen.append(int(rows[-1].argmax()))
        if step + 1 < STEPS:
            rows.append(backend.step(ids[step] if ids else chosen[-1]).copy())
    return np.array(rows), chosen


def compare(on_gpu: Backend, on_cpu: Backend, prompt: list[int], precision: str) -> dict[str, Any]:
    rows, ids = greedy(on_cpu, prompt)
    own, choices = greedy(on_gpu, prompt, ids)
    largest = float(np.abs(own - rows).max() / np.abs(rows).max())
    return {"steps": STEPS, "largest_difference": largest, "tolerance": TOLERANCES[precision],
            "same_choices": sum(a == b for a, b in zip(ids, choices, strict=True)),
            "ok": largest <= TOLERANCES[precision]}  # fmt: skip


def check(folder: str, gpu: str, fp16: bool) -> dict[str, Any]:
    """Return the record. Raise MerinoError if nothing can run."""
    bundle = load_bundle(folder)
    if fp16 and bundle.precision != "fp16":
        from merino_runtime.backends.engine_build import build_engine

        build_engine(bundle, True, None, report)
    on_gpu = open_backend(bundle, backend="tensorrt", say=report)
    on_cpu = open_backend(bundle, backend="onnxruntime")
    count = max(1, min(128, bundle.context - STEPS - 1))
    prompt = np.random.RandomState(0).randint(0, bundle.vocab, count).tolist()
    precision = "fp16" if " fp16 " in on_gpu.engine or bundle.precision == "fp16" else "fp32"
    return {
        "schema": SCHEMA, "gpu": gpu, "engine": on_gpu.engine,
        "bundle": bundle.name, "params": bundle.params, "precision": precision, "machine": platform.machine(),
        "python": platform.python_version(), "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "parity": compare(on_gpu, on_cpu, prompt, precision),
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
    return 0 if parity["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
