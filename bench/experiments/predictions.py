"""Predicted against measured: random designs never used in fitting, each in three weight formats, on this machine.

    python bench/experiments/predictions.py -o bench/results/predictions-x86-2cores.json

Resumable: rows that the file has are kept. `--device` takes a calibrated profile; by default the machine's own. Each
measurement runs in a fresh process of the benchmark: a prefill of 64 and of 256 ids, and decode steps behind a filled
cache. Bars: decode error at most 7 % in the median and 15 % at the 90th percentile, prefill 10 and 20, memory 10.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
from random_bundle import write_bundle

from merino_bench.apart import measure_apart
from merino_bench.workload import Case
from merino_edge.architecture import Architecture, Block
from merino_edge.design import costs
from merino_edge.operators import params
from merino_edge.profiles import load_profile

DESIGNS, SEED, CONTEXT = 24, 2024, 1024
FORMATS = ("fp32", "int8", "int4")
CACHED, STEPS, REPETITIONS, TIMEOUT_S = 384, 64, 10, 600
PROMPTS = (64, 256)
VOCABS = (4096, 8192, 16384, 32000, 50257)


def random_designs(count, seed):
    """1 to 4 blocks, widths 64 to 1024 that grow at most twofold; sizes spread evenly (log) from 1 to 80 million."""
    random = np.random.default_rng(seed)
    edges = np.geomspace(1e6, 80e6, count + 1)
    found = []
    while len(found) < count:
        low, high = edges[len(found)], edges[len(found) + 1]
        blocks = int(random.integers(1, 5))
        first = 64 * int(random.integers(1, 17))
        widths = sorted([first, *(64 * int(random.integers(1, 17)) for _ in range(blocks - 1))])
        if widths[-1] > 2 * widths[0]:
            continue
        arch = Architecture(
            blocks=tuple(
                Block(width=width, ffn_ratio=float(random.choice([1, 1.5, 2, 3, 4])), depth=int(random.integers(1, 9)),
                      shared=bool(random.random() < 0.25))
                for width in widths
            ),
            vocab=int(random.choice(VOCABS)), head_size=32 if widths[0] < 256 else 64, context=CONTEXT,
        )  # fmt: skip
        if low <= params(arch.operators) < high:
            found.append(arch)
    return found


def measure_row(arch, precision, profile, folder):
    write_bundle(arch, precision, folder, "random")
    row = {"shape": arch.shape(), "vocab": arch.vocab, "head_size": arch.head_size, "precision": precision,
           "params": params(arch.operators)}  # fmt: skip
    work = costs.Workload(precision, CACHED + STEPS // 2, CACHED)
    predicted = costs.predict(arch.operators, profile, work)
    threads = predicted.decode_threads
    row["decode_threads"], row["prefill_threads"] = threads, predicted.prefill_threads
    found = measure_apart(str(folder), Case("tg", CACHED, STEPS, 0, threads), REPETITIONS, SEED, False, TIMEOUT_S)
    row["flags"] = found["flags"]
    row["decode"] = pair(predicted.decode_ms, statistics.mean(ms for one in found["step_ms"] for ms in one))
    full = costs.Workload(precision, CACHED + STEPS, CACHED)
    row["memory"] = pair(costs.memory_mb(arch.operators, profile, full), found["peak_rss_mb"])
    for prompt in PROMPTS:
        predicted = costs.predict(arch.operators, profile, costs.Workload(precision, prompt, prompt))
        threads = predicted.prefill_threads
        found = measure_apart(str(folder), Case("pp", prompt, 0, 0, threads), REPETITIONS, SEED, False, TIMEOUT_S)
        row[f"prefill_{prompt}"] = pair(predicted.prefill_ms, statistics.median(found["prefill_ms"]))
    return row


def pair(predicted, measured):
    error = round(predicted / measured - 1, 4)
    return {"predicted": round(predicted, 4), "measured": round(measured, 4), "error": error}


def summary(rows):
    """|error| by quantity: median, 90th percentile, worst; all formats together and each."""
    found = {}
    for form in ("all", *FORMATS):
        chosen = [row for row in rows if form in ("all", row["precision"])]
        for name in ("decode", "prefill", "memory"):
            keys = [f"prefill_{prompt}" for prompt in PROMPTS] if name == "prefill" else [name]
            errors = [abs(row[key]["error"]) for row in chosen for key in keys]
            if errors:
                found[f"{name} {form}"] = {
                    "rows": len(errors), "median": round(float(np.median(errors)), 4),
                    "p90": round(float(np.percentile(errors, 90)), 4), "worst": max(errors),
                }  # fmt: skip
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, dest="out", required=True)
    parser.add_argument("--device", default="host")
    parser.add_argument("--only", type=int, help="so many measurements, then stop")
    arguments = parser.parse_args()
    profile = load_profile(arguments.device)
    rows = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    done = {(row["shape"], row["vocab"], row["precision"]) for row in rows}
    designs = random_designs(DESIGNS, SEED)
    order = np.random.default_rng(SEED).permutation(len(designs) * len(FORMATS))  # so that a part is spread, too
    left = [(designs[place // 3], FORMATS[place % 3]) for place in order]
    left = [(arch, form) for arch, form in left if (arch.shape(), arch.vocab, form) not in done][: arguments.only]
    with tempfile.TemporaryDirectory() as scratch:
        for arch, form in left:
            row = measure_row(arch, form, profile, Path(scratch) / "bundle")
            rows.append(row)
            print(f"{row['params'] / 1e6:6.1f} M {form:5s}", *(
                f"{key} {row[key]['measured']:9.3f} {row[key]['error']:+.1%}"
                for key in ("decode", "prefill_64", "prefill_256", "memory")), row["flags"], row["shape"], flush=True)
            content = {"seed": SEED, "times": profile.performance.times.source if profile.performance.times else None,
                       "summary": summary(rows), "rows": rows}  # fmt: skip
            arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    for name, line in summary(rows).items():
        shares = ", ".join(f"{key} {line[key]:.1%}" for key in ("median", "p90", "worst"))
        print(f"{name:16s} {line['rows']:4d} rows: {shares}")


if __name__ == "__main__":
    main()
