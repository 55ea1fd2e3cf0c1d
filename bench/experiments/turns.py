"""Rows measured in passes, minutes apart, in a file that grows by one measurement at a time.

Of each quantity the median over passes counts (`over_passes`), as over the probes that predictions come from: a shared
machine's memory is slower and faster by the minute. All passes are in the file.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from write_record import write_record

from merino_edge.calibration.board import board

PASSES = 5


def arguments(description: str, default_out: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, dest="out", required=True, help=f"for the record: {default_out}")
    parser.add_argument("--device", default="host", help="a calibrated profile; default: this machine's own")
    parser.add_argument("--passes", type=int, default=PASSES, help="default %(default)s")
    parser.add_argument("--only-table", action="store_true", help="measure nothing")
    return parser.parse_args()


def take_turns(
    asked: argparse.Namespace,
    tasks: dict[str, Any],
    measure: Callable[[Any, Path], dict[str, Any]],
    row_of: Callable[[Any, list[dict[str, Any]]], dict[str, Any]],
    summary: Callable[[list[dict[str, Any]]], Any],
) -> list[dict[str, Any]]:
    """`measure(task, folder for its bundle)` -> quantities and `flags`; `row_of(task, passes)` -> a row."""
    coefficients = board(asked.device).performance.onnxruntime.coefficients
    head = {"times": coefficients.source if coefficients else None}
    passes = json.loads(asked.out.read_text())["passes"] if asked.out.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(0 if asked.only_table else asked.passes):
            for place, (name, task) in enumerate(tasks.items()):
                done = passes.setdefault(name, [])
                if len(done) > number:
                    continue
                print(f"pass {number + 1} of {asked.passes}, {place + 1} of {len(tasks)}: {name}", file=sys.stderr)
                done.append(measure(task, Path(scratch) / str(place)))
                save(asked.out, {**head, "passes": passes})
    rows = [{"name": name, **row_of(task, passes[name])} for name, task in tasks.items() if passes.get(name)]
    save(asked.out, {**head, "summary": summary(rows), "rows": rows, "passes": passes})
    return rows


def over_passes(done: list[dict[str, Any]]) -> dict[str, float]:
    """The median of each quantity over the passes without flags; over all passes where each has one."""
    runs = [run for run in done if not run["flags"]] or done
    return {key: median(run[key] for run in runs) for key in runs[0] if key != "flags"}


def save(path: Path, content: dict[str, Any]) -> None:
    write_record(path, content)
