"""What a quantised KV cache costs and brings: perplexity at full context, peak memory, time of a decode step.

    python bench/experiments/kv_cache.py --source embedded --text tinystories_valid.txt --cache DIR --context 512 \\
        -o bench/results/kv-cache.json
    python bench/experiments/kv_cache.py --source FILE.gguf --precision int8 --text wikitext2_test.txt --cache DIR \\
        --context 2048 -o bench/results/kv-cache.json

A record holds several sources. DIR keeps bundles; one that is there is not exported again. `--parts` names what is
measured: `perplexity` (decode steps over windows as long as the context, each from an empty cache), `memory` (a fresh
process each: the peak after a full context), `time` (the formats in turn in one process: medians of blocks of steps
behind so many cached tokens; float32 also without ONNX Runtime's flash path).
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

from merino_bench.sensors.environment import machine
from merino_edge.evaluation.perplexity import cross_entropy
from merino_edge.storage.atomic import write_text
from merino_edge.training.data import load_tokenizer, read_documents
from merino_edge.training.rows import PackedTokens
from merino_runtime.backends import open_backend
from merino_runtime.backends.backend import Backend
from merino_runtime.board import peak_rss_mb
from merino_runtime.bundle import load_bundle

FORMATS = ("fp32", "int8", "int4")
PARTS = ("perplexity", "memory", "time")
SEED, STEPS, BLOCKS = 0, 8, 12
FLASH = "ORT_GQA_DISABLE_FLASH_ATTENTION"  # 1: attention by matrix products, as before ONNX Runtime 1.28


def bundle_of(args: argparse.Namespace, kv: str) -> Path:
    stem = Path(args.source).stem
    folder: Path = args.cache / f"{stem}-{args.precision}-{args.context}-{kv}"
    if not (folder / "bundle.json").exists():
        command = [
            sys.executable, "-m", "merino_edge.cli.start", "export", args.source, "--precision", args.precision,
            "--context", str(args.context), "--kv", kv, "-o", str(folder),
        ]  # fmt: skip
        subprocess.run(command, check=True)
    return folder


def windows(args: argparse.Namespace, folder: Path) -> np.ndarray:
    """Ids [windows, context] of the text, in an order that is shuffled once."""
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    rows = PackedTokens(read_documents([args.text], "--text"), tokenizer, args.context).rows.numpy()
    order = list(range(len(rows)))
    random.Random(SEED).shuffle(order)
    return rows[order[: args.windows]]


def losses(folder: Path, rows: np.ndarray, threads: int) -> list[float]:
    """Mean nats of each window."""
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


def memory(args: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for kv in FORMATS:
        folder = bundle_of(args, kv)
        command = [sys.executable, __file__, "--peak-of", str(folder), "-t", str(args.threads)]
        peak_mb = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        bundle = load_bundle(str(folder), verify=False)
        found.append({"kv": kv, "kv_mb": round(bundle.kv_bytes / 2**20, 2), "peak_mb": round(peak_mb, 1)})
    return found


def peak_of(folder: Path, threads: int) -> None:
    """Prints the peak of this process after a prefill of the whole context but one, and a step."""
    bundle = load_bundle(str(folder), verify=False)
    backend = open_backend(bundle, threads)
    ids = np.random.default_rng(SEED).integers(0, bundle.vocab, bundle.context)
    backend.prefill(ids[:-1].tolist())
    backend.step(int(ids[-1]))
    print(peak_rss_mb())


def opened(folder: Path, threads: int, flash: bool) -> Backend:
    os.environ[FLASH] = "0" if flash else "1"
    try:
        return open_backend(load_bundle(str(folder), verify=False), threads)
    finally:
        del os.environ[FLASH]


def timed(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Median ms of a step, of BLOCKS blocks of STEPS steps that take turns."""
    entrants = {f"{kv} flash": opened(bundle_of(args, kv), args.threads, True) for kv in FORMATS}
    entrants["fp32 products"] = opened(bundle_of(args, "fp32"), args.threads, False)
    ids = np.random.default_rng(SEED).integers(0, next(iter(entrants.values())).vocab, args.context).tolist()
    found = []
    for depth in [one for one in args.depths if one + STEPS <= args.context]:
        for backend in entrants.values():
            backend.truncate(0)
            backend.prefill(ids[:depth])
        samples: dict[str, list[float]] = {name: [] for name in entrants}
        for _ in range(BLOCKS):
            for name, backend in entrants.items():
                backend.truncate(depth)
                for token in ids[depth : depth + STEPS]:
                    start = time.perf_counter()
                    backend.step(token)
                    samples[name].append(1e3 * (time.perf_counter() - start))
        base = median(samples["fp32 flash"])
        for name, each in samples.items():
            kv, attention = name.split()
            found.append({
                "kv": kv, "attention": attention, "depth": depth, "ms": round(median(each), 3),
                "of_fp32": round(median(each) / base, 3),
            })  # fmt: skip
            print(found[-1], file=sys.stderr, flush=True)
    return found


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="as `merino-edge export` takes it")
    parser.add_argument("--precision", default="fp32", help="of the weights; default %(default)s")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=8, help="default %(default)s")
    parser.add_argument("--depths", type=int, nargs="+", default=[64, 448, 1984])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("-t", type=int, default=2, dest="threads", help="default %(default)s")
    parser.add_argument("-o", type=Path, dest="out")
    parser.add_argument("--peak-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(given)
    if args.peak_of:
        return peak_of(args.peak_of, args.threads)
    args.cache.mkdir(parents=True, exist_ok=True)
    record = json.loads(args.out.read_text()) if args.out.exists() else {"schema": 1, "sources": {}}
    name = f"{Path(args.source).stem} {args.precision}"
    row = record["sources"].setdefault(name, {})
    row |= {"machine": machine(), "context": args.context, "threads": args.threads}
    for part, measure in (("perplexity", perplexity), ("memory", memory), ("time", timed)):
        if part in args.parts:
            row[part] = {"text": args.text.name, "rows": measure(args)} if part == "perplexity" else measure(args)
            write_text(args.out, json.dumps(record, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
