"""What a quantised KV cache costs and brings: perplexity, peak memory, time of a decode step.

    python bench/experiments/kv_cache.py perplexity --source embedded --text tinystories_valid.txt --cache DIR \\
        --context 512 -o bench/results/kv-cache.json
    python bench/experiments/kv_cache.py speed --geometry smollm2-135m --precision int8 --cache DIR --context 2048 \\
        -o bench/results/kv-cache.json

A record holds several models. DIR keeps bundles; one that is there is not made again. `perplexity`: decode steps over
windows as long as the context, each from an empty cache. `speed`: a geometry of the catalogue, or `embedded`, with
random weights and caches that are filled with random codes, on whose values neither time nor memory depends. Memory:
the peak of a fresh process after the last 256 ids of a full context and a step. Time: the formats in turn in one
process, medians of wall and CPU time over blocks of steps behind so many cached tokens, each with ONNX Runtime's
attention in tiles and by products of matrices.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
from write_record import write_record

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


def bundle_of(args: argparse.Namespace, kv: str) -> Path:
    stem = Path(args.source).stem
    folder: Path = args.cache / f"{stem}-{args.precision}-{args.context}-{kv}{'-calibrated' if args.calibrate else ''}"
    if not (folder / "bundle.json").exists():
        command = [
            sys.executable, "-m", "merino_edge.cli.start", "export", args.source, "--precision", args.precision,
            "--context", str(args.context), "--kv", kv, "-o", str(folder),
        ]  # fmt: skip
        if args.calibrate and kv != "fp32":
            command += ["--calibrate", str(args.calibrate)]
        subprocess.run(command, check=True)
    return folder


def windows(args: argparse.Namespace, folder: Path) -> np.ndarray:
    """Ids [windows, context] of the text, in an order that is shuffled once."""
    from merino_edge.text.documents import read_documents
    from merino_edge.text.rows import PackedTokens
    from merino_edge.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder / "tokenizer.json")
    rows = PackedTokens(read_documents([args.text], "--text"), tokenizer, args.context).rows.numpy()
    order = list(range(len(rows)))
    random.Random(SEED).shuffle(order)
    return rows[order[: args.windows]]


def losses(folder: Path, rows: np.ndarray, threads: int) -> list[float]:
    """Mean nats of each window."""
    from merino_edge.text.perplexity import cross_entropy

    backend = open_backend(load_bundle(str(folder), verify=False), threads)
    found = []
    for row in rows:
        backend.truncate(0)
        found.append(
            mean(cross_entropy(backend.step(int(one)), int(after)) for one, after in zip(row, row[1:], strict=False))
        )
        print(f"{folder.name}: {found[-1]:.5f}", file=sys.stderr, flush=True)
    backend.close()
    return found


def perplexity(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = windows(args, bundle_of(args, "fp32"))
    found = {kv: losses(bundle_of(args, kv), rows, args.threads) for kv in FORMATS}
    table = []
    for kv, each in found.items():
        apart = [one - base for one, base in zip(each, found["fp32"], strict=True)]
        error = stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else None
        table.append({
            "kv": kv, "windows": len(each), "tokens": len(each) * (args.context - 1), "losses": each,
            "perplexity": math.exp(mean(each)), "change": math.exp(mean(apart)) - 1, "standard_error": error,
        })  # fmt: skip
    return table


def random_bundle(args: argparse.Namespace, kv: str) -> Path:
    folder: Path = args.cache / f"{args.geometry}-random-{args.precision}-{args.context}-{kv}"
    if not (folder / "bundle.json").exists():
        from merino_edge.export.random_bundle import write_random_bundle
        from merino_edge.export.source import load_source

        known = load_source(bundle_path(EMBEDDED)).arch if args.geometry == EMBEDDED else model(args.geometry).geometry
        arch = known.model_copy(update={"context": args.context})
        write_random_bundle(arch, args.precision, folder, args.geometry, kv=None if kv == "fp32" else kv)
    return folder


def memory(args: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for kv in FORMATS:
        folder = random_bundle(args, kv)
        command = [sys.executable, __file__, "peak", "--cache", str(folder), "-t", str(args.threads)]
        peak_mb = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        bundle = load_bundle(str(folder), verify=False)
        found.append({"kv": kv, "kv_mb": round(bundle.kv_bytes / 2**20, 2), "peak_mb": round(peak_mb, 1)})
        print(found[-1], file=sys.stderr, flush=True)
    return found


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
    """Median ms of a step, of BLOCKS blocks of STEPS steps that take turns."""
    entrants = {
        (kv, attention): opened(random_bundle(args, kv), args.threads, attention)
        for kv in FORMATS for attention in ("tiles", "products")
    }  # fmt: skip
    vocab = next(iter(entrants.values())).vocab
    ids = np.random.default_rng(SEED).integers(0, vocab, args.context).tolist()
    found = []
    for depth in [one for one in args.depths if one + STEPS <= args.context]:
        for backend in entrants.values():
            filled(backend, ids[:depth])
        samples: dict[tuple[str, str], list[float]] = {name: [] for name in entrants}
        cpu: dict[tuple[str, str], list[float]] = {name: [] for name in entrants}
        for _ in range(BLOCKS):
            for name, backend in entrants.items():
                backend.truncate(depth)
                for token in ids[depth : depth + STEPS]:
                    start, used = time.perf_counter(), time.process_time()
                    backend.step(token)
                    samples[name].append(1e3 * (time.perf_counter() - start))
                    cpu[name].append(1e3 * (time.process_time() - used))
        base = median(cpu["fp32", "tiles"])
        for (kv, attention), each in samples.items():
            used_ms = median(cpu[kv, attention])
            found.append({
                "kv": kv, "attention": attention, "depth": depth, "ms": round(median(each), 3),
                "ms_p10": round(float(np.percentile(each, 10)), 3), "cpu_ms": round(used_ms, 3),
                "cpu_of_fp32": round(used_ms / base, 3),
            })  # fmt: skip
            print(found[-1], file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"perplexity": perplexity, "memory": memory, "time": timed}
    parser.add_argument("part", choices=(*parts, "speed", "peak"), help="speed: memory and time")
    parser.add_argument("--source", default=EMBEDDED, help="of perplexity, as `merino-edge export` takes it")
    parser.add_argument("--geometry", default=EMBEDDED, help="of speed: a name of the catalogue")
    parser.add_argument("--precision", default="fp32", help="of the weights; default %(default)s")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--calibrate", type=Path, help="as `merino-edge export` takes it")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=8, help="default %(default)s")
    parser.add_argument("--depths", type=int, nargs="+", default=[64, 448, 1984])
    parser.add_argument("-t", type=int, default=2, dest="threads", help="default %(default)s")
    parser.add_argument("-o", type=Path, dest="out")
    args = parser.parse_args()
    if args.part == "peak":
        peak_of(args.cache, args.threads)
        return
    args.cache.mkdir(parents=True, exist_ok=True)
    record = json.loads(args.out.read_text()) if args.out.exists() else {"schema": 1, "models": {}}
    name = Path(args.source).stem if args.part == "perplexity" else f"{args.geometry}, random weights"
    row = record["models"].setdefault(f"{name}, {args.precision}", {})
    row |= {"machine": machine(), "context": args.context, "threads": args.threads}
    for part in ("memory", "time") if args.part == "speed" else (args.part,):
        row[part] = parts[part](args)
        write_record(args.out, record)


if __name__ == "__main__":
    main()
