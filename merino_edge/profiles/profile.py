"""Device profiles: one TOML file per board, read into frozen models that say where each figure comes from.

Judges a profile as a whole and reports every fault at once. Left to others: what a model costs on a board
(`merino_edge.design`), measuring the machine at hand (`merino_edge.calibration.host`) and folding a board's own
measurements back into its profile (calibration). Memory is in MB of 2**20 bytes, rates in GB/s of 10**9.
"""

import difflib
import importlib.resources
import math
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from merino_edge.profiles.coefficients import KINDS, Count, Facts, Figure, Text, UnitTimes
from merino_edge.profiles.coefficients import weakest_kind as weakest_kind  # it judges what is read here
from merino_runtime.errors import MerinoError

Isa = Literal[
    # Arm: neon is Advanced SIMD, dotprod and i8mm the int8 instructions, fp16 half-precision arithmetic
    "neon", "fp16", "bf16", "dotprod", "i8mm", "sve", "sve2",
    # x86
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni",
    "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8",
]  # fmt: skip
ISA_FEATURES: tuple[str, ...] = typing.get_args(Isa)

class Cpu(Facts):
    core: Text
    cores: Count
    clock_ghz: Figure | None = None  # a host may hide it, as it may its caches
    last_level_cache_mb: Figure | None = None


class Gpu(Facts):
    name: Text
    compute_capability: Text
    cuda_cores: Count
    fp32_gflops: Figure | None = None
    fp16_gflops: Figure | None = None
    int8: bool


class Memory(Facts):
    ram_mb: Figure
    free_mb: Figure  # what one process can really use on an idle headless system
    peak_gb_s: Figure | None = None  # in theory; never used to predict


class Performance(Facts):
    """The CPU path, with ONNX Runtime: basic figures, and the latency model's unit times where they were measured."""

    read_gb_s: Figure  # weights while decoding, at decode_threads
    fp32_gflops: Figure  # matrix-matrix, at prefill_threads
    op_overhead_us: Figure  # per operator of the graph
    runtime_mb: Figure  # resident before the model: Python, numpy, onnxruntime
    decode_threads: Count
    prefill_threads: Count
    times: UnitTimes | None = None  # measured; else they are estimated from the figures above


class Budget(Facts):
    """What a design gets when its user names no budget."""

    decode_ms: float = Field(gt=0)
    memory_mb: float = Field(gt=0)
    context: int = Field(gt=0)


class Software(Facts):
    system: Text
    glibc: Text | None = None
    python: Text
    onnxruntime: Text
    numpy: Text
    tokenizers: Text
    tensorrt: Text | None = None


class Power(Facts):
    sensor: Literal["ina3221", "pmic", "none"]
    rail: Text | None = None
    modes: Annotated[tuple[Text, ...], Field(strict=False)]
    idle_w: Figure | None = None
    stress_w: Figure | None = None


class DeviceProfile(Facts):
    schema_version: Literal[1] = Field(alias="schema")
    id: str = Field(pattern=r"^[a-z0-9-]+$")
    name: Text
    arch: Literal["aarch64", "x86_64", "other"]
    isa: Annotated[tuple[Isa, ...], Field(strict=False)]
    cpu: Cpu
    gpu: Gpu | None = None
    memory: Memory
    performance: Performance
    budget: Budget
    software: Software
    power: Power


def load_profile(id_or_path: str | Path) -> DeviceProfile:
    """The profile of a shipped board or in a TOML file; of `host` too: `calibration.host.board`."""
    return _read(_place(id_or_path))


def profile_text(id_or_path: str | Path) -> str:
    """The TOML of a shipped board's profile, or of the file at a path."""
    return _text(_place(id_or_path))


