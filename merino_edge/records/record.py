"""Benchmark records as the workstation reads them: JSON lists and JSON lines of schema 1 and 2, checked and frozen.

Writing them is `merino_bench`'s, which runs on boards and has no pydantic; what they say is `compare`'s and
`report`'s.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from merino_bench.harness.record import FAILED
from merino_edge.families.geometry import Geometry
from merino_edge.families.registry import FAMILIES
from merino_edge.storage.faults import fault, fault_list
from merino_runtime.errors import MerinoError

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Many = Field(strict=False)  # a JSON list fills a tuple; its items stay strict
Numbers = Annotated[tuple[float, ...], Many]
Samples = Annotated[tuple[Positive, ...], Many]
Words = Annotated[tuple[str, ...], Many]
Interval = Annotated[tuple[Positive, Positive], Many]
SINCE_2 = (
    "depth", "context", "ms_mean", "ms_sd", "ms_p95", "ms_p99", "tpot_ms", "flops_per_token", "prefill_threads",
    "rounds_ms", "j_per_token", "energy", "date", "command", "family", "architecture",
)  # fmt: skip
MEASURED = ("engine", "repetitions", "tok_s", "samples_ms", "environment")  # what a row that did not fail has
USUAL_ENGINE = "onnxruntime"
SHOWN_ROWS = 5  # of those with the same fault


class _Facts(BaseModel):
    """Frozen; no unknown keys; no quiet conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class State(BaseModel):
    """The machine before or after a run. Boards differ in what else they say, so further keys are kept unread."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)

    governor: str | None = None
    clocks_mhz: Numbers | None = None
    clocks_max_mhz: Numbers | None = None
    temperatures_c: dict[str, float] | None = None
    power_mode: str | None = None
    swap_used_mb: float | None = None
    load_1m: float | None = None


class Environment(BaseModel):
    """Where a row was measured; further keys are kept unread."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)

    board: str | None = None
    kernel: str | None = None
    arch: str | None = None
    cpus: int | None = None
    versions: dict[str, str | None] = {}
    before: State = State()
    after: State = State()
    others_cpu_share: float | None = None
    power_source: str | None = None  # or why there is none


class Energy(_Facts):
    """Of all repetitions, prefill and decode apart; `net` has the idle power subtracted."""

    source: str
    rail: str | None
    interval_s: float | None
    samples: Count | None
    idle_w: float | None
    prefill_j: float | None
    decode_j: float | None
    prefill_net_j: float | None
    decode_net_j: float | None


class Record(_Facts):
    """One row of `bench`: one bundle, one test. Keys and units: `merino_bench.harness.record`, docs/formats.md.

    Keys that schema 1 had not are None in its records. A row that failed has null figures and says why in `flags`.
    """

    schema_version: Literal[1, 2] = Field(alias="schema")
    bundle: str
    bundle_sha256: str | None
    engine: str | None
    precision: str | None
    dialect: str | None
    weights: Literal["real", "random"] | None
    weights_source: str | None
    test: Annotated[str, Field(pattern=r"^(pp|tg)\d")]
    prompt_tokens: Count | None
    repetitions: Count | None
    threads: Count | None
    tok_s: Positive | None
    tok_s_sd: float | None
    ms_p50: Positive | None
    ms_p90: Positive | None
    ttft_ms: Positive | None
    load_ms: float | None
    verify_ms: float | None
    peak_rss_mb: Positive | None
    bundle_bytes: Count | None
    params: Count | None
    bytes_per_token: Count | None
    ceiling_share: Positive | None
    read_gb_s: Positive | None
    samples_ms: Samples | None
    timed: str | None
    environment: Environment | None
    flags: Words
    notes: Words

    depth: Count | None
    context: Count | None
    ms_mean: Positive | None
    ms_sd: float | None
    ms_p95: Positive | None
    ms_p99: Positive | None
    tpot_ms: Positive | None
    flops_per_token: Count | None
    prefill_threads: Count | None
    rounds_ms: Annotated[tuple[Samples, ...], Many] | None
    j_per_token: Positive | None
    energy: Energy | None
    date: str | None
    command: str | None

    family: str | None
    architecture: dict[str, Any] | None
    # Of a run with a baseline only.
    baseline: str | None = None  # bundle and format
    ratio_kind: Literal["equal format", "as shipped"] | None = None
    ratio_to_baseline: Positive | None = None
    params_ratio: Positive | None = None
    ratio_interval: Interval | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_schema_1(cls, raw: Any) -> Any:
        """Only a record that says it is of schema 1 may lack the keys of schema 2."""
        if isinstance(raw, dict) and raw.get("schema") == 1:
            return {**dict.fromkeys(SINCE_2), **raw}
        return raw

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        lacking = [] if self.failure else [key for key in MEASURED if not getattr(self, key)]
        if lacking:
            raise ValueError(f"a row that did not fail must have {', '.join(lacking)}")
        try:
            _ = self.geometry
        except ValidationError as error:
            raise ValueError(f"the architecture is none of family {self.family}: {fault_list(error)}") from None
        if self.rounds_ms is None and self.samples_ms and len(self.samples_ms) % (self.repetitions or 1):
            raise ValueError(f"{len(self.samples_ms)} samples do not split into {self.repetitions} repetitions")
        return self

    @property
    def geometry(self) -> Geometry | None:
        """None where the record carries none, or one of a family that is not known here."""
        family = FAMILIES.get(self.family or "")
        if family is None or self.architecture is None:
            return None
        return family.geometry.model_validate(self.architecture)

    @property
    def failure(self) -> str | None:
        """The reason, where the row failed."""
        return next((flag.removeprefix(FAILED) for flag in self.flags if flag.startswith(FAILED)), None)

    @property
    def decodes(self) -> bool:
        return self.test.startswith("tg")

    @property
    def tokens(self) -> int:
        """Of one repetition: the prompt's, or the decode steps."""
        found = re.match(r"\D+(\d+)", self.test)
        assert found is not None
        return int(found.group(1))

    @property
    def cached(self) -> int:
        """Tokens in the cache before the first timed token."""
        return max(self.depth or 0, (self.prompt_tokens or 0) if self.decodes else 0)

    @property
    def rounds(self) -> tuple[tuple[float, ...], ...]:
        """Samples in ms, a tuple per repetition; schema 1 has them one after another."""
        if self.rounds_ms is not None:
            return self.rounds_ms
        samples, repetitions = self.samples_ms or (), self.repetitions or 1
        size = len(samples) // repetitions
        return tuple(samples[start * size : (start + 1) * size] for start in range(repetitions)) if size else ()

    @property
    def speeds(self) -> tuple[float, ...]:
        """tok/s of each repetition; their mean is `tok_s`."""
        return tuple(1000 * self.tokens / sum(one) for one in self.rounds if one)

    @property
    def engine_name(self) -> str:
        """Without the version: `onnxruntime 1.32.0 CPU` is `onnxruntime CPU`."""
        return " ".join(word for word in (self.engine or "-").split() if not re.match(r"v?\d", word))

    @property
    def runs_on_onnxruntime(self) -> bool:
        return (self.engine or "").startswith(USUAL_ENGINE)

    @property
    def board(self) -> str:
        return (self.environment and self.environment.board) or "unknown machine"


