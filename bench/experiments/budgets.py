"""Designs for 20 random decode budgets on this machine, measured: are the budgets kept, and are they used?

    merino-edge calibrate --board host
    python bench/experiments/budgets.py --score measured -o bench/results/budgets-x86-2cores.json

Budgets of 1.5 to 9 ms (log-evenly), formats in turn, vocabularies of 4,096 to 50,257, contexts of 512 and 1,024: the
same for each score and each calibration. Designs are made as `merino-edge design` makes them, at its default
confidence, and measured in three fresh processes with the cache full up to the last steps, as budgets are meant; the
median counts. A small decoder is timed beside each: `pace` is its step over the least of the run, so above 1.1 the
machine was disturbed. Kept: at most 2 % over. Bars: 18 kept, median use (measured / budget) 85 %, median error of the
prediction 7 %. Resumable: what was measured is not measured again, whatever the calibration is by now.
"""

import json
import statistics
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from predictions import VOCABS, arguments, take_turns
from write_record import table

from merino_bench.harness.cases import decode_case
from merino_bench.harness.turns import measure_separately
from merino_bench.probe.timing import lower_decile_ms
from merino_edge.benchmarking.random_bundle import write_random_bundle
from merino_edge.calibration.board import board
from merino_edge.design.budgets import with_board_defaults
from merino_edge.design.design_file import Design
from merino_edge.design.designer import design, design_by_paper
from merino_edge.design.paper.space import PAPER_SPACE
from merino_edge.design.score import MERINO, SCORES, score_named
from merino_edge.families.designed import Architecture, Block
from merino_edge.prediction.shape import default_prompt

COUNT, BUDGET_SEED, LEAST_MS, MOST_MS = 20, 7, 1.5, 9.0
FORMATS, CONTEXTS = ("fp32", "int8", "int4"), (512, 1024)
STEPS, REPETITIONS, PROCESSES, TIMEOUT_S = 16, 4, 3, 600
OVER, LEAST_KEPT, LEAST_USE, MOST_ERROR, DISTURBED = 1.02, 0.9, 0.85, 0.07, 1.1
REFERENCE = Architecture(blocks=(Block(width=256, ffn_ratio=2, depth=4),), vocab=4096, context=64)


class Budget(NamedTuple):
    form: str
    ms: float
    vocab: int
    context: int


def random_budgets():
    random = np.random.default_rng(BUDGET_SEED)
    for index in range(COUNT):
        ms = float(f"{LEAST_MS * (MOST_MS / LEAST_MS) ** random.random():.3g}")
        vocab, context = int(random.choice(VOCABS)), int(random.choice(CONTEXTS))
        yield Budget(FORMATS[index % len(FORMATS)], ms, vocab, context)


def designed(profile, scoring, budget):
    lengths = {"context": budget.context, "prompt": default_prompt(budget.context)}
    limits = with_board_defaults({"decode_ms": budget.ms}, profile)
    if scoring == MERINO:
        space = replace(PAPER_SPACE, vocab=budget.vocab)
        return design_by_paper(profile, limits, space=space, precision=budget.form, **lengths)
    return design(profile, limits, vocabs=[budget.vocab], precisions=[budget.form], kvs=[None], **lengths)


def step_ms(folder, context):
    """Return the latency of a decode step in one process, in ms."""
    run = measure_separately(str(folder), decode_case(STEPS, context - STEPS), REPETITIONS, False, TIMEOUT_S)
    return lower_decile_ms(sum(run["step_ms"], []))


def measure(profile, scoring, budget, folder):
    chosen, reference = designed(profile, scoring, budget), folder.with_name("reference")
    write_random_bundle(chosen.architecture, chosen.precision, folder, "budget", chosen)
    if not reference.exists():
        write_random_bundle(REFERENCE, "int8", reference, "reference")
    times, beside = [], []
    for _ in range(PROCESSES):
        times.append(step_ms(folder, chosen.architecture.context))
        beside.append(step_ms(reference, REFERENCE.context))
    return {
        "decode_ms": statistics.median(times), "reference_ms": statistics.median(beside),
        "design": chosen.model_dump(mode="json", by_alias=True),
    }  # fmt: skip


def row_of(_, measured):
    """Of the design that was measured, whatever the machine's profile is by now."""
    chosen = Design.model_validate_json(json.dumps(measured["design"]))
    ms, cost, budget = measured["decode_ms"], chosen.predicted, chosen.budget["decode_ms"]
    low, high = cost.decode_ms_interval or (None, None)
    return {
        "budget_ms": budget, "precision": chosen.precision, "vocab": chosen.architecture.vocab,
        "context": chosen.architecture.context, "predicted_ms": cost.decode_ms, "interval_ms": [low, high],
        "measured_ms": ms, "kept": ms <= OVER * budget, "use": ms / budget, "error": cost.decode_ms / ms - 1,
        "in_interval": low is not None and low <= ms <= high, "reference_ms": measured["reference_ms"],
    }  # fmt: skip


def summary(rows):
    kept, use = sum(row["kept"] for row in rows), statistics.median(row["use"] for row in rows)
    errors = [row["error"] for row in rows]
    error = statistics.median(map(abs, errors))
    least = min(row["reference_ms"] for row in rows)
    return {
        "budgets": len(rows), "kept": kept, "median_use": use, "median_error": error,
        "median_bias": statistics.median(errors), "in_interval": sum(row["in_interval"] for row in rows),
        "disturbed": sum(row["reference_ms"] > DISTURBED * least for row in rows),
        "bar_met": kept >= LEAST_KEPT * len(rows) and use >= LEAST_USE and error <= MOST_ERROR,
    }  # fmt: skip


def main():
    options = arguments(
        __doc__, "bench/results/budgets-x86-2cores.json", {"--score": {"choices": list(SCORES), "required": True}}
    )
    tasks = {
        f"{budget.ms:g} ms in {budget.form}, vocabulary {budget.vocab}, context {budget.context}": budget
        for budget in random_budgets()
    }
    claim = f"Random decode budgets by the score {options.score}: how many designs keep them, and how much they use"
    make = partial(measure, board(options.board), score_named(options.score))
    rows = take_turns(options, claim, tasks, make, row_of, summary)
    least = min(row["reference_ms"] for row in rows)
    print(table(("budget", "predicted ms", "measured ms", "use", "error", "kept", "pace"), [
        (row["name"], f"{row['predicted_ms']:.3f}", f"{row['measured_ms']:.3f}", f"{row['use']:.1%}",
         f"{row['error']:+.1%}", str(row["kept"]), f"{row['reference_ms'] / least:.2f}") for row in rows
    ]))  # fmt: skip
    print(summary(rows))


if __name__ == "__main__":
    main()
