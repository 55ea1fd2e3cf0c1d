"""What a quantised KV cache brings, and costs: peak memory, time of a decode step. Its perplexity: `quality.py`.

    python bench/experiments/kv_cache.py --geometry smollm2-135m --precision int8 --cache DIR --context 2048 \\
        -o bench/results/kv-cache.json

A record holds several models. DIR keeps bundles; one that is there is not made again. Weights are random, and caches
are filled with random codes, on whose values neither time nor memory depends. Memory: the peak of a fresh process after
the last 256 ids of a full context and a step. Time: the formats interleaved in one process, medians of wall and CPU
time over blocks of steps behind so many cached tokens, each with ONNX Runtime's attention in tiles and by matmuls.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from write_record import kept_record, write_record

from merino_bench.sensors.environment import machine
from merino_edge.embedded import EMBEDDED
from merino_edge.families.names import bundle_path
from merino_edge.families.zoo import model
from merino_runtime.backends import open_backend
from merino_runtime.backends.attention import SWITCH
from merino_runtime.backends.backend import Backend
from merino_runtime.bundle import load_bundle
from merino_runtime.io.board import peak_rss_mb

# What loads torch is imported where it is needed: a process whose memory is measured does without.
FORMATS = ("fp32", "int8", "int4")
SEED, STEPS, BLOCKS, PREFILL = 0, 8, 12, 256


def random_bundle(args: argparse.Namespace, kv: str) -> Path:
    folder: Path = args.cache / f"{args.geometry}-random-{args.precision}-{args.context}-{kv}"
    if not (folder / "bundle.json").exists():
        from merino_edge.export.random_bundle import write_random_bundle
        from merino_edge.export.source import load_source

        known = load_source(bundle_path(EMBEDDED)).arch if args.geometry == EMBEDDED else model(args.geometry).geometry
        arch = known.model_copy(update={"context": args.context})
        cache = None if kv == "fp32" else kv  # the record is of onnxruntime's attention
        write_random_bundle(arch, args.precision, folder, args.geometry, kv=cache, by_groups=False)
    return folder


def memory(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for kv in FORMATS:
        folder = random_bundle(args, kv)
        command = [sys.executable, __file__, "--peak", "--cache", str(folder), "-t", str(args.threads)]
        peak_mb = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        bundle = load_bundle(str(folder), verify=False)
        rows.append({"kv": kv, "kv_mb": round(bundle.kv_bytes / 2**20, 2), "peak_mb": round(peak_mb, 1)})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def peak_of(folder: Path, threads: int) -> None:
    """Prints the peak of this process after the last ids of a full context and a step."""
    bundle = load_bundle(str(folder), verify=False)
    backend = open_backend(bundle, threads)
    ids = np.random.default_rng(SEED).integers(0, bundle.vocab, bundle.context).tolist()
    filled(backend, ids[: -PREFILL - 1])
    backend.prefill(ids[-PREFILL - 1 : -1])
    backend.step(ids[-1])
    print(peak_rss_mb())


def filled(backend: Backend, ids: Sequence[int]) -> None:
    """Fill the cache with random values for these ids."""
    backend.truncate(0)
    random_values = np.random.default_rng(SEED)

    def entries(cache: np.ndarray) -> np.ndarray:
        shape = (*cache.shape[:2], len(ids), cache.shape[3])
        if cache.dtype == np.float32:
            return random_values.standard_normal(shape, dtype=np.float32)
        return random_values.integers(0, 256, shape, dtype=np.uint8).view(cache.dtype)

    backend.fill(ids, (entries(cache) for cache in backend.cache.values()))


def opened(folder: Path, threads: int, attention: str) -> Backend:
    os.environ[SWITCH] = str(int(attention == "products"))
    try:
        return open_backend(load_bundle(str(folder), verify=False), threads)
    finally:
        del os.environ[SWITCH]


def timed(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Median ms of a step, of BLOCKS interleaved blocks of STEPS steps."""
    backends = {
        (kv, attention): opened(random_bundle(args, kv), args.threads, attention)
        for kv in FORMATS for attention in ("tiles", "products")
    }  # fmt: skip
    vocab = next(iter(backends.values())).vocab
    ids = np.random.default_rng(SEED).integers(0, vocab, args.context).tolist()
    rows = []
    for depth in [one for one in args.depths if one + STEPS <= args.context]:
        for backend in backends.values():
            filled(backend, ids[:depth])
        samples: dict[tuple[str, str], list[float]] = {name: [] for name in backends}
        cpu: dict[tuple[str, str], list[float]] = {name: [] for name in backends}
        for _ in range(BLOCKS):
            for name, backend in backends.items():
                backend.truncate(depth)
                for token in ids[depth : depth + STEPS]:
                    start, used = time.perf_counter(), time.process_time()
                    backend.step(token)
                    samples[name].append(1e3 * (time.perf_counter() - start))
                    cpu[name].append(1e3 * (time.process_time() - used))
        base = median(cpu["fp32", "tiles"])
        for (kv, attention), each in samples.items():
            used_ms = median(cpu[kv, attention])
            rows.append({
                "kv": kv, "attention": attention, "depth": depth, "ms": round(median(each), 3),
                "ms_p10": round(float(np.percentile(each, 10)), 3), "cpu_ms": round(used_ms, 3),
                "cpu_of_fp32": round(used_ms / base, 3),
            })  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", default=EMBEDDED, help="a name of the catalogue; default: %(default)s")
    parser.add_argument("--precision", default="fp32", help="of the weights; default %(default)s")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--depths", type=int, nargs="+", default=[64, 448, 1984])
    parser.add_argument("-t", type=int, default=2, dest="threads", help="default %(default)s")
    parser.add_argument("--peak", action="store_true", help="print the peak of this process with the bundle --cache")
    parser.add_argument("-o", type=Path, dest="out")
    args = parser.parse_args()
    if args.peak:
        peak_of(args.cache, args.threads)
        return
    args.cache.mkdir(parents=True, exist_ok=True)
    record = kept_record(args.out, {"schema": 1, "models": {}})
    row = record["models"].setdefault(f"{args.geometry}, random weights, {args.precision}", {})
    row |= {"machine": machine(), "context": args.context, "threads": args.threads}
    for name, measure in (("memory", memory), ("time", timed)):
        row[name] = measure(args)
        write_record(args.out, record)


if __name__ == "__main__":
    main()
