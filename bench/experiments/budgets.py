"""Designs for 20 random decode budgets on this machine, measured: are the budgets kept, and are they used?

    merino-edge calibrate --board host
    python bench/experiments/budgets.py --score measured --prepare -o bench/results/budgets-x86-2cores.json
    python bench/experiments/budgets.py --score measured -o bench/results/budgets-x86-2cores.json

Budgets of 1.5 to 9 ms (log-evenly), formats in turn, vocabularies of 4,096 to 50,257, contexts of 512 and 1,024: the
same for each score and each calibration. Designs are made as `merino-edge design` makes them, at its default
confidence, and measured in three fresh processes with the cache full up to the last steps, as budgets are meant; the
median counts. A small decoder is timed beside each: `pace` is its step over the least of the run, so above 1.1 the
machine was disturbed. Kept: at most 2 % over. Bars: 18 kept, median use (measured / budget) 85 %, median error of the
prediction 7 %. `--prepare` designs and exports, which needs no quiet machine. Resumable: what was measured is not
measured again, whatever the calibration is by now.
"""

import hashlib
import json
import statistics
from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from predictions import VOCABS, arguments, take_turns

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
from merino_edge.storage.atomic import cache_folder

COUNT, BUDGET_SEED, LEAST_MS, MOST_MS = 20, 7, 1.5, 9.0
FORMATS, CONTEXTS = ("fp32", "int8", "int4"), (512, 1024)
STEPS, REPETITIONS, PROCESSES, SEED, TIMEOUT_S = 16, 4, 3, 0, 600
OVER, LEAST_KEPT, LEAST_USE, MOST_ERROR, DISTURBED = 1.02, 0.9, 0.85, 0.07, 1.1
FOLDER = cache_folder() / "experiments" / "budgets"
REFERENCE = Architecture(blocks=(Block(width=256, ffn_ratio=2, depth=4),), vocab=4096, context=64)


class Budget(NamedTuple):
    form: str
    ms: float
    vocab: int
    context: int


def random_budgets(count=COUNT):
    random = np.random.default_rng(BUDGET_SEED)
    for index in range(count):
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
    run = measure_separately(str(folder), decode_case(STEPS, context - STEPS), REPETITIONS, SEED, False, TIMEOUT_S)
    return lower_decile_ms(sum(run["step_ms"], []))


def prepared(profile, scoring, budget):
    """The design for a budget by this calibration, and its bundle, made once."""
    key = hashlib.sha256(repr((budget, scoring, profile.performance)).encode()).hexdigest()[:16]
    kept, folder = FOLDER / f"{key}.json", FOLDER / key
    if not kept.exists():
        chosen = designed(profile, scoring, budget)
        write_random_bundle(chosen.architecture, chosen.precision, folder, "budget", chosen)
        kept.write_text(chosen.to_json())
    return Design.model_validate_json(kept.read_text()), folder


def measure(make, _):
    (chosen, folder), reference = make(), FOLDER / "reference"
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
        __doc__, "bench/results/budgets-x86-2cores.json",
        more={
            "--score": {"choices": list(SCORES), "required": True}, "--count": {"type": int, "default": COUNT},
            "--prepare": {"action": "store_true"},
        },
    )
    profile, scoring = board(options.device), score_named(options.score)
    tasks = {
        f"{each.ms:g} ms in {each.form}, vocabulary {each.vocab}, context {each.context}": cache(
            partial(prepared, profile, scoring, each)
        )
        for each in random_budgets(options.count)
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    if options.prepare:
        for name, make in tasks.items():
            print(name, make()[0].architecture.shape(), sep=": ", flush=True)
        return
    claim = f"Random decode budgets by the score {options.score}: how many designs keep them, and how much they use"
    rows = take_turns(options, claim, tasks, measure, row_of, summary)
    least = min(row["reference_ms"] for row in rows)
    for row in rows:
        shares = (f"{key} {row[key]:+.1%}" if key == "error" else f"{key} {row[key]:.1%}" for key in ("use", "error"))
        times = (f"{key} {row[key]:.3f}" for key in ("predicted_ms", "measured_ms"))
        kept = "kept" if row["kept"] else "BROKEN"
        print(row["name"], *times, *shares, kept, f"pace {row['reference_ms'] / least:.2f}", sep="  ")
    print(summary(rows))


if __name__ == "__main__":
    main()
