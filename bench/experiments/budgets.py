"""Designs for random feasible decode budgets on this machine, measured: are the budgets kept, and are they used?

    merino-edge calibrate --device host
    python bench/experiments/budgets.py -o bench/results/intervals-x86-2cores.json

Budgets lie (log-evenly) between what the smallest decoder of the space may take, at the upper end of its interval, and
what the largest takes; formats in turn. Designs are made as `merino-edge design` makes them, at its default confidence,
and measured with the cache full up to the last steps, as budgets are meant; the median over the passes counts. Bar: of
20 budgets at least 19 kept, median use (measured / budget) at least 88 %. Resumable.
"""

import statistics
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from predictions import arguments, over_passes, take_turns

from merino_bench.harness.cases import decode_case
from merino_bench.harness.turns import measure_apart
from merino_bench.probe.timing import lower_decile_ms
from merino_edge.benchmarking.redesign import REPETITIONS, SEED, STEPS, TIMEOUT_S, steps_ms
from merino_edge.calibration.board import board
from merino_edge.design.designer import design
from merino_edge.design.space import Space
from merino_edge.export.random_bundle import write_random_bundle
from merino_edge.families.designed import Architecture, Block
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.shape import InferenceShape

COUNT, BUDGET_SEED, CONTEXT, PROCESSES = 20, 7, 512, 5
LEAST_KEPT, LEAST_USE = 0.95, 0.88
FORMATS = ("fp32", "int8", "int4")
SPACE = Space(widths=tuple(range(64, 769, 64)), vocab=16384)


class Task(NamedTuple):
    form: str
    budget_ms: float
    make: partial  # -> the design, when its turn comes


def extreme(width, ratio, depth):
    block = Block(width=width, ffn_ratio=ratio, depth=depth)
    return Architecture(blocks=(block,) * SPACE.blocks, vocab=SPACE.vocab, context=CONTEXT)


def random_budgets(profile):
    """(format, decode ms) pairs."""
    random = np.random.default_rng(BUDGET_SEED)
    smallest = extreme(SPACE.widths[0], min(SPACE.ffn_ratios), min(SPACE.depths))
    largest = extreme(SPACE.widths[-1], max(SPACE.ffn_ratios), max(SPACE.depths))
    for index in range(COUNT):
        form = FORMATS[index % len(FORMATS)]
        model = cost_model(profile, InferenceShape(form, CONTEXT, CONTEXT // 2))
        low = model.predict(smallest.operators).upper("decode_ms")
        high = model.predict(largest.operators).decode_ms
        share = random.uniform(0.15, 1.0)
        yield form, float(f"{low ** (1 - share) * high**share:.3g}")


def tasks(profile):
    found = {}
    for form, budget_ms in random_budgets(profile):
        limits = {"decode_ms": budget_ms, "memory_mb": profile.memory.free_mb.value}
        make = partial(design, profile, limits, space=SPACE, context=CONTEXT, prompt=CONTEXT // 2, precision=form)
        found[f"{budget_ms:g} ms in {form}"] = Task(form, budget_ms, cache(make))
    return found


def measure(task, folder):
    found = task.make()
    if not folder.exists():
        write_random_bundle(found.architecture, task.form, folder, "budget")
    case = decode_case(STEPS, CONTEXT - STEPS, found.predicted.decode_threads)
    runs = [measure_apart(str(folder), case, REPETITIONS, SEED, False, TIMEOUT_S) for _ in range(PROCESSES)]
    return {
        "decode_ms": statistics.median(lower_decile_ms(steps_ms(one)) for one in runs),
        "median_ms": statistics.median(statistics.median(steps_ms(one)) for one in runs),
        "flags": sorted({flag for one in runs for flag in one["flags"]}),
    }


def row_of(task, passes):
    found = task.make()
    measured = over_passes(passes)
    step_ms, cost = measured["decode_ms"], found.predicted
    low, high = cost.decode_ms_interval or (None, None)
    return {
        "precision": task.form, "budget_ms": task.budget_ms, "threads": cost.decode_threads,
        "shape": found.architecture.shape(), "confidence": cost.confidence, "predicted_ms": round(cost.decode_ms, 4),
        "low_ms": low and round(low, 4), "high_ms": high and round(high, 4), "measured_ms": round(step_ms, 4),
        "median_ms": round(measured["median_ms"], 4), "use": round(step_ms / task.budget_ms, 4),
        "kept": step_ms <= task.budget_ms, "in_interval": low is not None and low <= step_ms <= high,
    }  # fmt: skip


def summary(rows):
    kept, use = sum(row["kept"] for row in rows), statistics.median(row["use"] for row in rows)
    return {
        "budgets": len(rows), "kept": kept, "median_use": use, "in_interval": sum(row["in_interval"] for row in rows),
        "bar_met": kept >= LEAST_KEPT * len(rows) and use >= LEAST_USE,
    }  # fmt: skip


def main():
    asked = arguments(__doc__, "bench/results/intervals-x86-2cores.json")
    rows = take_turns(asked, tasks(board(asked.device)), measure, row_of, summary)
    for row in rows:
        columns = ("name", "predicted_ms", "high_ms", "measured_ms", "use", "kept", "threads", "shape")
        print(*(f"{key} {row[key]}" for key in columns))
    print(summary(rows))


if __name__ == "__main__":
    main()
