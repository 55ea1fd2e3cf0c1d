"""Predicted against measured: random designs never used in fitting, each in three weight formats, on this machine.

    merino-edge calibrate --board host
    python bench/experiments/predictions.py -o bench/results/predictions-x86-2cores.json

Resumable: what was measured stays in RECORD.measured, which is not committed. Each measurement runs in fresh processes
of the benchmark: a prefill of 64 and of 256 ids, and decode steps behind a filled cache. Bars: decode error at most 7 %
in the median and 15 % at the 90th percentile, prefill 10 and 20, memory 10.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from write_record import table, write_record

from merino_bench.harness.cases import Case
from merino_bench.harness.turns import measure_separately
from merino_bench.probe.timing import lower_decile_ms
from merino_edge.benchmarking.random_bundle import write_random_bundle
from merino_edge.calibration.board import board
from merino_edge.families.designed import Architecture, Block
from merino_edge.families.operators import params
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.shape import InferenceShape
from merino_edge.storage.atomic import write_text

DESIGNS, SEED, CONTEXT = 24, 2026, 1024
FORMATS = ("fp32", "int8", "int4")
CACHED, STEPS, REPETITIONS, TIMEOUT_S = 384, 64, 5, 600
PROMPTS = (64, 256)
VOCABS = (4096, 8192, 16384, 32000, 50257)


def arguments(description: str, default_out: str, more: dict[str, dict[str, Any]]) -> argparse.Namespace:
    """more: further options, each with its keywords."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, dest="out", required=True, help=f"for the record: {default_out}")
    parser.add_argument("--board", default="host", help="a calibrated profile; default: this machine's own")
    parser.add_argument("--only-table", action="store_true", help="measure nothing")
    for option, keywords in more.items():
        parser.add_argument(option, **keywords)
    return parser.parse_args()


def take_turns(
    options: argparse.Namespace,
    claim: str,
    tasks: dict[str, Any],
    measure: Callable[[Any, Path], dict[str, Any]],
    row_of: Callable[[Any, dict[str, Any]], dict[str, Any]],
    summary: Callable[[list[dict[str, Any]]], Any],
) -> list[dict[str, Any]]:
    """`measure(task, folder for its bundle)` -> quantities; `row_of(task, quantities)` -> a row."""
    coefficients = board(options.board).performance.onnxruntime.coefficients
    kept = options.out.with_suffix(".measured")
    measured = json.loads(kept.read_text()) if kept.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        for index, (name, task) in enumerate(() if options.only_table else tasks.items()):
            if name not in measured:
                print(f"{index + 1} of {len(tasks)}: {name}", file=sys.stderr)
                measured[name] = measure(task, Path(scratch) / str(index))
                write_text(kept, json.dumps(measured))
    rows = [{"name": name, **row_of(task, measured[name])} for name, task in tasks.items() if name in measured]
    record = {"calibration": coefficients.source if coefficients else None, "summary": summary(rows), "rows": rows}
    script = f"python bench/experiments/{Path(sys.argv[0]).name}"
    write_record(options.out, record, claim, f"merino-edge calibrate --board {options.board}; {script}")
    return rows


def random_designs(count, seed):
    """1 to 4 blocks, widths 64 to 1024 that grow at most twofold; sizes spread evenly (log) from 1 to 80 million."""
    random = np.random.default_rng(seed)
    edges = np.geomspace(1e6, 80e6, count + 1)
    designs = []
    while len(designs) < count:
        low, high = edges[len(designs)], edges[len(designs) + 1]
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
            designs.append(arch)
    return designs


def shapes(form):
    """Of each figure but the memory: what is predicted."""
    prefills = {f"prefill_{prompt}": InferenceShape(form, prompt, prompt) for prompt in PROMPTS}
    return {"decode": InferenceShape(form, CACHED + STEPS // 2, CACHED), **prefills}


def predicted(task, profile):
    return {name: cost_model(profile, shape).predict(task[0].operators) for name, shape in shapes(task[1]).items()}


def measure(profile, task, folder):
    write_random_bundle(*task, folder, "random")
    best, measured = predicted(task, profile), {}
    for name, shape in shapes(task[1]).items():
        decode = name == "decode"
        threads = best[name].decode_threads if decode else best[name].prefill_threads
        case = Case("tg", CACHED, STEPS, 0, threads) if decode else Case("pp", shape.prompt, 0, 0, threads)
        run = measure_separately(str(folder), case, REPETITIONS, False, TIMEOUT_S)
        measured[name] = lower_decile_ms(sum(run["step_ms"], []) if decode else run["prefill_ms"])
        if decode:
            measured["memory"] = run["peak_rss_mb"]
    return measured


def row_of(profile, task, measured):
    arch, form = task
    best = predicted(task, profile)
    full = InferenceShape(form, CACHED + STEPS, CACHED)
    predictions = {name: cost.decode_ms if name == "decode" else cost.prefill_ms for name, cost in best.items()}
    predictions["memory"] = cost_model(profile, full).memory_mb(arch.operators)
    pairs = {name: [round(predictions[name], 3), round(measured[name], 3)] for name in predictions}
    return {"precision": form, "params": params(arch.operators), **pairs}


def error(pair):
    return pair[0] / pair[1] - 1


def summary(rows):
    """|error| by quantity: median, 90th percentile, worst; all formats together and each."""
    errors_of = {}
    for form in ("all", *FORMATS):
        chosen = [row for row in rows if form in ("all", row["precision"])]
        for name in ("decode", "prefill", "memory"):
            keys = [f"prefill_{prompt}" for prompt in PROMPTS] if name == "prefill" else [name]
            errors = [abs(error(row[key])) for row in chosen for key in keys]
            if errors:
                errors_of[f"{name} {form}"] = {
                    "rows": len(errors), "median": round(float(np.median(errors)), 4),
                    "p90": round(float(np.percentile(errors, 90)), 4), "worst": round(max(errors), 4),
                }  # fmt: skip
    return errors_of


def main():
    options = arguments(__doc__, "bench/results/predictions-x86-2cores.json", {})
    profile = board(options.board)
    tasks = [(arch, form) for arch in random_designs(DESIGNS, SEED) for form in FORMATS]
    order = np.random.default_rng(SEED).permutation(len(tasks))  # so that a drift of the machine meets all sizes
    named = {f"{tasks[at][0].shape()} vocabulary {tasks[at][0].vocab} {tasks[at][1]}": tasks[at] for at in order}
    rows = take_turns(
        options, "Predicted against measured latency and memory of random designs on a calibrated machine", named,
        partial(measure, profile), partial(row_of, profile), summary,
    )  # fmt: skip
    names = (*shapes(""), "memory")
    print(table(("M parameters", *names, "design"), [
        (f"{row['params'] / 1e6:.1f}", *(f"{row[name][1]:.3f} {error(row[name]):+.1%}" for name in names), row["name"])
        for row in sorted(rows, key=lambda row: row["params"])
    ]))  # fmt: skip
    for name, line in summary(rows).items():
        print(name, line)


if __name__ == "__main__":
    main()
