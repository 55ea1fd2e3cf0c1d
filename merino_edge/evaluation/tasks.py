"""Load tasks of lm-evaluation-harness, over data of the hub or over local files.

The harness is imported when it is used; the rest of merino_edge works without the extra `eval`. A task over a local
file is a separate task file that includes the stock one, so that prompts, answers and metrics are the published ones.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from merino_edge.storage.extras import import_extra
from merino_edge.storage.faults import near_names, one_line
from merino_edge.text.documents import TextFile, read_file, read_json_lines
from merino_runtime.errors import MerinoError

# The command shows its own progress, and lm-eval's warnings concern features that are not used.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")
logging.getLogger("lm_eval").setLevel(logging.ERROR)

OWN = ".yaml"  # a task file, which may call Python functions beside it
SEED = 1234  # of the order of examples in a prompt, as lm-eval's own command has it


class LocalTask(NamedTuple):
    """A task that can be read from a file.

    `stock`: lm-eval's task file, in the folder of its tasks. `split`: the one that the task is scored on. `name`: of
    the file, `NAME.SPLIT.jsonl`. `fields`: what each line must have.
    """

    stock: str
    split: str
    name: str
    fields: tuple[str, ...]

    @property
    def file(self) -> str:
        return f"{self.name}.{self.split}.jsonl"


_arc = ("question", "choices", "answerKey")
_entailment = ("premise", "hypothesis", "label")
LOCAL_TASKS = {
    "hellaswag": LocalTask(
        "hellaswag/hellaswag.yaml", "validation", "hellaswag", ("activity_label", "ctx_a", "ctx_b", "endings", "label")
    ),
    "winogrande": LocalTask(
        "winogrande/default.yaml", "validation", "winogrande_xl", ("sentence", "option1", "option2", "answer")
    ),
    "arc_easy": LocalTask("arc/arc_easy.yaml", "test", "arc_easy", _arc),
    "arc_challenge": LocalTask("arc/arc_challenge.yaml", "test", "arc_challenge", _arc),
    "openbookqa": LocalTask(
        "openbookqa/openbookqa.yaml", "test", "openbookqa", ("question_stem", "choices", "answerKey")
    ),
    "boolq": LocalTask(
        "super_glue/boolq/default.yaml", "validation", "superglue_boolq", ("passage", "question", "label")
    ),
    "cb": LocalTask("super_glue/cb/default.yaml", "validation", "superglue_cb", _entailment),
    "wic": LocalTask(
        "super_glue/wic/default.yaml", "validation", "superglue_wic",
        ("sentence1", "sentence2", "start1", "end1", "label"),
    ),
    "wsc": LocalTask(
        "super_glue/wsc/default.yaml", "validation", "superglue_wsc",
        ("text", "span1_text", "span2_text", "span2_index", "label"),
    ),
    "sglue_rte": LocalTask("super_glue/rte/default.yaml", "validation", "superglue_rte", _entailment),
    "pubmedqa": LocalTask(
        "pubmedqa/pubmedqa.yaml", "test", "pubmedqa_pqal", ("CONTEXTS", "QUESTION", "final_decision")
    ),
    "piqa": LocalTask("piqa/piqa.yaml", "validation", "piqa", ("goal", "sol1", "sol2", "label")),
    "lambada_openai": LocalTask("lambada/lambada_openai.yaml", "test", "lambada_openai", ("text",)),
    "wikitext": LocalTask("wikitext/wikitext.yaml", "test", "wikitext2_document_level", ("page",)),
}  # fmt: skip


class LoadedTask(NamedTuple):
    """`task`: lm-eval's. `data`: the local file that it reads; None for data of the hub."""

    name: str
    task: Any
    data: TextFile | None


