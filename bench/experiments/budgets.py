"""Designs for random feasible decode budgets on this machine, measured: are they within the budget, and do they use it?

    python bench/experiments/budgets.py -o bench/results/budgets-x86-2cores.json

Budgets lie (log-evenly) between what the smallest and the largest decoder of the space take; formats in turn. Decode
time is measured with the cache full up to the last steps, as budgets are meant. Bar: at least 19 of 20 within the
budget, and using at least 90 % of it or being the top of the space.

Twice: as predicted, of which the median over the passes counts, and as `design --measure` makes them, which are
measured anew as soon as they are made (the first pass), and later once more (the other passes). Resumable: designs are
kept beside the record (OUT.designs.json) while it grows.
"""

import json
import statistics
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from turns import arguments, over_passes, take_turns

from merino_bench.harness.cases import decode_case
from merino_bench.harness.processes import measure_apart
from merino_bench.probe.timing import lower_decile_ms
from merino_edge.benchmarking.redesign import REPETITIONS, SEED, STEPS, TIMEOUT_S, measure_design, redesign, steps_ms
from merino_edge.calibration.board import board
from merino_edge.design.design_file import Design
from merino_edge.design.designer import design
from merino_edge.design.space import Space
from merino_edge.export.random_bundle import write_random_bundle
from merino_edge.families.designed import Architecture, Block
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.shape import InferenceShape

COUNT, BUDGET_SEED, CONTEXT, PROCESSES = 20, 7, 512, 5
LEAST_USE = 0.9
FORMATS = ("fp32", "int8", "int4")
SPACE = Space(widths=tuple(range(64, 769, 64)), vocab=16384)


def extreme(width, ratio, depth):
    block = Block(width=width, ffn_ratio=ratio, depth=depth)
    return Architecture(blocks=(block,) * SPACE.blocks, vocab=SPACE.vocab, context=CONTEXT)


def random_budgets(profile):
    """(format, decode ms) pairs."""
    random = np.random.default_rng(BUDGET_SEED)
    ends = [extreme(SPACE.widths[0], 1, 1), extreme(SPACE.widths[-1], max(SPACE.ffn_ratios), max(SPACE.depths))]
    for index in range(COUNT):
        form = FORMATS[index % len(FORMATS)]
        model = cost_model(profile, InferenceShape(form, CONTEXT, CONTEXT // 2))
        low, high = (model.predict(arch.operators).decode_ms for arch in ends)
        share = random.uniform(0.15, 1.0)
        yield form, float(f"{low ** (1 - share) * high**share:.3g}")


class Task(NamedTuple):
    form: str
    budget_ms: float
    make: Callable[[], Design]  # when its turn comes
    tried: bool


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
    top = SPACE.widths[-1], max(SPACE.ffn_ratios), max(SPACE.depths)
    largest = all((block.width, block.ffn_ratio, block.depth) == top for block in found.architecture.blocks)
    row = {
        "precision": task.form, "budget_ms": task.budget_ms, "tried": task.tried,
        "predicted_ms": round(found.predicted.decode_ms, 4), "threads": found.predicted.decode_threads,
        "shape": found.architecture.shape(), "top_of_the_space": largest,
        **verdict(passes[:1] if task.tried else passes, task.budget_ms, largest),
    }  # fmt: skip
    if task.tried and len(passes) > 1:
        row["later"] = verdict(passes[1:], task.budget_ms, largest)
    return row


def verdict(passes, budget_ms, largest):
    measured = over_passes(passes)
    step_ms = measured["decode_ms"]
    return {
        "measured_ms": round(step_ms, 4), "median_ms": round(measured["median_ms"], 4),
        "use": round(step_ms / budget_ms, 4), "within": step_ms <= budget_ms,
        "kept": step_ms <= budget_ms and (step_ms >= LEAST_USE * budget_ms or largest),
    }  # fmt: skip


def summary(rows):
    tried = [row for row in rows if row["tried"]]
    return {
        "as predicted": counts([row for row in rows if not row["tried"]]),
        "with --measure": counts(tried),
        "with --measure, later": counts([row["later"] for row in tried if "later" in row]),
    }


def counts(verdicts):
    return {"of": len(verdicts), **{key: sum(one[key] for one in verdicts) for key in ("within", "kept")}}


def finder(profile, form):
    def find(budgets, _=None):
        return design(profile, budgets, space=SPACE, context=CONTEXT, prompt=CONTEXT // 2, precision=form)

    return find


def budgets_of(profile, decode_ms):
    return {"decode_ms": decode_ms, "memory_mb": profile.memory.free_mb.value}


def tried_design(path, profile, name, form, budget_ms):
    """As `design --measure` makes it; from the file where it was made before."""
    made = json.loads(path.read_text()) if path.exists() else {}
    if name not in made:
        print(f"designing and measuring for {name}", file=sys.stderr)
        found = redesign(budgets_of(profile, budget_ms), finder(profile, form), measure_design)
        made[name] = json.loads(found.to_json())
        path.write_text(json.dumps(made, indent=1) + "\n")
    return Design.model_validate(made[name])


def main():
    asked = arguments(__doc__, "bench/results/budgets-x86-2cores.json")
    profile = board(asked.device)
    path = asked.out.with_suffix(".designs.json")
    predicted, tried = {}, {}
    for form, budget_ms in random_budgets(profile):
        name = f"{budget_ms:g} ms in {form}"
        make = cache(partial(finder(profile, form), budgets_of(profile, budget_ms)))
        predicted[name] = Task(form, budget_ms, make, False)
        make = cache(partial(tried_design, path, profile, name, form, budget_ms))
        tried[name + ", tried"] = Task(form, budget_ms, make, True)
    rows = take_turns(asked, tried | predicted, measure, row_of, summary)
    for row in rows:
        print(*(f"{key} {row[key]}" for key in ("name", "measured_ms", "use", "kept", "threads", "shape")))
    print(summary(rows))


if __name__ == "__main__":
    main()
