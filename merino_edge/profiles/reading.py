"""Read device profiles: one TOML file per board, shipped or the user's, checked as a whole.

All faults of a file come in one message (`faults`). Reading imports neither scipy nor torch nor the harness.
"""

import difflib
import importlib.resources
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from merino_edge.profiles.faults import contradictions, phrase
from merino_edge.profiles.profile import SCHEMA, DeviceProfile, names_model
from merino_edge.storage.faults import refuse_other_schema
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import TOO_DEEP, check_depth, read_text

TOML = "a TOML file"
REMEDY = "Give the path of a device profile, a TOML file."
LARGEST_BYTES = 2**20  # the longest shipped profile has 20 kB


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
