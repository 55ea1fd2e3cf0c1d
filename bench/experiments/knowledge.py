"""What a published model knows in each format, and in llama.cpp from the same file: tasks of lm-evaluation-harness
through one log-likelihood code.

    merino-edge export FILE.gguf --precision int8 --all-logits -o DIR/int8     (and so on, one for each format)
    python bench/experiments/knowledge.py DIR/fp32 DIR/int8 DIR/int4 DIR/int8-kv8 --gguf FILE.gguf --data TASKS \\
        --limit 100 -o bench/results/knowledge-smollm2.json

Each scores the same first items of a task, from the same ids. llama.cpp is the build of `make peers-native` with its
default cache of float16. A task that is in the record is not scored again, nor is an answer that is kept beside it.
"""

import argparse
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp_peer import LlamaCpp
from write_record import kept_record, table, write_record

from merino_edge.evaluation.answers import begun
from merino_edge.evaluation.models import Scored, bundle_model
from merino_edge.evaluation.run import TaskRequest, evaluate_model
from merino_edge.evaluation.tasks import LOCAL_TASKS, loaded_tasks
from merino_runtime.api import open_model


def rival_model(mine: Scored, gguf: Path, threads: int) -> Scored:
    """llama.cpp behind the tokenizer and the beginning of our bundle `mine`, so that it sees the same ids."""
    assert mine.bundle is not None
    rival = LlamaCpp(gguf, mine.context, threads)
    mine.bundle.backend.close()
    mine.bundle.backend = rival  # type: ignore[assignment]
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    facts = {**mine.facts, "source": gguf.name, "sha256": digest, "engine": rival.engine, "precision": "as the file",
             "dialect": None, "kv": None}  # fmt: skip
    return mine._replace(facts=facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--gguf", type=Path, help="the file that they were exported from, for llama.cpp")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", default=",".join(LOCAL_TASKS))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args()
    record = kept_record(given.out, {"schema": 1, "about": __doc__.split("\n\n")[0], "rows": []})
    answers = begun(given.out, resume=True)
    for task in given.tasks.split(","):
        for path in [*given.bundles, *([None] if given.gguf else [])]:
            name = path.name if path else "llama.cpp"
            if any((row["name"], row["task"]) == (name, task) for row in record["rows"]):
                continue
            request = TaskRequest((task,), given.data, given.limit)
            with open_model(str(path or given.bundles[0]), threads=given.threads) as model:
                scored = bundle_model(model, name)
                if path is None:
                    scored = rival_model(scored, given.gguf, given.threads or 2)
                with loaded_tasks(request.tasks, request.data) as tasks:
                    for row in evaluate_model(scored, tasks, request, answers, lambda *_: None, print):
                        fields = row.model_dump(mode="json", by_alias=True, exclude={"command", "source", "versions"})
                        record["rows"].append({"name": name, **fields})
                        record.setdefault("versions", row.versions)
            write_record(given.out, record)
            print(shown(record["rows"][-1]), flush=True)
    print(summary(record["rows"]))


def shown(row: dict[str, Any]) -> str:
    metrics = [f"{name} {each['value']:.4f}" + (f" ± {each['stderr']:.4f}" if each["stderr"] else "")
               for name, each in row["metrics"].items()]  # fmt: skip
    return f"{row['task']}, {row['name']}: {'; '.join(metrics)} ({row['items']} of {row['of_items']} items)"


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracy in percent of each task and name, in Markdown, and the mean over tasks that all have."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    value = {(row["name"], row["task"]): main_metric(row) for row in rows}
    lines = [[task, *(cell(value.get((name, task), math.nan), task) for name in names)] for task in tasks]
    whole = [task for task in tasks if task != "wikitext" and all((name, task) in value for name in names)]
    means = [f"{100 * float(np.mean([value[name, task] for task in whole])):.1f}" for name in names] if whole else []
    return table(["task", *names], [*lines, *([["mean", *means]] if whole else [])])


def main_metric(row: dict[str, Any]) -> float:
    metrics = row["metrics"]
    for name in ("acc_norm", "acc", "bits_per_byte"):
        if name in metrics:
            return float(metrics[name]["value"])
    raise ValueError(f"{row['task']} has none of the metrics that are shown: {sorted(metrics)}")


def cell(value: float, task: str) -> str:
    return f"{value:.4f}" if task == "wikitext" else f"{100 * value:.1f}"


if __name__ == "__main__":
    main()
