"""Describe faults of a device profile in words: the key's path, its value, what is allowed, the key that was meant."""

import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel

from merino_edge.profiles.coefficients import KINDS, Count, Figure, Threads
from merino_edge.profiles.profile import BACKENDS, DeviceProfile
from merino_edge.storage.faults import in_words
from merino_runtime.io.json_shape import missing, path_of, unknown, wrong

MODE = "performance.tensorrt.power_mode"
HUGE = 1e300  # neither infinite, nor an integer that has no float


def contradictions(raw: Mapping[str, Any]) -> Iterator[str]:
    """Yield the faults between two figures, from the raw values of the TOML, so that they are reported beside faults of
    single keys."""
    for small, large in (
        ("memory.free_mb", "memory.ram_mb"),
        ("budget.memory_mb", "memory.free_mb"),
        ("performance.onnxruntime.runtime_mb", "budget.memory_mb"),
        ("performance.onnxruntime.read_gb_s", "memory.peak_gb_s"),
        ("performance.onnxruntime.decode_threads", "cpu.cores"),
        ("performance.onnxruntime.prefill_threads", "cpu.cores"),
        ("performance.tensorrt.read_gb_s", "memory.peak_gb_s"),
        ("performance.tensorrt.runtime_mb", "budget.memory_mb"),
        ("power.idle_w", "power.stress_w"),
    ):
        low, high = _number(raw, small), _number(raw, large)
        if low is not None and high is not None and low > high:
            yield wrong(small, low, f"must be at most {large}, which is {high:g}")
    chosen, modes, mode = (_at_path(raw, path) for path in ("default_backend", "power.modes", MODE))
    if chosen in BACKENDS and not _at_path(raw, f"performance.{chosen}"):
        yield wrong("default_backend", chosen, f"and there is no performance.{chosen}")
    if isinstance(mode, str) and isinstance(modes, list) and mode not in modes:
        listed = ", ".join(map(str, modes)) or "none"
        yield wrong(MODE, mode, f"must be one of power.modes, {listed}")


def _at_path(raw: Any, path: str) -> Any:
    """Return the value at a dotted path, or None."""
    for key in path.split("."):
        raw = raw.get(key) if isinstance(raw, Mapping) else None
    return raw


def _number(raw: Any, path: str) -> float | None:
    """Return the number at a dotted path, of a figure or plain, or None if there is none to compare."""
    raw = _at_path(raw, path)
    number = raw.get("value") if isinstance(raw, Mapping) else raw
    usable = isinstance(number, int | float) and not isinstance(number, bool) and -HUGE < number < HUGE
    return number if usable else None


def phrase(kind: str, loc: tuple[int | str, ...], value: Any, message: str) -> str:
    """Return one of pydantic's errors in words: the key's path, its value, what is allowed."""
    path = path_of(loc)
    if kind == "missing":
        return f"{missing(path)}, must be {_allowed(_at(loc))}"
    if kind == "extra_forbidden":
        owner = _at(loc[:-1])
        near = difflib.get_close_matches(str(loc[-1]), _keys(owner), n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return f"{unknown(path)}{hint}; allowed here: {', '.join(_keys(owner))}"
    if kind in ("model_type", "dict_type", "tuple_type"):
        return wrong(path, value, f"must be {_allowed(_at(loc))}")
    if kind == "string_pattern_mismatch":
        message = "must be lowercase letters, digits and hyphens" if path == "id" else "must not be empty"
    return wrong(path, value, in_words(message))


def _at(loc: tuple[int | str, ...]) -> Any:
    """Return the type at an error's location."""
    at: Any = DeviceProfile
    for part in loc:
        if isinstance(part, int):  # a list's item
            at = typing.get_args(at)[0]
            continue
        fields = {field.alias or name: field for name, field in at.model_fields.items()}
        at = fields[part].annotation
        if isinstance(at, types.UnionType):  # optional: the other member is None
            at = typing.get_args(at)[0]
    return at


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _allowed(at: Any) -> str:
    if isinstance(at, type) and issubclass(at, Figure):
        number = "a positive integer" if at in (Count, Threads) else "a positive number"
        return f'{{ value = {number}, kind = one of {", ".join(KINDS)}, source = "where it is from" }}'
    if isinstance(at, type) and issubclass(at, BaseModel):
        return f"a table of {', '.join(_keys(at))}"
    if typing.get_origin(at) is Literal:
        return "one of " + ", ".join(str(choice) for choice in typing.get_args(at))
    if typing.get_origin(at) is tuple:
        return "a list"
    return {int: "an integer", float: "a number", bool: "true or false"}.get(at, "text")
