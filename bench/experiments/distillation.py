"""What a teacher is worth at equal time: a small decoder of stories with and without `--teacher embedded`.

    python bench/experiments/distillation.py --data tinystories_train.txt --held-out tinystories_valid.txt --folder DIR
        -o bench/results/distillation-x86-2cores.json

The student has a quarter of the embedded model's weights beside the vocabulary, and its tokenizer. A teacher makes each
step longer, so a run without it takes as many steps as fit the CPU time of the run with it. The teacher's logits are
computed once, by a run of one step; that time is stated apart. Checkpoints are kept in DIR: a run that is there is not
repeated. One thread each.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from write_record import write_record

from merino_edge.embedded import EMBEDDED, FOLDER
from merino_edge.storage.atomic import write_text

STUDENT = {"blocks": [{"width": 96, "ffn_ratio": 3.0, "depth": 4, "kv_heads": 1}],
           "vocab": 4096, "head_size": 32, "context": 512}  # fmt: skip
STEPS, BATCH, SEEDS = 1200, 8, (0, 1)
TEACHER = ("--teacher", EMBEDDED)


def parsed(description: str | None, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of an experiment that trains; its folder is made."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("-o", type=Path, required=True)
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    return given


def trained(
    given: argparse.Namespace, design: dict[str, Any], name: str, steps: int, seed: int, *extra: str
) -> dict[str, Any]:
    """The run's held-out loss in nats a token, and its CPU seconds with start and evaluation; kept in the folder."""
    row = given.folder / f"{name}.json"
    if not row.exists():
        path = given.folder / f"{name}-design.json"
        write_text(path, json.dumps(design))
        command = [
            sys.executable, "-m", "merino_edge", "train", str(path), "--data", str(given.data), "--held-out",
            str(given.held_out), "--steps", str(steps), "--seed", str(seed), "--evaluations", "1", "-t", "1", *extra,
            "-o", str(given.folder / name),
        ]  # fmt: skip
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = sum(after[:2]) - sum(before[:2])  # of user and system
        facts = json.loads((given.folder / name / "training.json").read_text())
        result = {"name": name, "seed": seed, "steps": steps, "loss": facts["held_out_loss"], "cpu_s": round(seconds)}
        write_text(row, json.dumps(result))
    result = json.loads(row.read_text())
    print(result, flush=True)
    return dict(result)


def main(arguments: Sequence[str] | None = None) -> None:
    given = parsed(__doc__, arguments)

    def student(name: str, steps: int, seed: int, *extra: str) -> dict[str, Any]:
        same = "--tokenizer", str(FOLDER / "tokenizer.json"), "--batch", str(BATCH)
        return trained(given, STUDENT, name, steps, seed, *same, *extra)

    rows = [student("logits", 1, 0, *TEACHER), student("start", 1, 0)]
    fixed = rows[1]["cpu_s"]
    rows.append(student("equal-steps-0", STEPS, 0))
    for seed in SEEDS:
        rows.append(taught := student(f"teacher-{seed}", STEPS, seed, *TEACHER))
        steps = round(STEPS * (taught["cpu_s"] - fixed) / (rows[2]["cpu_s"] - fixed))
        rows.append(alone := student(f"alone-{seed}", steps, seed))
        print(f"seed {seed}: {taught['loss'] - alone['loss']:+.4f} nats a token by the teacher", flush=True)
    about = __doc__.split("\n\n")[0] if __doc__ else ""
    write_record(given.o, {"schema": 1, "about": about, "student": STUDENT, "batch": BATCH, "rows": rows})


if __name__ == "__main__":
    main()
