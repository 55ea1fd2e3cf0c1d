"""Designs for random feasible decode budgets on this machine, measured: are they within the budget, and do they use it?

    python bench/experiments/budgets.py -o bench/results/budgets-x86-2cores.json

Resumable. Budgets lie (log-evenly) between what the smallest and the largest decoder of the space take; formats in
turn. Decode time is measured with the cache full up to the last steps, as a budget is meant. Bar: at least 19 of 20
within the budget, and using at least 90 % of it or being the top of the space.
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
from merino_edge.design.budget import Budgets
from merino_edge.design.designer import design
from merino_edge.design.space import Space
from merino_edge.profiles import load_profile

COUNT, SEED, CONTEXT, STEPS, REPETITIONS, TIMEOUT_S = 20, 7, 512, 64, 5, 600
FORMATS = ("fp32", "int8", "int4")
SPACE = Space(widths=tuple(range(64, 769, 64)), vocab=16384)
LEAST_USE = 0.9


def extreme(width, ratio, depth):
    block = Block(width=width, ffn_ratio=ratio, depth=depth)
    return Architecture(blocks=(block,) * SPACE.blocks, vocab=SPACE.vocab, context=CONTEXT)


def random_budgets(profile):
    """(format, decode ms) pairs."""
    random = np.random.default_rng(SEED)
    ends = [extreme(SPACE.widths[0], 1, 1), extreme(SPACE.widths[-1], max(SPACE.ffn_ratios), max(SPACE.depths))]
    for index in range(COUNT):
        form = FORMATS[index % len(FORMATS)]
        work = costs.Workload(form, CONTEXT, CONTEXT // 2)
        low, high = (costs.predict(arch.operators, profile, work).decode_ms for arch in ends)
        share = random.uniform(0.15, 1.0)
        yield form, float(f"{low ** (1 - share) * high**share:.3g}")


def measure_row(form, budget_ms, profile, folder):
    free = Budgets(decode_ms=budget_ms, memory_mb=profile.memory.free_mb.value)
    found = design(profile, free, space=SPACE, context=CONTEXT, prompt=CONTEXT // 2, precision=form)
    write_bundle(found.architecture, form, folder, "budget")
    threads = found.threads.decode if found.threads else None
    case = Case("tg", CONTEXT - STEPS, STEPS, 0, threads)
    measured = measure_apart(str(folder), case, REPETITIONS, SEED, False, TIMEOUT_S)
    step_ms = statistics.mean(ms for one in measured["step_ms"] for ms in one)
    largest = all(block.width == SPACE.widths[-1] for block in found.architecture.blocks)
    return {
        "precision": form, "budget_ms": budget_ms, "predicted_ms": round(found.predicted.decode_ms, 4),
        "measured_ms": round(step_ms, 4), "use": round(step_ms / budget_ms, 4), "threads": threads,
        "shape": found.architecture.shape(), "top_of_the_space": largest, "flags": measured["flags"],
        "kept": bool(step_ms <= budget_ms and (step_ms >= LEAST_USE * budget_ms or largest)),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, dest="out", required=True)
    parser.add_argument("--device", default="host")
    parser.add_argument("--only", type=int, help="so many measurements, then stop")
    arguments = parser.parse_args()
    profile = load_profile(arguments.device)
    rows = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    done = {(row["precision"], row["budget_ms"]) for row in rows}
    left = [pair for pair in random_budgets(profile) if pair not in done][: arguments.only]
    with tempfile.TemporaryDirectory() as scratch:
        for form, budget_ms in left:
            rows.append(measure_row(form, budget_ms, profile, Path(scratch) / "bundle"))
            print(json.dumps(rows[-1]), flush=True)
            content = {"seed": SEED, "kept": sum(row["kept"] for row in rows), "of": len(rows), "rows": rows}
            arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{sum(row['kept'] for row in rows)} of {len(rows)} within their budget and using {LEAST_USE:.0%} of it")


if __name__ == "__main__":
    main()
