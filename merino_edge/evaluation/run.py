"""Run evaluations by lm-evaluation-harness: a row of the record for each source and task."""

import contextlib
import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from merino_edge.evaluation.models import SourceModel, open_source
from merino_edge.evaluation.request_cache import RequestCache
from merino_edge.evaluation.tasks import LoadedTask, loaded_tasks
from merino_edge.records.evaluation import Evaluation, Metric
from merino_edge.storage.extras import import_extra
from merino_runtime.errors import MerinoError

Progress = Callable[[int, int, str], None]
Say = Callable[[str], None]
BOOTSTRAPS = 1000  # for standard errors of metrics that are no means
PACKAGES = ("merino_edge", "onnxruntime", "torch", "transformers", "tokenizers")
SHOWN = {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"}  # metrics of which less is better


class TaskRequest(NamedTuple):
    """`data`: the folder of local files; None: data of the hub. `limit`: items per task; None: all."""

    tasks: tuple[str, ...]
    data: Path | None = None
    limit: int | None = None
    chat_template: bool = False


def evaluate(
    sources: Sequence[str], request: TaskRequest, cache: RequestCache, progress: Progress = lambda *_: None,
    say: Say = lambda _: None,
) -> Iterator[Evaluation]:  # fmt: skip
    """Yield a row per source and task, when each is done. Raise MerinoError for a source or task that cannot be
    evaluated."""
    if not all(request.tasks):
        raise MerinoError("--tasks has an empty name: give names with commas between, such as hellaswag,arc_easy")
    with loaded_tasks(request.tasks, request.data) as tasks:
        from merino_edge.evaluation.language_model import CachedLM

        for what in sources:
            with open_source(what, say) as model:
                lm = language_model(model)
                if request.chat_template and not lm.chat_template(True):
                    raise MerinoError(f"{model.name} has no chat template: leave out --chat-template")
                for task in tasks:
                    start, truncated = time.monotonic(), getattr(lm, "truncated", 0)
                    cached = CachedLM(lm, cache, model.facts["sha256"], task.name, progress)
                    try:
                        row = run_task(cached, task, request)
                    finally:
                        cache.write()
                    yield Evaluation(
                        **model.facts, **row, truncated=getattr(lm, "truncated", 0) - truncated,
                        seconds=round(time.monotonic() - start, 1), **circumstances(task.data, "lm_eval"),
                    )  # fmt: skip


def language_model(model: SourceModel) -> Any:
    """Return a `BundleLM` for a bundle, else lm-eval's `hf`."""
    if model.bundle is not None:
        from merino_edge.evaluation.language_model import BundleLM

        return BundleLM(model.bundle)
    from transformers import PreTrainedTokenizerFast

    from merino_edge.text.tokenizer import prefix_id

    begin = prefix_id(model.name, model.tokenizer, model.tokens, model.stop_ids)
    end = model.stop_ids[0] if model.stop_ids else begin
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model.tokenizer, bos_token=model.tokenizer.id_to_token(begin),
        eos_token=model.tokenizer.id_to_token(end),
    )  # fmt: skip
    tokenizer.name_or_path = model.name
    if model.source.chat:
        tokenizer.chat_template = model.source.chat.text
    made = import_extra("lm_eval.models.huggingface").HFLM
    return made(pretrained=model.source.model, tokenizer=tokenizer, max_length=model.context, batch_size=1)


def run_task(cached: Any, task: LoadedTask, request: TaskRequest) -> dict[str, Any]:
    """Evaluate one task with one model, and return the row's keys that come from lm-eval."""
    evaluator = import_extra("lm_eval.evaluator")
    evaluator.eval_logger.setLevel(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):  # lm-eval prints to stdout, which holds the records
        result = evaluator.evaluate(
            cached, {"tasks": {task.name: task.task}, "groups": {}}, limit=request.limit, bootstrap_iters=BOOTSTRAPS,
            log_samples=False, apply_chat_template=request.chat_template,
        )  # fmt: skip
    counts = result["n-samples"][task.name]
    return {
        "task": task.name, "task_version": str(result["versions"].get(task.name)),
        "metrics": metrics_of(result["results"][task.name], result["higher_is_better"].get(task.name) or {}),
        "items": counts["effective"], "of_items": counts["original"], "few_shot": result["n-shot"][task.name],
        "chat_template": request.chat_template,
    }  # fmt: skip


def metrics_of(results: dict[str, Any], higher: dict[str, Any]) -> dict[str, Metric]:
    """Return lm-eval's `acc,none` and `acc_stderr,none` as one metric `acc`."""
    metrics = {}
    for key, value in results.items():
        name, _, filtered = key.partition(",")
        if not filtered or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = results.get(f"{name}_stderr,{filtered}")
        better = higher.get(name)
        metrics[name if filtered == "none" else f"{name},{filtered}"] = Metric(
            value=float(value), stderr=float(stderr) if isinstance(stderr, int | float) and stderr == stderr else None,
            higher_is_better=name not in SHOWN if better is None else bool(better),
        )  # fmt: skip
    return metrics


def circumstances(data: Any, *packages: str) -> dict[str, Any]:
    """Return the keys of a row that name data, versions, date and command. `packages`: further ones whose versions
    count."""
    versions = {}
    for package in (*PACKAGES, *packages):
        with contextlib.suppress(PackageNotFoundError):  # of the base install: bundles need no torch
            versions[package] = version(package)
    return {
        "data": data, "versions": versions,
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "command": shlex.join(["merino-edge", *sys.argv[1:]]),
    }  # fmt: skip
