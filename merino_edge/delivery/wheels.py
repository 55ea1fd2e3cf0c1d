"""Downloads the wheels that a board's Python needs with this machine's pip, and keeps them in the user's cache.

pip evaluates the markers of requirements for the Python that runs it. So pip downloads single packages, and this module
evaluates their requirements for the target, until nothing is missing.
Names and versions of Linux wheels: PEP 425 (tags), PEP 600 (manylinux_2_28 needs glibc 2.28 or later)."""

import importlib.metadata
import json
import subprocess
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename

from merino_edge.bundles.description import REFUSED_VERSIONS
from merino_edge.profiles.profile import DeviceProfile, Software, System
from merino_edge.storage.atomic import cache_folder, new_folder
from merino_edge.storage.faults import shortened
from merino_runtime.bundle import sha256_of
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json
from merino_runtime.io.outputs import write_output
from merino_runtime.io.start import module_command, safe_environment

# The oldest glibc that PEP 600 gives a name, by CPU, and names from before it by glibc 2's minor version.
OLDEST_MINOR = {"aarch64": 17, "x86_64": 5}
OLDER_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


class Target(NamedTuple):
    python: str  # "3.11"
    architecture: str
    glibc: str  # "2.36"; a wheel may need an older one

    @property
    def name(self) -> str:
        """The name in the archive, such as `cp311-aarch64-glibc2.36`."""
        return f"{self.interpreter}-{self.architecture}-glibc{self.glibc}"

    @property
    def interpreter(self) -> str:
        return f"cp{self.python.replace('.', '')}"


def targets_of(profile: DeviceProfile) -> list[Target]:
    """Return a target per system that the board may run. Raise MerinoError if the profile lacks a version."""
    if profile.arch not in OLDEST_MINOR:
        raise MerinoError(
            f"--wheels: {profile.id} has the architecture {profile.arch!r}, for which no wheels are published;"
            f" there are some for {', '.join(OLDEST_MINOR)}. Pack it without --wheels"
        )
    return [_target(profile, system) for system in (profile.software, *profile.software.also)]


def _target(profile: DeviceProfile, system: System) -> Target:
    minor = _minor(system.glibc or "")
    python = system.python.split(".")[:2]
    if minor is None or len(python) < 2 or python[0] != "3" or not python[1].isdecimal():
        raise MerinoError(
            f"--wheels: the profile {profile.id} has python {system.python!r} and glibc {system.glibc!r} for"
            f" {system.system!r}; versions such as 3.11 and 2.36 are needed. Name them in the profile"
        )
    return Target(".".join(python), profile.arch, f"2.{minor}")


def _minor(glibc: str) -> int | None:
    major, _, minor = glibc.partition(".")
    return int(minor) if major == "2" and minor.isdecimal() else None


def platforms(target: Target) -> list[str]:
    """Return the platform tags of wheels that run on the target, the newest first."""
    minors = range(_minor(target.glibc) or 0, OLDEST_MINOR[target.architecture] - 1, -1)
    names = ([f"manylinux_2_{minor}", *([OLDER_NAMES[minor]] if minor in OLDER_NAMES else [])] for minor in minors)
    return [f"{name}_{target.architecture}" for group in names for name in group]


def marker_environment(target: Target) -> dict[str, str]:
    """Return the values for a requirement's markers. The patch version of Python is unknown."""
    return {
        "implementation_name": "cpython", "implementation_version": f"{target.python}.0", "os_name": "posix",
        "platform_machine": target.architecture, "platform_python_implementation": "CPython", "platform_release": "",
        "platform_system": "Linux", "platform_version": "", "python_full_version": f"{target.python}.0",
        "python_version": target.python, "sys_platform": "linux", "extra": "",
    }  # fmt: skip


INSTALLER = "pip"
BACKEND = "onnxruntime"
# Requirements of features that the runtime does not use: downloads from the hub, tools that prepare models. They would
# add 15 packages, and minutes of installation on a small board.
LEFT_OUT = {"tokenizers": {"huggingface-hub"}, BACKEND: {"sympy", "coloredlogs"}}
MOST_ROUNDS = 10
USUAL_MB = 40  # of numpy, onnxruntime, tokenizers and pip
INDEX_FILE = "wheels.json"
SCHEMA = 1
Requirements = Mapping[str, SpecifierSet]  # by canonical name


class Wheels(NamedTuple):
    """A complete set of wheels for one target."""

    target: Target
    files: tuple[Path, ...]
    packages: dict[str, str]  # canonical name -> version
    unpacked_bytes: int

    @property
    def path(self) -> str:
        """Its folder in the archive."""
        return f"wheels/{self.target.name}"


def requirements_of(software: Software, more: Sequence[str] = ()) -> dict[str, SpecifierSet]:
    """Return the runtime's packages in the profile's versions; pip and `more` in any version."""
    refused = ",".join(f"!={version}" for version in REFUSED_VERSIONS)
    versions = {"numpy": software.numpy, "tokenizers": software.tokenizers, BACKEND: software.onnxruntime}
    exact = {name: SpecifierSet(f"=={version}.*") for name, version in versions.items()}
    any_version = {name: SpecifierSet() for name in (INSTALLER, *more)}
    return {**exact, BACKEND: exact[BACKEND] & SpecifierSet(refused), **any_version}