def check_local(names: Sequence[str], folder: Path) -> dict[str, TextFile]:
    """Return the file of each task. Raise MerinoError for a task that has no local form, and for a file that is missing
    or lacks a field, with its line."""
    if not folder.is_dir():
        raise MerinoError(f"--data {folder} is no folder: give the one that holds the tasks' files (docs/evaluate.md)")
    for name in names:
        if name.endswith(OWN):
            raise MerinoError(f"--tasks {name} names its own data: leave --data out")
        if name not in LOCAL_TASKS:
            raise MerinoError(
                f"--tasks {name!r} cannot be read from files{near_names(name, LOCAL_TASKS)}. Tasks for --data:"
                f" {', '.join(LOCAL_TASKS)}"
            )
    return {name: check_data(name, LOCAL_TASKS[name], folder) for name in names}


def check_data(name: str, local: LocalTask, folder: Path) -> TextFile:
    path = folder / local.file
    if not path.is_file():
        raise MerinoError(f"--data {folder} has no {local.file}, which the task {name} reads: copy it there")
    where = ""
    for where, row in read_json_lines(path, str(path)):
        lacking = [field for field in local.fields if row.get(field) is None]
        if lacking:
            raise MerinoError(
                f"{where} lacks {', '.join(lacking)}: give each line {', '.join(local.fields)}, which the task {name}"
                " needs"
            )
    if not where:
        raise MerinoError(f"{path} is empty: copy it again, with {', '.join(local.fields)} in each line")
    return read_file(path, "--data")[1]


@contextlib.contextmanager
def loaded_tasks(names: Sequence[str], folder: Path | None) -> Iterator[list[LoadedTask]]:
    """Yield the tasks, ready to be evaluated; a name may be that of a task file. Raise MerinoError if a task is not
    known, or its data cannot be loaded."""
    data = check_local(names, folder) if folder else {}
    manager = import_extra("lm_eval.tasks").TaskManager
    with contextlib.ExitStack() as stack:
        if folder:
            scratch = Path(stack.enter_context(TemporaryDirectory(prefix="merino-eval-")))
            loader = manager(include_defaults=False)
            groups = {name: loader.load([str(task_file(name, folder, scratch))])["tasks"] for name in names}
        else:
            loader = manager()
            for name in names:
                if not (Path(name).is_file() if name.endswith(OWN) else name in loader.all_tasks):
                    raise MerinoError(
                        f"--tasks {name!r} is neither a file nor a task of lm-evaluation-harness"
                        f"{near_names(name, loader.all_tasks)}. `lm-eval ls tasks` lists all; with"
                        f" --data: {', '.join(LOCAL_TASKS)}"
                    )
            groups = {name: from_hub(loader, name) for name in names}
        tasks = [
            LoadedTask(task_name, task, data.get(name))
            for name, group in groups.items() for task_name, task in group.items()
        ]  # fmt: skip
        for loaded in tasks:
            if loaded.task.get_config("num_fewshot") is None:
                loaded.task.set_config(key="num_fewshot", value=0)
            loaded.task.set_fewshot_seed(seed=SEED)
        yield tasks


def task_file(name: str, folder: Path, scratch: Path) -> Path:
    """Write a task file in `scratch` that includes lm-eval's own and reads the local data."""
    local = LOCAL_TASKS[name]
    stock = Path(import_extra("lm_eval.tasks").__file__).parent / local.stock
    splits = {f"{split}_split": None for split in ("training", "validation", "test", "fewshot")}
    content = {
        "include": str(stock), "task": name, "dataset_path": "json", "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {local.split: str((folder / local.file).resolve())}, "cache_dir": str(scratch / "datasets")
        },
        **splits, f"{local.split}_split": local.split,
    }  # fmt: skip
    path = scratch / f"{name}.yaml"
    path.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return path


def from_hub(known: Any, name: str) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = known.load([name])["tasks"]
    except Exception as error:  # of the network, the hub's library and `datasets`, which share no base
        offline = f" or give its file with --data DIR ({LOCAL_TASKS[name].file})" if name in LOCAL_TASKS else ""
        remedy = "Correct the file" if name.endswith(OWN) else f"Check the network{offline}"
        raise MerinoError(f"the task {name} cannot be loaded: {one_line(error)}. {remedy}") from error
    return loaded
