"""Designs for random feasible decode budgets on this machine, measured: are they within the budget, and do they use it?

    python bench/experiments/budgets.py -o bench/results/budgets-x86-2cores.json

Resumable; of several passes the median counts, and of the processes of a pass. Budgets lie (log-evenly) between what
the smallest and the largest decoder of the space take; formats in turn. Decode time is measured with the cache full up
to the last steps, as budgets are meant. Bar: at least 19 of 20 within the budget, and using at least 90 % of it or
being the top of the space.

Twice: as predicted, and as `design --measure` makes them. Those are kept beside the record (OUT.designs.json) while it
grows; the passes measure them anew, apart from the measurements that they were made by.
"""

import json
import statistics
import sys

import numpy as np
from turns import arguments, take_turns

from merino_bench.probe_timing import undisturbed_ms
from merino_bench.workload import decode_case
from merino_edge.architecture import Architecture, Block
from merino_edge.design import costs
from merino_edge.design.budget import Budgets
from merino_edge.design.designer import Design, design
from merino_edge.design.space import Space
from merino_edge.export.random_bundle import write_random_bundle
from merino_edge.profiles import load_profile
from merino_edge.trial import ROUNDS, STEPS, keeping, measured_here, run, steps_ms

COUNT, SEED, CONTEXT, PROCESSES = 20, 7, 512, 3
LEAST_USE = 0.9
FORMATS = ("fp32", "int8", "int4")
SPACE = Space(widths=tuple(range(64, 769, 64)), vocab=16384)


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


def measure(task, folder):
    found = task[2]
    if not folder.exists():
        write_random_bundle(found.architecture, task[0], folder, "budget")
    case = decode_case(STEPS, CONTEXT - STEPS, found.threads.decode)
    runs = [run(folder, case, ROUNDS) for _ in range(PROCESSES)]
    return {
        "decode_ms": statistics.median(undisturbed_ms(steps_ms(one)) for one in runs),
        "median_ms": statistics.median(statistics.median(steps_ms(one)) for one in runs),
        "flags": sorted({flag for one in runs for flag in one["flags"]}),
    }


def row_of(task, measured):
    form, budget_ms, found, tried = task
    step_ms = measured["decode_ms"]
    top = SPACE.widths[-1], max(SPACE.ffn_ratios), max(SPACE.depths)
    largest = all((block.width, block.ffn_ratio, block.depth) == top for block in found.architecture.blocks)
    return {
        "precision": form, "budget_ms": budget_ms, "tried": tried,
        "predicted_ms": round(found.predicted.decode_ms, 4), "measured_ms": round(step_ms, 4),
        "median_ms": round(measured["median_ms"], 4), "use": round(step_ms / budget_ms, 4),
        "threads": found.threads.decode, "shape": found.architecture.shape(), "top_of_the_space": largest,
        "within": step_ms <= budget_ms, "kept": step_ms <= budget_ms and (step_ms >= LEAST_USE * budget_ms or largest),
    }  # fmt: skip


def summary(rows):
    found = {}
    for tried in (False, True):
        chosen = [row for row in rows if row["tried"] == tried]
        counts = {key: sum(row[key] for row in chosen) for key in ("within", "kept")}
        found["with --measure" if tried else "as predicted"] = {"of": len(chosen), **counts}
    return found


def finder(profile, form):
    def find(budgets, _=None):
        return design(profile, budgets, space=SPACE, context=CONTEXT, prompt=CONTEXT // 2, precision=form)

    return find


def budgets_of(profile, decode_ms):
    return Budgets(decode_ms=decode_ms, memory_mb=profile.memory.free_mb.value)


def tried_design(path, profile, name, form, budget_ms):
    """As `design --measure` makes it; from the file where it was made before."""
    made = json.loads(path.read_text()) if path.exists() else {}
    if name not in made:
        print(f"designing and measuring for {name}", file=sys.stderr)
        found = keeping(budgets_of(profile, budget_ms), finder(profile, form), measured_here)
        made[name] = json.loads(found.to_json())
        path.write_text(json.dumps(made, indent=1) + "\n")
    return Design.model_validate(made[name])


def main():
    asked = arguments(__doc__, "bench/results/budgets-x86-2cores.json")
    profile = load_profile(asked.device)
    budgets = {f"{budget_ms:g} ms in {form}": (form, budget_ms) for form, budget_ms in random_budgets(profile)}
    tasks = {
        name: (form, budget_ms, finder(profile, form)(budgets_of(profile, budget_ms)), False)
        for name, (form, budget_ms) in budgets.items()
    }
    path = asked.out.with_suffix(".designs.json")
    for name, (form, budget_ms) in budgets.items():
        tasks[name + ", tried"] = form, budget_ms, tried_design(path, profile, name, form, budget_ms), True
    rows = take_turns(asked, tasks, measure, row_of, summary)
    for row in rows:
        print(*(f"{key} {row[key]}" for key in ("name", "measured_ms", "use", "kept", "threads", "shape")))
    print(summary(rows))


if __name__ == "__main__":
    main()
