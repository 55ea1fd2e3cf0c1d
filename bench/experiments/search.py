"""The search against its bars: by the measured score at most 5 s for each board and format; by the paper's at most 2 s,
and evolution within 1 % in 60 s.

    python bench/experiments/search.py measured exact evolution -o bench/results/search-x86-2cores.json

A part replaces its own rows in the file and leaves the others: `measured` (the default search of each board, backend
and weight format, one run), and by the score `merino` `exact` (three runs of each), `open` (the same with
vocabulary and format left open, over all formats whatever the board has) and `evolution` (five seeds; 9 minutes). The
last three search the same spaces: the paper's FLOPs with all KV heads, as its presets do, and with any number of them;
the boards' budgets with any. One thread; seconds are CPU time, of evolution without the exact search that bounds it.
"""

import argparse
import json
import os
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # before numpy loads

from write_record import write_record  # noqa: E402

from merino_edge.design.budgets import with_board_defaults  # noqa: E402
from merino_edge.design.designer import design  # noqa: E402
from merino_edge.design.encode import layers_of, scored_options, term_tables  # noqa: E402
from merino_edge.design.score import MEASURED, MERINO  # noqa: E402
from merino_edge.design.space import FULL, GROUPED, SEARCHED, Space, every_block  # noqa: E402
from merino_edge.prediction.cost_model import cost_model  # noqa: E402
from merino_edge.prediction.formats import formats_of  # noqa: E402
from merino_edge.prediction.shape import default_prompt  # noqa: E402
from merino_edge.profiles.reading import list_profiles, load_profile  # noqa: E402

CLAIM = "Time and gap of the search"
FLOPS_G = (60, 110, 160)
VOCABS = (4096, 8192, 16384, 32768, 50257)
FORMATS = ("fp32", "int8", "int4")
SEEDS = range(5)
SPACES = {"full": Space(kv_heads=FULL), "any": Space(kv_heads=GROUPED)}  # KV heads


def tasks():
    """(name, KV heads, profile, budgets): the paper's FLOPs alone, and what each board gets by default."""
    for heads in SPACES:
        for flops_g in FLOPS_G:
            yield f"{flops_g} GFLOPs", heads, load_profile("raspberry-pi-4"), {"flops_g": flops_g}
    for board in list_profiles():
        profile = board.with_backend("onnxruntime")
        yield profile.id, "any", profile, with_board_defaults({}, profile)


def solved(space, profile, budgets, scoring=MERINO, context=None, **keys):
    context = context or profile.budget.context
    for cached in (cost_model, term_tables, layers_of, scored_options, every_block):
        cached.cache_clear()
    started = time.process_time()  # of one thread: a busy machine does not change it
    solution = design(
        profile, budgets, space=space, context=context, prompt=default_prompt(context), scoring=scoring, **keys
    )
    return solution, time.process_time() - started


def exact_rows(repetitions=3, **keys):
    for name, heads, *task in tasks():
        runs = [solved(SPACES[heads], *task, **keys) for _ in range(repetitions)]
        solution = runs[0][0]
        yield {
            "task": name, "kv_heads": heads, "seconds": [round(seconds, 3) for _, seconds in runs],
            "gap": solution.solver.gap, "entropy": solution.entropy, "shape": solution.architecture.shape(),
            "vocab": solution.architecture.vocab, "precision": solution.precision, "params": solution.predicted.params,
        }  # fmt: skip


def measured_rows():
    """Each board and format, with the usual vocabulary and context, a small one, and a very large one."""
    for board in list_profiles():
        for backend in board.backends:
            profile = board.with_backend(backend)
            budgets, usual = with_board_defaults({}, profile), (SEARCHED.vocab, profile.budget.context)
            for precision, (vocab, context) in product(formats_of(profile), (usual, (512, 128), (150_000, 128))):
                space = replace(SEARCHED, vocab=vocab)
                solution, seconds = solved(space, profile, budgets, MEASURED, context, precision=precision)
                uniform = solution.loss_ratio.uniform
                yield {
                    "task": board.id, "backend": backend, "precision": precision, "vocab": vocab, "context": context,
                    "seconds": round(seconds, 2), "gap": solution.solver.gap, "score": solution.entropy,
                    "shape": solution.architecture.shape(), "opt_350m": solution.loss_ratio.opt_350m.value,
                    "uniform": uniform and uniform.value,
                }  # fmt: skip


def evolution_rows():
    for name, heads, *task in tasks():
        _, exact_seconds = solved(SPACES[heads], *task)
        runs = [solved(SPACES[heads], *task, solver="evolution", seed=seed) for seed in SEEDS]
        yield {
            "task": name, "kv_heads": heads, "seconds": [round(seconds - exact_seconds, 3) for _, seconds in runs],
            "gap": [solution.solver.gap for solution, _ in runs],
        }  # fmt: skip


PARTS = {
    "measured": measured_rows,
    "exact": exact_rows,
    "open": lambda: exact_rows(1, vocabs=VOCABS, precisions=FORMATS),
    "evolution": evolution_rows,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("-o", type=Path, required=True)
    arguments = parser.parse_args()
    record = json.loads(arguments.o.read_text()) if arguments.o.exists() else {}
    for part in arguments.parts:
        record[part] = []
        for row in PARTS[part]():
            print(part, row, flush=True)
            record[part].append(row)
            write_record(arguments.o, record, CLAIM, f"python bench/experiments/search.py {' '.join(arguments.parts)}")


if __name__ == "__main__":
    main()
