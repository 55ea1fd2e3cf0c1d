"""Designs for random feasible decode budgets on this machine, measured: are they within the budget, and do they use it?

    python bench/experiments/budgets.py -o bench/results/budgets-x86-2cores.json

Resumable; of several passes the median counts. Budgets lie (log-evenly) between what the smallest and the largest
decoder of the space take; formats in turn. Decode time is measured with the cache full up to the last steps, as budgets
are meant. Bar: at least 19 of 20 within the budget, and using at least 90 % of it or being the top of the space.

Twice: as predicted, and once more with what the first round taught. A design that took a tenth longer than predicted is
made again for a tenth less (and for 95 % of the budget, the middle of what the bar asks); one that kept its budget
stays. All are measured anew then.
"""

import statistics

import numpy as np
from random_bundle import write_bundle
from turns import arguments, take_turns

from merino_bench.apart import measure_apart
from merino_bench.probe_timing import undisturbed_ms
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
LEAST_USE, AIM = 0.9, 0.95


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
        write_bundle(found.architecture, task[0], folder, "budget")
    case = Case("tg", CONTEXT - STEPS, STEPS, 0, found.threads.decode)
    run = measure_apart(str(folder), case, REPETITIONS, SEED, False, TIMEOUT_S)
    steps_ms = [ms for one in run["step_ms"] for ms in one]
    return {"decode_ms": undisturbed_ms(steps_ms), "median_ms": statistics.median(steps_ms), "flags": run["flags"]}


def row_of(task, measured):
    form, budget_ms, found, again = task
    step_ms = measured["decode_ms"]
    top = SPACE.widths[-1], max(SPACE.ffn_ratios), max(SPACE.depths)
    largest = all((block.width, block.ffn_ratio, block.depth) == top for block in found.architecture.blocks)
    return {
        "precision": form, "budget_ms": budget_ms, "again": again, "asked_ms": found.budget["decode_ms"],
        "predicted_ms": round(found.predicted.decode_ms, 4), "measured_ms": round(step_ms, 4),
        "median_ms": round(measured["median_ms"], 4), "use": round(step_ms / budget_ms, 4),
        "threads": found.threads.decode, "shape": found.architecture.shape(), "top_of_the_space": largest,
        "within": step_ms <= budget_ms, "kept": step_ms <= budget_ms and (step_ms >= LEAST_USE * budget_ms or largest),
    }  # fmt: skip


def summary(rows):
    found = {}
    for again in (False, True):
        chosen = [row for row in rows if row["again"] == again]
        counts = {key: sum(row[key] for row in chosen) for key in ("within", "kept")}
        found["after one measurement" if again else "as predicted"] = {"of": len(chosen), **counts}
    return found


def designed(profile, form, decode_ms):
    free = Budgets(decode_ms=decode_ms, memory_mb=profile.memory.free_mb.value)
    return design(profile, free, space=SPACE, context=CONTEXT, prompt=CONTEXT // 2, precision=form)


def corrected(profile, row, found):
    """The same design where it kept its budget, else one for as much less or more as the prediction was off."""
    if row["kept"]:
        return found
    return designed(profile, row["precision"], AIM * row["budget_ms"] * row["predicted_ms"] / row["measured_ms"])


def main():
    asked = arguments(__doc__, "bench/results/budgets-x86-2cores.json")
    profile = load_profile(asked.device)
    tasks = {
        f"{budget_ms:g} ms in {form}": (form, budget_ms, designed(profile, form, budget_ms), False)
        for form, budget_ms in random_budgets(profile)
    }
    for row in take_turns(asked, tasks, measure, row_of, summary):
        form, budget_ms, found, _ = tasks[row["name"]]
        tasks[row["name"] + ", again"] = form, budget_ms, corrected(profile, row, found), True
    rows = take_turns(asked, tasks, measure, row_of, summary)
    for row in rows:
        print(*(f"{key} {row[key]}" for key in ("name", "measured_ms", "use", "kept", "threads", "shape")))
    print(summary(rows))


if __name__ == "__main__":
    main()
