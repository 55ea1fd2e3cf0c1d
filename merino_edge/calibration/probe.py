"""probe.json, as `merino probe` writes it on a board (docs/formats.md): its types, reading it, and joining several."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from merino_bench.probe.run import SCHEMA as PROBE_SCHEMA
from merino_bench.probe.tasks import DECODER_CONTEXT, DECODER_VOCAB
from merino_edge.families.designed import Architecture, Block
from merino_edge.profiles.coefficients import Dialect
from merino_edge.profiles.profile import Backend
from merino_edge.storage.faults import fault_list, refuse_other_schema
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json_and_text

Positive = Annotated[float, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
TIMES = ("ms", "median_ms", "least_ms", "repeats")
MEMORY_MB = ("imports_mb", "open_mb", "peak_mb", "gpu_mb")


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Row = TypeVar("Row", bound=Strict)


class Measurement(Strict):
    """One row of the probe; see docs/formats.md."""

    kind: Literal[
        "read", "linear", "head", "attention", "norm", "activation", "call", "argmax", "decoder",
        "chain", "copy",  # of a GPU
    ]  # fmt: skip
    format: Literal["fp32", "fp16", "int8", "int4"]
    rows: Natural
    columns: Natural
    heads: Natural
    kv_heads: Natural
    kv: Literal["fp32", "int8", "int4"]
    count: Annotated[int, Field(ge=1)]
    uses: Annotated[int, Field(ge=1)]
    by_groups: bool
    threads: Annotated[int, Field(ge=1)]
    past: Natural
    tokens: Natural
    weight_bytes: Natural
    cached: bool
    ms: Positive
    median_ms: Positive
    least_ms: Positive
    repeats: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _has_heads(self) -> Self:
        attends = self.kind in ("attention", "decoder")
        if attends and not (1 <= self.kv_heads <= self.heads and self.heads % self.kv_heads == 0):
            raise ValueError(f"kv_heads is {self.kv_heads}, must divide heads, {self.heads}")
        if attends and self.columns % self.heads:
            raise ValueError(f"heads is {self.heads}, must divide columns, {self.columns}")
        return self


class Resident(Strict):
    """Memory of a fresh process, in MB of 2^20 bytes."""

    imports_mb: float
    open_mb: float
    peak_mb: float
    gpu_mb: float = 0.0  # beside it, of a GPU that shares the memory
    kind: Literal["call", "linear", "head"]
    format: Literal["fp32", "int8", "int4"]
    weight_bytes: Natural


class MeasuredDesign(Strict):
    """A decoder that a search chose for the probed machine, measured there by the benchmark with random weights.

    Decode steps have `past` cached tokens on average, up to a full cache; a prefill has `prompt` tokens. `predicted_*`:
    by the fit that the search used, without this design.
    """

    architecture: Architecture
    format: Literal["fp32", "int8", "int4"]
    score: str
    budget_ms: Positive  # of a decode step
    past: Natural
    prompt: Annotated[int, Field(ge=1)]
    decode_threads: Annotated[int, Field(ge=1)]
    prefill_threads: Annotated[int, Field(ge=1)]
    decode_ms: Positive
    prefill_ms: Positive
    predicted_decode_ms: Positive
    predicted_prefill_ms: Positive
    flags: list[str]


class Probe(Strict):
    """probe.json."""

    schema_version: Annotated[int, Field(alias="schema", ge=PROBE_SCHEMA, le=PROBE_SCHEMA)]
    backend: Backend  # what ran the graphs
    date: str
    seconds: float
    machine: dict[str, Any]
    gpu: dict[str, Any] | None = None
    power_mode: str | None = None  # as nvpmodel calls it; of a GPU's probe
    isa: list[str]
    cores: Annotated[int, Field(ge=1)]
    last_level_cache_mb: Positive | None
    memory_mb: float | None
    dialect: Dialect
    flags: list[str]
    others_cpu_share: float | None
    left_out: list[str]
    measurements: Annotated[list[Measurement], Field(min_length=1)]
    resident: list[Resident]
    designs: list[MeasuredDesign] = []  # added by `calibrate`

    @property
    def threads(self) -> list[int]:
        """Return the thread counts with enough measurements: of matmuls and of grouped-query attention."""
        counts = sorted({row.threads for row in self.measurements})
        return [count for count in counts if {("linear", False), ("attention", True)} <= {
            (row.kind, row.kv_heads < row.heads) for row in self.measurements if row.threads == count}]

    @property
    def source(self) -> str:
        versions = self.machine.get("versions")
        pairs = versions.items() if isinstance(versions, dict) else ()
        named = ", ".join(f"{name} {version}" for name, version in pairs if version)
        state = f"; flags: {', '.join(self.flags)}" if self.flags else ""
        return f"probe of {self.date} on {self.machine.get('board') or 'an unnamed machine'} ({named}){state}"


def timed_decoder(width: int, ffn_width: int, layers: int, uses: int, heads: int, kv_heads: int) -> Architecture:
    """Return the geometry of a decoder that the probe times; each argument is a column of its row.

    Layers used once are one block; layers used several times are a block each, with shared weights.
    """
    depth, blocks = (uses, layers) if uses > 1 else (layers, 1)
    grouped = kv_heads if kv_heads < heads else None
    block = Block(width=width, ffn_ratio=ffn_width / width, depth=depth, shared=uses > 1, kv_heads=grouped)
    return Architecture(
        blocks=(block,) * blocks, vocab=DECODER_VOCAB, head_size=width // heads, context=DECODER_CONTEXT
    )


def read_probe(path: Path) -> Probe:
    """Read a probe.json. Raise MerinoError with all faults of the file at once."""
    raw, text = read_json_and_text(str(path), f"`merino probe -o {path}` writes one.")
    refuse_other_schema(raw, PROBE_SCHEMA, str(path), "python3", "merino.pyz", "probe", "-o", path.name)
    return parse_probe(text, str(path))


def parse_probe(text: str, origin: str) -> Probe:
    """Return the probe in the text of a probe.json. Raise MerinoError with all its faults; `origin`: the text's
    name."""
    try:
        return Probe.model_validate_json(text)
    except ValidationError as error:
        raise MerinoError(
            f"{origin} is not a probe.json: {fault_list(error)}. Make it again by `merino probe`"
        ) from error


def joined(probes: Sequence[Probe]) -> Probe:
    """Join several probes of one machine: the last, with each row's median over all of them, and with all designs.

    A shared machine is slower at some times of the day, so several probes are more reliable than one.
    """
    measurements = medians([row for probe in probes for row in probe.measurements], ("ms",), TIMES)
    resident = medians([row for probe in probes for row in probe.resident], MEMORY_MB, MEMORY_MB)
    designs = [design for probe in probes for design in probe.designs]
    return probes[-1].model_copy(update={"measurements": measurements, "resident": resident, "designs": designs})


def facts(row: Strict, measured: Sequence[str] = TIMES) -> tuple[Any, ...]:
    """Return the key of a row: all fields except the `measured` ones."""
    return tuple(row.model_dump(exclude=set(measured)).values())


def medians(rows: Sequence[Row], names: Sequence[str], measured: Sequence[str]) -> list[Row]:
    """Join rows that differ only in the `measured` fields: the last one, with medians in the fields `names`."""
    alike: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        alike.setdefault(facts(row, measured), []).append(row)
    return [
        group[-1].model_copy(update={name: median(getattr(row, name) for row in group) for name in names})
        for group in alike.values()
    ]
