"""Define one record of an evaluation: a model's metrics on one task, or on one text. `eval` writes a list of them;
`report` shows them beside benchmark records of the same bundles."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from merino_edge.records.schema import Count, Facts
from merino_edge.storage.faults import fault_list
from merino_edge.text.documents import TextFile
from merino_runtime.errors import MerinoError


class Metric(Facts):
    """`stderr`: lm-eval's standard error over items. `interval`: 95 %, over the documents of a text."""

    value: float
    stderr: float | None = None
    interval: Annotated[tuple[float, float], Field(strict=False)] | None = None
    higher_is_better: bool


class Evaluation(Facts):
    """One model, one task or text.

    Attributes:
        source: as it was given to `eval`.
        sha256: of bundle.json, of a GGUF, or over a checkpoint's files; a benchmark record's `bundle_sha256` is the
            same for the same bundle.
        engine: what computed the logits.
        task: the name of lm-evaluation-harness, or `perplexity`.
        items: how many were scored; `of_items` is how many there are. Of a text: its documents.
        scored_tokens: of a text; None for tasks.
        truncated: requests that were longer than the context and lost their beginning.
        data: the local file; None for data of the hub.
    """

    schema_version: Literal[1] = Field(alias="schema", default=1)
    model: str
    source: str
    sha256: str
    engine: str
    precision: str
    dialect: str | None
    kv: str | None
    weights: Literal["trained", "random"]
    params: Count
    context: Count
    task: str
    task_version: str | None
    metrics: dict[str, Metric] = Field(min_length=1)
    items: Count
    of_items: Count
    scored_tokens: Count | None = None
    few_shot: Count
    chat_template: bool
    truncated: Count
    data: TextFile | None
    seconds: float
    versions: dict[str, str]
    date: str
    command: str

    @property
    def main(self) -> tuple[str, Metric]:
        """Return the metric that a table or a chart shows where it shows one."""
        for name in ("acc_norm", "acc", "bits_per_byte"):
            if name in self.metrics:
                return name, self.metrics[name]
        return next(iter(self.metrics.items()))


EVALUATIONS = TypeAdapter(list[Evaluation])


def to_json(rows: list[Evaluation]) -> str:
    return EVALUATIONS.dump_json(rows, indent=1, by_alias=True).decode("utf-8") + "\n"


def is_evaluations(text: str) -> bool:
    """Return whether a file is meant to hold such records: benchmark records have no `task`."""
    return text.lstrip().startswith("[") and '"task":' in text[:4000]


def parse_evaluations(text: str, path: Path) -> list[Evaluation]:
    """Parse the records of an evaluation. Raise MerinoError for anything that `eval` did not write."""
    try:
        return EVALUATIONS.validate_json(text)
    except ValidationError as error:
        raise MerinoError(
            f"{path} is no record of an evaluation: {fault_list(error)}. `merino-edge eval -o FILE` writes one"
        ) from error
