"""CPU time of the search, and its designs, for each board's own budgets with everything open, and for the paper's.

    python bench/experiments/search.py -o bench/results/search-x86-2cores.json

Boards: each board and backend with its own budgets, and with a limit on the prefill as well. Paper: the presets, and
each board's own budgets in the format that it prefers. One thread; seconds are CPU time. Minutes.
"""

import argparse
import os
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # before numpy loads

from write_record import write_record  # noqa: E402

from merino_edge.design.budgets import with_board_defaults  # noqa: E402
from merino_edge.design.designer import design, design_by_paper  # noqa: E402
from merino_edge.design.paper.score import PRESETS  # noqa: E402
from merino_edge.prediction.cost_model import cost_model  # noqa: E402
from merino_edge.prediction.latency import amounts  # noqa: E402
from merino_edge.prediction.shape import default_lengths  # noqa: E402
from merino_edge.profiles.reading import list_profiles, load_profile  # noqa: E402

PREFILL_MS = 1000.0


def timed(search, task, profile, limits):
    """A row: the design, and the CPU time of the search with empty caches."""
    context, prompt = default_lengths(profile, None, None)
    cost_model.cache_clear()
    amounts.cache_clear()
    started = time.process_time()
    made = search(profile, limits, context=context, prompt=prompt)
    seconds = time.process_time() - started
    row = {
        "task": task, "backend": profile.backend, "limits": limits, "seconds": round(seconds, 2),
        "shape": made.architecture.shape(), "vocab": made.architecture.vocab, "precision": made.precision,
        "kv": made.kv,
        "score": float(f"{made.entropy:.5g}"), "gap": made.solver.gap, "members": made.solver.members,
        "params": made.predicted.params, "decode_ms": round(made.predicted.decode_ms, 2),
        "prefill_ms": round(made.predicted.prefill_ms, 1), "memory_mb": round(made.predicted.memory_mb, 1),
    }  # fmt: skip
    print(row, flush=True)
    return row


def board_rows():
    for board in list_profiles():
        for profile in map(board.with_backend, board.backends):
            own = with_board_defaults({}, profile)
            yield timed(design, board.id, profile, own)
            yield timed(design, board.id, profile, {**own, "prefill_ms": PREFILL_MS})


def paper_rows():
    for name, limits in PRESETS.items():
        yield timed(design_by_paper, name, load_profile("raspberry-pi-4"), limits)
    for board in list_profiles():
        yield timed(design_by_paper, board.id, board, with_board_defaults({}, board))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", type=Path, required=True)
    out = parser.parse_args().o
    claim = "CPU time of the search, and its designs, for each board and for the paper's budgets"
    content = {"threads": 1, "boards": list(board_rows()), "paper": list(paper_rows())}
    write_record(out, content, claim, "python bench/experiments/search.py")


if __name__ == "__main__":
    main()
