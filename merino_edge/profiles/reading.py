"""Read device profiles: one TOML file per board, shipped or the user's, checked as a whole.

All faults of a file come in one message: the key's path, its value, what is allowed, the key that was meant. Reading
imports neither scipy nor torch nor the harness.
"""

import difflib
import importlib.resources
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from merino_edge.profiles.coefficients import KINDS, Count, Figure, Threads
from merino_edge.profiles.profile import BACKENDS, SCHEMA, DeviceProfile, names_model
from merino_edge.storage.faults import in_words, refuse_other_schema
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import TOO_DEEP, check_depth, read_text
from merino_runtime.io.json_shape import missing, path_of, unknown, wrong

TOML = "a TOML file"
REMEDY = "Give the path of a device profile, a TOML file."
LARGEST_BYTES = 2**20  # the longest shipped profile has 20 kB
MODE = "performance.tensorrt.power_mode"
HUGE = 1e300  # neither infinite, nor an integer that has no float


def load_profile(id_or_path: str | Path) -> DeviceProfile:
    """Return the profile of a shipped board, by its id, or of a TOML file. `calibration.board` handles `host`.

    Raise MerinoError for an unknown id, a file that cannot be read, or one with faults.
    """
    return _read(_place(id_or_path))


def profile_text(id_or_path: str | Path) -> str:
    """Return the TOML of a shipped board's profile, or of the file at a path."""
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
    """Return the shipped boards in the order of their ids. `host` is not among them: it would have to be measured."""
    return [_read(_folder() / f"{name}.toml") for name in profile_ids()]


def profile_ids() -> list[str]:
    return sorted(path.stem for path in _folder().glob("*.toml"))


def collected_probes(device: str) -> list[Path]:
    """Return the probe files that people sent of a shipped board (device_profiles/probes); none for a path."""
    return sorted((_folder() / "probes" / device).glob("*.json")) if device in profile_ids() else []


def parse_profile_text(text: str, origin: str) -> DeviceProfile:
    """Return the profile in a TOML file's text."""
    try:
        raw = tomllib.loads(text)
        check_depth(raw)
    except RecursionError:
        raise MerinoError(f"{origin} is not {TOML}: {TOO_DEEP}. {REMEDY}") from None
    except ValueError as error:
        raise MerinoError(f"{origin} is not {TOML}: {error}. {REMEDY}") from error
    return parse_profile(raw, origin)


def parse_profile(raw: Mapping[str, Any], origin: str) -> DeviceProfile:
    """Return the profile with a TOML's keys and values. Raise one MerinoError that names every fault; `origin`: the
    file."""
    command = ("merino-edge", "calibrate", "--probe", "probe.json", "--board", "ID", "-o", origin)
    refuse_other_schema(raw, SCHEMA, origin, *command)
    faults: list[str] = []
    profile = None
    try:
        profile = DeviceProfile.model_validate(raw)
    except ValidationError as error:
        faults += [phrase(detail["type"], detail["loc"], detail["input"], detail["msg"]) for detail in error.errors()]
    faults += contradictions(raw)
    if profile is None or faults:
        listed = "".join(f"\n  {fault}" for fault in faults)
        raise MerinoError(f"{origin} is not a valid device profile; correct the following:{listed}")
    return profile


def _folder() -> Path:
    """Return the checkout's folder beside this package, otherwise package data. An editable install of another checkout
    may answer for the second."""
    checkout = Path(__file__).resolve().parents[2] / "device_profiles"
    if any(checkout.glob("*.toml")):
        return checkout
    return Path(str(importlib.resources.files("merino_edge.device_profiles")))


def _read(path: Path) -> DeviceProfile:
    return parse_profile_text(_text(path), str(path))


def _text(path: Path) -> str:
    return read_text(str(path), TOML, f"{REMEDY[:-1]} or one of: {', '.join(profile_ids())}, host.", LARGEST_BYTES)


def profile_of_model(model: str, profiles: Iterable[DeviceProfile] | None = None) -> DeviceProfile | None:
    """Return the profile, of the shipped ones or of `profiles`, that names a device tree's model, or None.

    The longest beginning decides, so that a variant may have a profile of its own beside the board's.
    """
    named = [
        (len(beginning), profile)
        for profile in (list_profiles() if profiles is None else profiles)
        for beginning in profile.device_tree_models
        if names_model(beginning, model)
    ]
    return max(named, key=lambda length_and_profile: length_and_profile[0])[1] if named else None


def known_models(profiles: Sequence[DeviceProfile] | None = None) -> list[str]:
    """Return all beginnings that profiles name, for messages."""
    named = list_profiles() if profiles is None else profiles
    return [beginning for profile in named for beginning in profile.device_tree_models]


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
