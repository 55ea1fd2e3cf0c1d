"""The manifest of a packed file, NAME.merino: every file with its size and SHA-256, and the boards that they are for.

It is the first member of the file and the only one that is signed: every other byte follows from it (`archive`). Keys:
docs/formats.md.
"""
import collections
import hashlib
import json
import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from merino_runtime.delivery.keys import a_key
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import value_of
from merino_runtime.io.json_shape import LARGEST, count, integer, listed, problems_in, sha256, shown, text, version

SCHEMA = 1
NAME = "manifest.json"
APP = "merino.pyz"
LARGEST_MANIFEST_BYTES = 2 ** 20  # one with all wheels has 5 kB; as lists in lists JSON grows 100 times when it is read
LONGEST_PATH = 200  # characters
# Not hidden, nothing that a shell or another file system reads in its own way, and no `..`.
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*\Z", re.ASCII)
_BUNDLE = re.compile(r"bundles/(0|[1-9][0-9]?)\Z", re.ASCII)
_WHEELS = re.compile(r"wheels/[a-z0-9._-]+\Z", re.ASCII)
REMEDY = "Copy the file again, or pack it again"


class BoardNeed(NamedTuple):
    """A board that the file is for. device_tree_models: beginnings of its /proc/device-tree/model."""
    id: str
    device_tree_models: Tuple[str, ...]


class WheelSet(NamedTuple):
    """The packages for one Python of one kind of system. packages: name -> version. unpacked_bytes: of all of them."""
    path: str
    python: str
    architecture: str
    glibc: str
    packages: Dict[str, str]
    unpacked_bytes: int


class FileEntry(NamedTuple):
    path: str
    bytes: int
    sha256: str


class Manifest(NamedTuple):
    schema: int
    name: str
    version: str  # of merino_edge, which packed it
    boards: Tuple[BoardNeed, ...]  # none: any
    bundles: Tuple[str, ...]  # folders, the preferred one first
    wheels: Tuple[WheelSet, ...]
    files: Tuple[FileEntry, ...]  # in the order of the archive
    counter: int = 0  # larger in later files: a board refuses a signed one with less than it has seen
    withdrawn: Tuple[str, ...] = ()  # public keys, base64: boards that install this signed file trust them no more


def path_in_archive(value: Any) -> Optional[str]:
    """Return what was expected, or None if the value is a path in an archive: a leaf of `json_shape`."""
    parts = value.split("/") if isinstance(value, str) and len(value) <= LONGEST_PATH else [""]
    if all(_PART.match(part) for part in parts):
        return None
    return f"a path inside the file (ASCII letters, digits, ._+-; relative; no hidden parts; {LONGEST_PATH} characters)"


def _packages_fault(value: Any) -> Optional[str]:
    good = isinstance(value, dict) and all(text(part) is None for pair in value.items() for part in pair)
    return None if good else "an object of names and versions"


SHAPE: Dict[str, Any] = {
    "schema": count, "name": text, "version": text,
    "boards": [{"id": text, "device_tree_models": [text]}],
    "bundles": [path_in_archive],
    "wheels": [{"path": path_in_archive, "python": version, "architecture": text, "glibc": version,
                "packages": _packages_fault, "unpacked_bytes": integer(0, LARGEST)}],
    "files": [{"path": path_in_archive, "bytes": integer(0, LARGEST), "sha256": sha256}],
    "counter": count, "withdrawn": [a_key],
}


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Return the manifest of these bytes. Raise MerinoError that names every fault, with the entry. where: for
    messages."""
    try:
        description = value_of(data.decode("ascii"))
    except ValueError as error:
        raise MerinoError(f"{where}: {NAME} is not JSON that can be read: {error}. {REMEDY}.") from error
    if not isinstance(description, dict):
        raise MerinoError(f"{where}: {NAME} holds {shown(description)}, not an object. {REMEDY}.")
    if description.get("schema") != SCHEMA or isinstance(description["schema"], bool):
        raise MerinoError(f"{where} has schema {shown(description.get('schema'))}, this version reads schema {SCHEMA}. "
                          "Use the merino.pyz of the version that packed it, or pack it again.")
    problems = problems_in(description, SHAPE) or _contradictions(description)
    if not problems and canonical(description) != data:
        problems = ["it is not written in the one canonical form"]
    if problems:
        raise MerinoError(f"{where}: {NAME} is refused: {listed(problems)}. {REMEDY}.")
    values: Dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in description.items()}
    values["boards"] = tuple(BoardNeed(board["id"], tuple(board["device_tree_models"]))
                             for board in description["boards"])
    values["wheels"] = tuple(WheelSet(**wheels) for wheels in description["wheels"])
    values["files"] = tuple(FileEntry(**file) for file in description["files"])
    return Manifest(**values)


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return the canonical form of a manifest, which is signed and hashed."""
    values: Dict[str, Any] = manifest._asdict()
    for key in ("boards", "wheels", "files"):
        values[key] = [entry._asdict() for entry in values[key]]
    return canonical(values)


def canonical(value: Any) -> bytes:
    return (json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n").encode("ascii")


def release_id(data: bytes) -> str:
    """Return 16 hex digits that identify what the bytes of a manifest describe."""
    return hashlib.sha256(data).hexdigest()[:16]


def files_under(manifest: Manifest, folder: str) -> List[FileEntry]:
    return [file for file in manifest.files if file.path.startswith(folder + "/")]


def _contradictions(description: Dict[str, Any]) -> List[str]:
    """Return the problems of values that are valid each but contradict each other, or the folders where files may
    be."""
    paths = [file["path"] for file in description["files"]]
    bundles, wheels = description["bundles"], [wheels["path"] for wheels in description["wheels"]]
    problems = [f"the bundle {path} is not bundles/0, bundles/1 and so on" for number, path in enumerate(bundles)
                if path != f"bundles/{number}" or not _BUNDLE.match(path)]
    problems += [f"the wheels {path} are not in a folder of wheels/" for path in wheels if not _WHEELS.match(path)]
    if not bundles:
        problems.append("it has no bundle")
    for needed in [APP] + [f"{path}/bundle.json" for path in bundles]:
        if needed not in paths:
            problems.append(f"files has no {needed}")
    folders = tuple(f"{path}/" for path in bundles + wheels)
    problems += [f"{path} lies in no folder of a bundle or of wheels" for path in paths
                 if path != APP and not path.startswith(folders)]
    twice = _twice(wheels + description["withdrawn"])
    return problems + _clashes(paths) + [f"{name} is listed twice" for name in twice]


def _clashes(paths: Sequence[str]) -> List[str]:
    """Return the problems of paths that name one file, also on a file system that ignores upper and lower case, and of
    paths of which one is a folder of the other."""
    folded = [path.lower() for path in paths]
    problems = [f"{path} is listed twice, or in upper and lower case" for path in _twice(folded)]
    files = set(folded)
    for path in folded:
        parts = path.split("/")
        folders = ("/".join(parts[:end]) for end in range(1, len(parts)))
        problems += [f"{folder} is a file and a folder of {path}" for folder in folders if folder in files]
    return problems


def _twice(names: Sequence[str]) -> List[str]:
    return sorted(name for name, times in collections.Counter(names).items() if times > 1)