def _place(id_or_path: str | Path) -> Path:
    name = str(id_or_path)
    if isinstance(id_or_path, Path) or name.endswith(".toml") or "/" in name or "\\" in name:
        return Path(name)
    ids = profile_ids()
    if name not in ids:
        near = difflib.get_close_matches(name.lower().replace("_", "-"), [*ids, "host"], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise MerinoError(
            f"No device profile {name!r}.{hint} "
            f"Choose one of: {', '.join(ids)}, host; or give the path of a TOML file."
        )
    return _folder() / f"{name}.toml"


def list_profiles() -> list[DeviceProfile]:
    """The shipped boards, by id. `host` is not among them: it would have to be measured."""
    return [_read(_folder() / f"{name}.toml") for name in profile_ids()]


def profile_ids() -> list[str]:
    return sorted(path.stem for path in _folder().glob("*.toml"))


def parse_profile_text(text: str, origin: str) -> DeviceProfile:
    """The profile in a TOML file's text."""
    try:
        raw = tomllib.loads(text)
    except ValueError as error:
        raise MerinoError(f"{origin} is not a TOML file: {error}") from error
    return parse_profile(raw, origin)


def parse_profile(raw: Mapping[str, Any], origin: str) -> DeviceProfile:
    """The profile in a TOML's keys and values, or one MerinoError naming every fault of `origin`."""
    faults: list[str] = []
    profile = None
    try:
        profile = DeviceProfile.model_validate(raw)
    except ValidationError as error:
        faults += [_phrase(each["type"], each["loc"], each["input"], each["msg"]) for each in error.errors()]
    faults += _contradictions(raw)
    if profile is None or faults:
        listed = "".join(f"\n  {fault}" for fault in faults)
        raise MerinoError(f"{origin} is not a valid device profile; correct the following:{listed}")
    return profile


def _folder() -> Path:
    """Package data when installed; otherwise the checkout's folder, which an editable install cannot map."""
    checkout = Path(__file__).resolve().parents[2] / "device_profiles"
    try:
        installed = Path(str(importlib.resources.files("merino_edge.device_profiles")))
    except ModuleNotFoundError:
        return checkout
    return installed if any(installed.glob("*.toml")) else checkout


def _read(path: Path) -> DeviceProfile:
    return parse_profile_text(_text(path), str(path))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise MerinoError(
            f"Cannot read the device profile {path}: {error.strerror}. "
            f"Give the path of a TOML file or one of: {', '.join(profile_ids())}, host."
        ) from error
    except ValueError as error:  # not UTF-8
        raise MerinoError(f"{path} is not a TOML file: {error}") from error


def _contradictions(raw: Mapping[str, Any]) -> Iterator[str]:
    """Faults between figures, from the raw values, so that they are reported beside faults of single keys."""
    for small, large in (
        ("memory.free_mb", "memory.ram_mb"),
        ("budget.memory_mb", "memory.free_mb"),
        ("performance.runtime_mb", "budget.memory_mb"),
        ("performance.read_gb_s", "memory.peak_gb_s"),
        ("performance.decode_threads", "cpu.cores"),
        ("performance.prefill_threads", "cpu.cores"),
        ("power.idle_w", "power.stress_w"),
    ):
        low, high = _number(raw, small), _number(raw, large)
        if low is not None and high is not None and low > high:
            yield f"{small}: found {low:g}, must be at most {large}, which is {high:g}"


def _number(raw: Any, path: str) -> float | None:
    """The number at a dotted path, a figure's or a plain one; None where there is none to compare."""
    for key in path.split("."):
        raw = raw.get(key) if isinstance(raw, Mapping) else None
    number = raw.get("value") if isinstance(raw, Mapping) else raw
    usable = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
    return number if usable else None


def _phrase(kind: str, loc: tuple[int | str, ...], found: Any, message: str) -> str:
    """One of pydantic's errors for people: key path, value found, what is allowed."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
    if kind == "missing":
        return f"{path}: missing, must be {_allowed(_at(loc))}"
    if kind == "extra_forbidden":
        owner = _at(loc[:-1])
        near = difflib.get_close_matches(str(loc[-1]), _keys(owner), n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return f"{path}: found {found!r}, no such key{hint}; allowed here: {', '.join(_keys(owner))}"
    if kind in ("model_type", "dict_type", "tuple_type"):
        return f"{path}: found {found!r}, must be {_allowed(_at(loc))}"
    if kind == "string_pattern_mismatch":
        message = "must be lowercase letters, digits and hyphens" if path == "id" else "must not be empty"
    return f"{path}: found {found!r}, {message.replace('Input should', 'must')}"


def _at(loc: tuple[int | str, ...]) -> Any:
    """The type at an error's location."""
    at: Any = DeviceProfile
    for part in loc:
        fields = {field.alias or name: field for name, field in at.model_fields.items()}
        at = fields[str(part)].annotation
        if isinstance(at, types.UnionType):  # optional: the other member is None
            at = typing.get_args(at)[0]
    return at


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _allowed(at: Any) -> str:
    if isinstance(at, type) and issubclass(at, Figure):
        number = "a positive whole number" if at is Count else "a positive number"
        return f'{{ value = {number}, kind = one of {", ".join(KINDS)}, source = "where it is from" }}'
    if isinstance(at, type) and issubclass(at, BaseModel):
        return f"a table of {', '.join(_keys(at))}"
    if typing.get_origin(at) is Literal:
        return "one of " + ", ".join(str(choice) for choice in typing.get_args(at))
    if typing.get_origin(at) is tuple:
        return "a list"
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(at, "text")