def wheels_for(
    software: Software, target: Target, say: Callable[[str], None] = lambda _: None, more: Sequence[str] = ()
) -> Wheels:
    """Return the wheels for a target, `more` packages included, from the cache or the index. Raise MerinoError if there
    are none."""
    required = requirements_of(software, more)
    key = sha256(repr(sorted((name, str(specifier)) for name, specifier in required.items())).encode()).hexdigest()[:16]
    place = cache_folder() / "wheels" / f"{target.name}-{key}"
    if kept_names(place) is None:
        say(
            f"fetching the packages for Python {target.python}, {target.architecture}, glibc {target.glibc}:"
            f" about {USUAL_MB} MB, once"
        )
        with new_folder(place, lambda _: True) as folder:
            fetch(required, target, folder)
            hashes = {path.name: sha256_of(str(path)) for path in sorted(folder.glob("*.whl"))}
            write_output(str(folder / INDEX_FILE), json.dumps({"schema": SCHEMA, "files": hashes}, indent=1) + "\n")
            size = sum(path.stat().st_size for path in folder.glob("*.whl"))
        say(f"fetched {size / 2**20:,.0f} MB into {place}")
    names = kept_names(place)
    if names is None:
        raise MerinoError(f"the wheels in {place} changed while they were read: try again")
    files = tuple(place / name for name in names)
    versions = {str(parsed[0]): str(parsed[1]) for parsed in (parse_wheel_filename(name) for name in names)}
    return Wheels(target, files, versions, sum(map(unpacked_bytes, files)))


def unpacked_bytes(wheel: Path) -> int:
    """Return the bytes of an installed wheel. Compiled modules take about as much as their sources."""
    with zipfile.ZipFile(wheel) as archive:
        return sum(member.file_size * (1 + member.filename.endswith(".py")) for member in archive.infolist())


def kept_names(place: Path) -> list[str] | None:
    """Return the sorted names of the wheels in a folder of the cache; None if it is missing or a wheel changed."""
    try:
        kept = read_json(str(place / INDEX_FILE), "")["files"]
        whole = all(sha256_of(str(place / name)) == digest for name, digest in kept.items())
    except (MerinoError, LookupError, TypeError, AttributeError):
        return None
    return sorted(kept) if whole else None


def fetch(required: Requirements, target: Target, folder: Path) -> None:
    """Download wheels that meet `required` and their own requirements. Raise MerinoError if there are none."""
    needed = required
    for _ in range(MOST_ROUNDS):
        present = {str(parse_wheel_filename(path.name)[0]): path for path in folder.glob("*.whl")}
        lacking = []
        for name, specifier in sorted(needed.items()):
            path = present.get(name)
            if path and not specifier.contains(parse_wheel_filename(path.name)[1], prereleases=True):
                path.unlink()
                path = None
            if path is None:
                lacking.append(f"{name}{specifier}")
        if not lacking:
            break
        download(lacking, target, folder)
        needed = joined(required, [need for path in folder.glob("*.whl") for need in required_by(path, target)])
    else:
        raise MerinoError(f"the packages for {target.name} contradict each other: {', '.join(lacking)} after"
                          f" {MOST_ROUNDS} rounds. Name other versions in the profile's [software]")  # fmt: skip


def joined(required: Requirements, more: Iterable[Requirement]) -> dict[str, SpecifierSet]:
    merged = dict(required)
    for requirement in more:
        name = canonicalize_name(requirement.name)
        merged[name] = merged.get(name, SpecifierSet()) & requirement.specifier
    return merged


def required_by(wheel: Path, target: Target) -> list[Requirement]:
    """Return the requirements of a wheel on the target, without LEFT_OUT."""
    name, version = parse_wheel_filename(wheel.name)[:2]
    with zipfile.ZipFile(wheel) as archive:
        inner = next(member for member in archive.namelist() if member.endswith(".dist-info/METADATA"))
        folder = zipfile.Path(archive, inner.removesuffix("METADATA"))
        requires = importlib.metadata.PathDistribution(folder).requires or []
    environment = marker_environment(target)
    left_out = LEFT_OUT.get(str(name), ())
    return [need for need in map(Requirement, requires) if canonicalize_name(need.name) not in left_out
            and (need.marker is None or need.marker.evaluate(environment))]  # fmt: skip


def download(requirements: list[str], target: Target, folder: Path) -> None:
    """Download the newest wheel for each requirement that runs on the target. Raise MerinoError with pip's reason."""
    options = [part for name in platforms(target) for part in ("--platform", name)]
    done = subprocess.run(
        module_command(
            INSTALLER, "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:",
            "--implementation", "cp", "--python-version", target.python, *options, "--dest", str(folder), *requirements,
        ),
        env=safe_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        reason = next((line for line in lines if line.startswith("ERROR:")), lines[-1])
        raise MerinoError(
            f"pip finds no set of wheels for {target.name}: {shortened(reason, 300)}. Connect this"
            " machine to a package index (what was fetched once is kept), correct the versions in the profile's"
            " [software], or pack without --wheels"
        )
