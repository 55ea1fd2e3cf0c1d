"""Whether the harness can be believed: decode rounds against a stopwatch around `generate`, a bundle against itself.

    python bench/experiments/trust.py BUNDLE... -o bench/results/trust-x86-2cores.json

The stopwatch knows nothing of the harness: it takes the time from the first token that `generate` yields to the last
one. Both take turns in one fresh process, many short ones, so that what drifts meets both alike: between processes this
machine's speed differs by more than is asked. Then `bench` measures a bundle beside its own twin, as it does two
bundles. Wants bundles whose step takes some milliseconds: `generate` samples too, 0.02 to 0.05 ms, which is a tenth of
a step of the embedded model.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from merino_bench.fresh_process import child_environment
from merino_bench.harness.cases import START_PROMPT, BenchRequest
from merino_bench.harness.interval import paired_ratio
from merino_bench.harness.run import run_bench
from merino_bench.harness.worker import one_round
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from merino_runtime.generate import Done, generate
from merino_runtime.sampling import GREEDY

STEPS, TURNS, REPETITIONS = 64, 60, 10
BAR = 0.03


def stopwatch(backend, ids):
    """Seconds of STEPS tokens after the first one, greedy, end of text ignored."""
    backend.truncate(0)
    events = generate(backend, ids, max_new_tokens=STEPS + 1, sampling=GREEDY)
    times = [time.monotonic() for event in events if not isinstance(event, Done)]
    return times[-1] - times[0]


def take_turns(folder):
    """Seconds of STEPS steps by the harness and by the stopwatch, in turn; the first pair warms up."""
    bundle = load_bundle(folder)
    backend = open_backend(bundle)
    ids = np.random.RandomState(0).randint(0, bundle.vocab, START_PROMPT).tolist()
    pairs = [(sum(one_round(backend, ids, 0, STEPS).step_ms) / 1e3, stopwatch(backend, ids)) for _ in range(TURNS + 1)]
    backend.close()
    return pairs[1:]


def against_the_stopwatch(folder):
    call = [sys.executable, __file__, folder, "--turns"]
    done = subprocess.run(call, env=child_environment(), check=True, capture_output=True, text=True)
    harness, watch = ([STEPS / seconds for seconds in each] for each in zip(*json.loads(done.stdout), strict=True))
    ratio, interval = paired_ratio(harness, watch)  # a turn of both is a pair: all in one process
    return {
        "ratio": ratio, "interval": interval, "within_bar": abs(ratio - 1) <= BAR,
        "harness_tok_s": harness, "stopwatch_tok_s": watch,
    }  # fmt: skip


def against_itself(folder):
    """A bundle beside a copy of itself, as `bench` measures two bundles."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        twin = shutil.copytree(folder, Path(scratch) / "twin")
        rows = run_bench([folder], BenchRequest((128,), (STEPS,), REPETITIONS), [str(twin)])
    for row, base in zip(rows[::2], rows[1::2], strict=True):
        low, high = row["ratio_interval"]
        found[row["test"]] = {
            "ratio": row["ratio_to_baseline"], "interval": [low, high], "no_difference": low <= 1 <= high,
            "turns": row["ratio_turns"], "flags": row["ratio_flags"], "tok_s": [row["tok_s"], base["tok_s"]],
        }  # fmt: skip
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--turns", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-o", type=Path, dest="out")
    arguments = parser.parse_args()
    if arguments.turns:
        print(json.dumps(take_turns(arguments.bundles[0])))
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
