"""Rows measured in passes, minutes apart, in a file that grows by one measurement at a time.

What disturbs a machine only ever adds time, and comes and goes. So of each figure the quietest pass counts, as in the
probe that predictions come from; all passes are in the file.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from merino_edge.profiles import load_profile

PASSES = 5


def arguments(description: str, usual_out: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, dest="out", required=True, help=f"for the record: {usual_out}")
    parser.add_argument("--device", default="host", help="a calibrated profile; default: this machine's own")
    parser.add_argument("--passes", type=int, default=PASSES, help="default %(default)s")
    parser.add_argument("--only-table", action="store_true", help="measure nothing")
    return parser.parse_args()


def take_turns(
    asked: argparse.Namespace,
    tasks: dict[str, Any],
    measure: Callable[[Any, Path], dict[str, Any]],
    row_of: Callable[[Any, dict[str, float]], dict[str, Any]],
    summary: Callable[[list[dict[str, Any]]], Any],
) -> list[dict[str, Any]]:
    """`measure(task, folder for its bundle)` -> figures and `flags`; `row_of(task, quietest figures)` -> a row."""
    times = load_profile(asked.device).performance.times
    head = {"times": times.source if times else None}
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
    rows = [{"name": name, **row_of(tasks[name], quietest(done))} for name, done in passes.items() if done]
    save(asked.out, {**head, "summary": summary(rows), "rows": rows, "passes": passes})
    return rows


def quietest(done: list[dict[str, Any]]) -> dict[str, float]:
    """The least of each figure over the passes that nothing of this machine disturbed, or over all."""
    runs = [run for run in done if not run["flags"]] or done
    return {key: min(run[key] for run in runs) for key in runs[0] if key != "flags"}


def save(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