def read_records(paths: Iterable[Path]) -> list[Record]:
    """All rows of all files, in order. Every fault of every file in one MerinoError."""
    records: list[Record] = []
    faults: list[str] = []
    for path in paths:
        try:
            found, wrong = parse_records(path.read_text(encoding="utf-8"))
        except OSError as error:
            found, wrong = [], [f"cannot be read: {error.strerror}"]
        except UnicodeDecodeError:
            found, wrong = [], ["is not UTF-8 text"]
        records += found
        faults += [f"{path}: {each}" for each in wrong]
    if faults:
        listed = "".join(f"\n  {each}" for each in faults)
        raise MerinoError(f"these are not benchmark records (`bench --save FILE` writes some), correct them:{listed}")
    return records


def parse_records(text: str) -> tuple[list[Record], list[str]]:
    """(records, faults) of a JSON list or of JSON lines, told apart by the first character."""
    try:
        if text.lstrip().startswith("["):
            found = TypeAdapter(list[Record]).validate_json(text)
            return (found, []) if found else ([], ["holds no record"])
    except ValidationError as error:
        return [], faults_by_row([(int(one["loc"][0]) if one["loc"] else None, one) for one in _details(error)])
    records: list[Record] = []
    wrong: list[tuple[int | None, dict[str, Any]]] = []
    lines = [line for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        try:
            records.append(Record.model_validate_json(line))
        except ValidationError as error:
            wrong += [(number, {**one, "loc": (number, *one["loc"])}) for one in _details(error)]
    return records, faults_by_row(wrong) if lines else ["holds no record"]


def faults_by_row(details: Sequence[tuple[int | None, dict[str, Any]]]) -> list[str]:
    """One line per different fault, with the rows that have it (the first is 1); missing keys on one line, and
    unknown ones."""
    rows: dict[tuple[str, str], list[int]] = {}
    for row, detail in details:
        detail = {**detail, "loc": detail["loc"][1:]}
        key = ".".join(str(part) for part in detail["loc"])
        kind = {"missing": "missing", "extra_forbidden": "unknown keys, remove them"}.get(detail["type"], "")
        found = (kind, key) if kind else ("", fault(detail).removeprefix("the file: "))
        rows.setdefault(found, []).extend([] if row is None else [row + 1])
    lines: dict[tuple[str, str], list[str]] = {}
    for (kind, said), found_rows in rows.items():
        lines.setdefault((_row_list(found_rows), kind or said), []).append(said)
    return [f"{where}{kind}: {', '.join(said)}" if [kind] != said else f"{where}{kind}"
            for (where, kind), said in lines.items()]


def _row_list(rows: Sequence[int]) -> str:
    if not rows:
        return ""
    more = f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
    return f"row {', '.join(map(str, rows[:SHOWN_ROWS]))}{more}: "


def _details(error: ValidationError) -> list[dict[str, Any]]:
    return [dict(one) for one in error.errors(include_url=False, include_context=False)]
