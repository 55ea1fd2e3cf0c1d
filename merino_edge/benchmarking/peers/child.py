"""Measures one peer at one case in this process, which should be a fresh one, by the protocol of our own worker.

`python -m merino_edge.benchmarking.peers.child REQUEST`: a JSON object in, one JSON object out with the worker's keys.
Rounds for WARM_UP_S warm up and are not timed. `ids` (what was fed) and `chosen` (what came out) are there for tests.
"""

import json
import sys
import time
from importlib import import_module
from typing import Any

import numpy as np

from merino_bench.harness.worker import DIGITS, WARM_UP_S
from merino_bench.sensors import environment
from merino_bench.sensors.environment import cpu_moment, load_between
from merino_runtime.io import board

WARM_UP_STEPS = 8  # of a warm-up round


def prompt_ids(vocab: int, count: int, seed: int) -> list[int]:
    """The ids that our own worker feeds to a bundle of this vocabulary."""
    return list(np.random.RandomState(seed).randint(0, vocab, count).tolist())


def measure_peer(request: dict[str, Any]) -> dict[str, Any]:
    """request: engine, runner, path, precision, threads, prompt, steps, repetitions, seed, vocab."""
    before = environment.state()
    start = time.perf_counter()
    engine, run_round, notes = import_module(f"merino_edge.benchmarking.peers.{request['runner']}").open_peer(request)
    load_ms = 1e3 * (time.perf_counter() - start)
    ids = prompt_ids(request["vocab"], request["prompt"], request["seed"])
    began = cpu_moment()
    while cpu_moment().clock_s < began.clock_s + WARM_UP_S:
        run_round(ids, min(request["steps"], WARM_UP_STEPS))
    rounds = [run_round(ids, request["steps"]) for _ in range(request["repetitions"])]
    ended = cpu_moment()
    peak_rss_mb = board.peak_rss_mb()
    after = environment.state()
    here = environment.machine()
    load = load_between(began, ended, here["cpus"] or 1)
    return {
        "engine": engine, "threads": request["threads"], "prefill_threads": request["threads"],
        "load_ms": round(load_ms, DIGITS), "verify_ms": None, "peak_rss_mb": peak_rss_mb,
        "prefill_ms": [round(prefill_ms, DIGITS) for prefill_ms, _, _ in rounds],
        "step_ms": [[round(one, DIGITS) for one in step_ms] for _, step_ms, _ in rounds],
        "prefill_phases_s": [], "decode_phases_s": [],  # no energy: the parent takes ours only
        "environment": dict(here, before=before, after=after, **load.as_record()),
        "flags": environment.flags_of(before, after, load), "notes": notes,
        "ids": ids, "chosen": rounds[-1][2],
    }  # fmt: skip


def main() -> int:
    try:
        result = measure_peer(json.loads(sys.argv[1]))
    except Exception as error:  # noqa: BLE001 - whatever another engine throws is that row's reason
        result = {"error": f"{type(error).__name__}: {error}"}
    print("\n" + json.dumps(result), flush=True)
    return 1 if "error" in result else 0


if __name__ == "__main__":
    sys.exit(main())
