"""Define one benchmark record as frozen, checked types, in the schema that `bench` writes; no other is accepted.

`merino_bench`, which runs on boards and has no pydantic, writes records. `reading` reads files of them, `compare` and
`report` judge them.
"""

import re
from statistics import mean
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from merino_bench.harness.pairs import Place, Selection, rounds_by_place, select_processes
from merino_bench.harness.record import FAILED, SCHEMA
from merino_edge.families.geometry import Geometry
from merino_edge.families.registry import FAMILIES
from merino_edge.storage.faults import fault_list
from merino_runtime.backends import BACKENDS

SMALLEST, LARGEST = 1e-15, 1e18  # no measured figure lies beyond; a quotient or a sum of such is finite
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Positive = Annotated[float, Field(gt=0, ge=SMALLEST, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
AsTuple = Field(strict=False)  # a JSON list becomes a tuple; its items stay strict
Numbers = Annotated[tuple[Number, ...], AsTuple]
Samples = Annotated[tuple[Positive, ...], AsTuple, Field(min_length=1)]
Texts = Annotated[tuple[str, ...], AsTuple]
Interval = Annotated[tuple[Positive, Positive], AsTuple]
MEASURED = ("engine", "repetitions", "tok_s", "rounds_ms", "processes", "environment")  # in each row that did not fail
DEFAULT_ENGINE = "onnxruntime"


class Facts(BaseModel):
    """Frozen. Unknown keys and conversions between types are faults."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class _MachineFacts(Facts):
    """Facts that a machine reports. Boards report different ones, so unknown keys are accepted and ignored."""

    model_config = ConfigDict(extra="allow")


class Gpu(_MachineFacts):
    """A Jetson's GPU. Clocks in MHz, power in W."""

    name: str | None = None
    clock_mhz: Number | None = None
    clock_max_mhz: Number | None = None
    power_w: Number | None = None


class State(_MachineFacts):
    """The machine before or after a run."""

    governor: str | None = None
    clocks_mhz: Numbers | None = None
    clocks_max_mhz: Numbers | None = None
    temperatures_c: dict[str, Number] | None = None
    power_mode: str | None = None
    gpu: Gpu | None = None
    swap_used_mb: Number | None = None


class Environment(_MachineFacts):
    """Where a row was measured."""

    board: str | None = None
    kernel: str | None = None
    arch: str | None = None
    cpus: int | None = None
    versions: dict[str, str | None] = {}
    before: State = State()
    after: State = State()
    others_cpu_share: Number | None = None
    power_source: str | None = None  # or why there is none


class Energy(Facts):
    """Joules over all repetitions, of prefill and of decode. `net` has the idle power subtracted; power in W."""

    source: str
    rail: str | None
    interval_s: Number | None
    samples: Count | None
    idle_w: Number | None
    prefill_j: Number | None
    decode_j: Number | None
    prefill_net_j: Number | None
    decode_net_j: Number | None


class Process(Facts):
    """A fresh process of a row: `repetitions` of `rounds_ms`. Rows of one run ran side by side where both agree."""

    turn: Count
    attempt: Count
    repetitions: Count
    flags: Texts


class Record(Facts):
    """One row of `bench`: one bundle, one test. Keys and units: `merino_bench.harness.record`, docs/formats.md.

    A row that failed has None for all that was to be measured, and the reason in `flags`.
    """

    schema_version: int = Field(alias="schema")
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
    tok_s_sd: Number | None
    ms_p50: Positive | None
    ms_p90: Positive | None
    prefill_ms: Positive | None
    tokenize_ms: Number | None
    ttft_ms: Positive | None
    load_ms: Number | None
    verify_ms: Number | None
    peak_rss_mb: Positive | None
    bundle_bytes: Count | None
    params: Count | None
    bytes_per_token: Count | None
    mbu: Positive | None
    read_gb_s: Positive | None
    timed: str | None
    environment: Environment | None
    flags: Texts
    notes: Texts

    depth: Count | None
    context: Count | None
    ms_mean: Positive | None
    ms_sd: Number | None
    ms_p95: Positive | None
    ms_p99: Positive | None
    tpot_ms: Positive | None
    flops_per_token: Count | None
    prefill_threads: Count | None
    rounds_ms: Annotated[tuple[Samples, ...], AsTuple] | None
    processes: Annotated[tuple[Process, ...], AsTuple] | None
    run: str | None
    j_per_token: Positive | None
    energy: Energy | None
    date: str | None
    command: str | None

    family: str | None
    architecture: dict[str, Any] | None
    kv: str | None = None  # the cache's format where it is quantized; records had none before there were such caches
    # Only in rows of a run with a baseline.
    baseline: str | None = None  # its bundle and format
    ratio_kind: Literal["equal format", "as shipped"] | None = None
    ratio_to_baseline: Positive | None = None
    params_ratio: Positive | None = None
    ratio_interval: Interval | None = None
    ratio_turns: Annotated[tuple[Count, Count], AsTuple] | None = None
    ratio_flags: Texts | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_schema(cls, raw: Any) -> Any:
        """Raise ValueError for another schema, as one fault of the row instead of a list of missing keys."""
        schema = raw.get("schema", SCHEMA) if isinstance(raw, dict) else SCHEMA
        if schema != SCHEMA:
            raise ValueError(f"schema {schema!r} is not read, only {SCHEMA}: measure again with this version's `bench`")
        return raw

    @model_validator(mode="after")
    def _check_row(self) -> Self:
        lacking = [] if self.failure else [key for key in MEASURED if not getattr(self, key)]
        if lacking:
            raise ValueError(f"a row that did not fail must have {', '.join(lacking)}")
        counted = sum(process.repetitions for process in self.processes or ())
        if counted != len(self.rounds_ms or ()):
            raise ValueError(f"processes have {counted} repetitions, rounds_ms has {len(self.rounds_ms or ())}")
        try:
            _ = self.geometry
        except ValidationError as error:
            raise ValueError(f"the architecture is none of family {self.family}: {fault_list(error)}") from None
        return self

    @property
    def geometry(self) -> Geometry | None:
        """Return the geometry, or None if the record has no architecture or its family is unknown."""
        family = FAMILIES.get(self.family or "")
        if family is None or self.architecture is None:
            return None
        return family.geometry.model_validate(self.architecture)

    @property
    def failure(self) -> str | None:
        """Return why the row failed, or None."""
        return next((flag.removeprefix(FAILED) for flag in self.flags if flag.startswith(FAILED)), None)

    @property
    def decodes(self) -> bool:
        return self.test.startswith("tg")

    @property
    def timed_threads(self) -> int | None:
        """Return the number of threads of the phase that the row times: prefill or decode."""
        return self.threads if self.decodes else self.prefill_threads

    @property
    def tokens(self) -> int:
        """Return the timed tokens of one repetition: ids of the prompt, or decode steps."""
        return int(re.findall(r"\d+", self.test)[0])

    @property
    def cached(self) -> int:
        """Return the tokens in the cache before the first timed token."""
        return max(self.depth or 0, (self.prompt_tokens or 0) if self.decodes else 0)

    @property
    def flags_by_place(self) -> dict[Place, frozenset[str]]:
        return {(process.turn, process.attempt): frozenset(process.flags) for process in self.processes or ()}

    @property
    def selection(self) -> Selection:
        """Return the processes that count for this row alone."""
        return select_processes(self.flags_by_place)

    @property
    def disturbances(self) -> tuple[str, ...]:
        """Return what disturbed the processes that count, or why the row failed; empty if enough were undisturbed."""
        return self.flags if self.failure is not None else tuple(self.selection.flags)

    @property
    def rounds(self) -> tuple[tuple[float, ...], ...]:
        """Return the samples in ms, a tuple per repetition, of the processes that count."""
        if self.failure is not None:
            return ()
        return tuple(samples_ms for place in self.selection.places for samples_ms in self._rounds_by_place[place])

    @property
    def samples_ms(self) -> tuple[float, ...]:
        return tuple(sample for samples_ms in self.rounds for sample in samples_ms)

    @property
    def process_speeds(self) -> dict[Place, float]:
        """Return the tok/s of each process, the mean over its repetitions."""
        return {
            place: mean(1000 * self.tokens / sum(samples_ms) for samples_ms in rounds)
            for place, rounds in self._rounds_by_place.items()
        }

    @property
    def speeds(self) -> tuple[float, ...]:
        """Return the tok/s of each process that counts."""
        return tuple(self.process_speeds[place] for place in self.selection.places)

    @property
    def _rounds_by_place(self) -> dict[Place, list[tuple[float, ...]]]:
        return rounds_by_place([process.model_dump() for process in self.processes or ()], self.rounds_ms or ())

    @property
    def engine_name(self) -> str:
        """Return the engine without its version: `onnxruntime CPU` for `onnxruntime 1.32.0 CPU`."""
        return " ".join(word for word in (self.engine or "-").split() if not re.match(r"v?\d", word))

    @property
    def backend(self) -> str | None:
        """Return the backend of a profile whose figures the row is to be compared with; None for another project's
        engine."""
        return next((name for name in BACKENDS if (self.engine or "").startswith(name)), None)

    @property
    def engine_precision(self) -> str | None:
        """Return the kernels' format, where it can differ from the bundle's: `tensorrt 8.2.1.8 fp16 GPU`."""
        words = (self.engine or "").split()
        return words[2] if self.backend == "tensorrt" and len(words) > 2 and words[2] in ("fp32", "fp16") else None

    @property
    def board(self) -> str:
        return (self.environment and self.environment.board) or "unknown machine"
