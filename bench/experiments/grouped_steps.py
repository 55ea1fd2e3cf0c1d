"""A decode step behind 1,024 cached tokens by heads of keys, measured here: CPU time of one thread, in turns.

    python bench/experiments/grouped_steps.py -o bench/results/grouped-steps-x86-2cores.json

14 layers of width 640 and 10 heads of queries, random weights, a vocabulary of 4,096: with 10, 5, 2 and 1 heads of
keys. The time of one thread says little of memory that several share; it says what attention computes.
"""

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from write_record import write_record

from merino_edge.export.random_bundle import write_random_bundle
from merino_edge.families.designed import Architecture
from merino_edge.families.operators import kv_bytes
from merino_runtime.backends import open_backend
from merino_runtime.backends.backend import Backend
from merino_runtime.io.board import MB

WIDTH, LAYERS, VOCAB, DEPTH, ROUNDS = 640, 14, 4096, 1024, 40
KV_HEADS = (10, 5, 2, 1)


def decoder(kv_heads: int) -> Architecture:
    block = {"width": WIDTH, "ffn_ratio": 1.0, "depth": LAYERS, "kv_heads": kv_heads}
    return Architecture.model_validate({"blocks": [block], "vocab": VOCAB, "head_size": 64, "context": DEPTH + 32})


def step_ms(backend: Backend, ids: list[int]) -> float:
    """CPU ms of one step behind DEPTH tokens."""
    backend.truncate(DEPTH)
    started = time.process_time()
    backend.step(ids[0])
    return 1e3 * (time.process_time() - started)


def measured(precision: str, folder: Path) -> list[dict[str, Any]]:
    ids = np.random.default_rng(0).integers(0, VOCAB, DEPTH).tolist()
    backends = {}
    for kv_heads in KV_HEADS:
        bundle = write_random_bundle(decoder(kv_heads), precision, folder / f"{precision}-{kv_heads}", "grouped")
        backends[kv_heads] = open_backend(bundle, threads=1, prefill_threads=1)
        backends[kv_heads].prefill(ids)
    found: dict[int, list[float]] = {kv_heads: [] for kv_heads in KV_HEADS}
    for _ in range(ROUNDS):
        for kv_heads, backend in backends.items():
            found[kv_heads].append(step_ms(backend, ids))
    for backend in backends.values():
        backend.close()
    return [
        {
            "precision": precision, "kv_heads": kv_heads, "kv_mb": kv_bytes(decoder(kv_heads).operators, DEPTH) / MB,
            "cpu_ms_p50": statistics.median(times), "cpu_ms_p10": statistics.quantiles(times, n=10)[0],
        }
        for kv_heads, times in found.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", type=Path, required=True)
    out = parser.parse_args().o
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for precision in ("fp32", "int8") for row in measured(precision, Path(folder))]
    record = {"machine": platform.machine(), "onnxruntime": onnxruntime.__version__, "threads": 1, "depth": DEPTH}
    write_record(out, {**record, "rows": rows})


if __name__ == "__main__":
    main()
