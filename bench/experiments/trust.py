"""Whether the harness can be believed: decode against a stopwatch around `generate`, and a bundle against itself.

    python bench/experiments/trust.py BUNDLE... -o bench/results/trust-x86-2cores.json

The stopwatch knows nothing of the harness: a process of its own loads the bundle and takes the time from the first
token that `generate` yields to the last one. Harness and stopwatch take turns. Then two runs of `bench` on the same
bundle, one after the other, are compared as two bundles would be. Wants a quiet machine (rows that were disturbed are
said, not hidden) and bundles whose step takes some milliseconds: `generate` samples too, 0.02 to 0.05 ms, which is a
tenth of a step of the embedded model.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from merino_bench.apart import child_environment, measure_apart
from merino_bench.bench import run_bench
from merino_bench.interval import ratio_interval
from merino_bench.record import speeds_of
from merino_bench.workload import START_PROMPT, Workload, decode_case
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from merino_runtime.generate import Done, generate
from merino_runtime.sampler import Sampling

STEPS, TURNS = 128, 8
BAR = 0.03


def stopwatch(folder):
    """tok/s of STEPS tokens after the first one, greedy, end of text ignored; the second generation counts."""
    bundle = load_bundle(folder)
    backend = open_backend(bundle)
    ids = np.random.RandomState(0).randint(0, bundle.vocab, START_PROMPT).tolist()
    for _ in range(2):
        backend.truncate(0)
        events = generate(backend, ids, max_new_tokens=STEPS + 1, sampling=Sampling(temperature=0.0))
        times = [time.monotonic() for event in events if not isinstance(event, Done)]
    backend.close()
    return STEPS / (times[-1] - times[0])


def stopwatch_apart(folder):
    call = [sys.executable, __file__, folder, "--stopwatch"]
    return float(subprocess.run(call, env=child_environment(), check=True, capture_output=True, text=True).stdout)


def against_the_stopwatch(folder):
    harness, watch, flags = [], [], []
    for turn in range(TURNS):
        measured = measure_apart(folder, decode_case(STEPS), 1, 0, not turn, 600)
        harness.extend(speeds_of(measured["step_ms"], STEPS))
        flags.extend(measured["flags"])
        watch.append(stopwatch_apart(folder))
    ratio = statistics.mean(harness) / statistics.mean(watch)
    return {
        "ratio": ratio, "interval": ratio_interval(harness, watch, paired=True), "within_bar": abs(ratio - 1) <= BAR,
        "harness_tok_s": harness, "stopwatch_tok_s": watch, "flags": sorted(set(flags)),
    }  # fmt: skip


def against_itself(folder):
    """Two runs, compared without pairing, as two files would be."""
    runs = [run_bench([folder], Workload((128,), (STEPS,), TURNS)) for _ in range(2)]
    found = {}
    for first, second in zip(*runs, strict=True):
        tokens = STEPS if first["test"].startswith("tg") else first["prompt_tokens"]
        before, after = (speeds_of(row["rounds_ms"], tokens) for row in (first, second))
        interval = ratio_interval(after, before, paired=False)
        found[first["test"]] = {
            "ratio": statistics.mean(after) / statistics.mean(before), "interval": interval,
            "no_difference": interval[0] <= 1 <= interval[1], "tok_s": [before, after],
            "flags": sorted({*first["flags"], *second["flags"]}),
        }  # fmt: skip
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--stopwatch", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-o", type=Path, dest="out")
    arguments = parser.parse_args()
    if arguments.stopwatch:
        print(stopwatch(arguments.bundles[0]))
        return
    rows = []
    for folder in arguments.bundles:
        bundle = load_bundle(folder)
        rows.append({
            "bundle": bundle.name, "precision": bundle.precision, "dialect": bundle.dialect, "steps": STEPS,
            "turns": TURNS, "stopwatch": against_the_stopwatch(folder), "itself": against_itself(folder),
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
