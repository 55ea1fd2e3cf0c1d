"""probe.json, as `merino probe` writes it on a board; see docs/formats.md. What it means for a model: `calibration`."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from merino_bench.probe.pace import of_quick_machine
from merino_bench.probe.run import SCHEMA as PROBE_SCHEMA
from merino_edge.profiles.coefficients import Dialect
from merino_edge.storage.faults import fault_list
from merino_runtime.errors import MerinoError

Positive = Annotated[float, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Measurement(Strict):
    """One row of the probe; see docs/formats.md."""

    kind: Literal["read", "linear", "head", "attention", "norm", "activation", "call", "choose", "decoder"]
    format: Literal["fp32", "int8", "int4"]
    rows: Natural
    columns: Natural
    heads: Natural
    count: Annotated[int, Field(ge=1)]
    uses: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=1)]
    past: Natural
    tokens: Natural
    weight_bytes: Natural
    cached: bool
    ms: Positive
    median_ms: Positive
    least_ms: Positive
    repeats: Annotated[int, Field(ge=1)]
    pace_us: Positive | None


class Resident(Strict):
    """Memory of a fresh process, in MB of 2^20 bytes."""

    imports_mb: float
    open_mb: float
    peak_mb: float
    kind: Literal["call", "linear", "head"]
    format: Literal["fp32", "int8", "int4"]
    weight_bytes: Natural


class Probe(Strict):
    """probe.json."""

    schema_version: Annotated[int, Field(alias="schema", ge=PROBE_SCHEMA, le=PROBE_SCHEMA)]
    date: str
    seconds: float
    machine: dict[str, Any]
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

    @property
    def threads(self) -> list[int]:
        """Thread counts that enough was measured for."""
        counts = sorted({row.threads for row in self.measurements})
        return [count for count in counts if {"linear", "attention"} <= {
            row.kind for row in self.measurements if row.threads == count}]

    @property
    def source(self) -> str:
        versions = self.machine.get("versions") or {}
        named = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        state = f"; flags: {', '.join(self.flags)}" if self.flags else ""
        return f"probe of {self.date} on {self.machine.get('board') or 'an unnamed machine'} ({named}){state}"


def read_probe(path: Path) -> Probe:
    """Raises MerinoError with all faults of the file at once."""
    try:
        return Probe.model_validate_json(path.read_bytes())
    except OSError as error:
        raise MerinoError(f"cannot read {path}: {error.strerror}. `merino probe -o {path}` writes one") from error
    except ValidationError as error:
        raise MerinoError(f"{path} is not a probe.json: {fault_list(error)}") from error


def joined(probes: Sequence[Probe]) -> Probe:
    """The last of some probes of one machine, with each row the median of what they measured: a machine that is shared
    has its times of day. Rows of a machine that was slow count where there are no others."""
    rows = [row for probe in probes for row in probe.measurements]
    least_us = min((row.pace_us for row in rows if row.pace_us is not None), default=None)
    alike: dict[tuple[Any, ...], list[Measurement]] = {}
    for row in rows:
        key = tuple(row.model_dump(exclude={"ms", "median_ms", "least_ms", "repeats", "pace_us"}).values())
        alike.setdefault(key, []).append(row)
    return probes[-1].model_copy(update={"measurements": [middle(rows, least_us) for rows in alike.values()]})


def middle(rows: Sequence[Measurement], least_us: float | None) -> Measurement:
    """The last of some rows that differ in their times alone, with the median time of those of a quick machine."""
    quick: list[Measurement] = of_quick_machine(rows, [row.pace_us for row in rows], least_us)
    return quick[-1].model_copy(update={"ms": median(row.ms for row in quick)})
