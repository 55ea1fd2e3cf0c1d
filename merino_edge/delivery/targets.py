"""For which Python, CPU and C library wheels are chosen: tags of files that run there, markers as they evaluate there.

Names and versions of Linux wheels: PEP 425 (tags), PEP 600 (manylinux_2_28 needs glibc 2.28 or later).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from packaging import tags
from packaging.utils import parse_wheel_filename

from merino_edge.profiles.profile import DeviceProfile, System
from merino_runtime.errors import MerinoError

# The oldest glibc that PEP 600 gives a name, by CPU, and names from before it by glibc 2's minor version.
OLDEST_MINOR = {"aarch64": 17, "x86_64": 5}
OLDER_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


class Target(NamedTuple):
    python: str  # "3.11"
    architecture: str
    glibc: str  # "2.36"; a wheel may need an older one

    @property
    def name(self) -> str:
        """As in the archive: `cp311-aarch64-glibc2.36`."""
        return f"{self.interpreter}-{self.architecture}-glibc{self.glibc}"

    @property
    def interpreter(self) -> str:
        return f"cp{self.python.replace('.', '')}"


def targets_of(profile: DeviceProfile) -> list[Target]:
    """Of each system that the board may run. Raises MerinoError where the profile does not say what is needed."""
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
    """Names of all platforms whose wheels run on the target, the newest first."""
    minors = range(_minor(target.glibc) or 0, OLDEST_MINOR[target.architecture] - 1, -1)
    names = ([f"manylinux_2_{minor}", *([OLDER_NAMES[minor]] if minor in OLDER_NAMES else [])] for minor in minors)
    return [f"{name}_{target.architecture}" for group in names for name in group]


def least_glibc(files: Iterable[Path], target: Target) -> str:
    """The oldest glibc with which all these wheels run. Raises MerinoError for one that does not run on the target."""
    return f"2.{max(_least_minor(file, target) for file in files)}"


def _least_minor(file: Path, target: Target) -> int:
    major, minor = map(int, target.python.split("."))
    abi = target.interpreter + "m" * ((major, minor) < (3, 8))  # until then memory was allocated in two ways
    names = platforms(target)
    known = {
        *tags.cpython_tags((major, minor), [abi], names),
        *tags.compatible_tags((major, minor), target.interpreter, names),
    }
    here = [tag.platform for tag in parse_wheel_filename(file.name)[3] if tag in known]
    if not here:
        raise MerinoError(f"{file.name} does not run on Python {target.python}, {target.architecture}, glibc"
                          f" {target.glibc}, although pip chose it for that. Report this")  # fmt: skip
    return min(OLDEST_MINOR[target.architecture] if name == "any" else _minor_of_platform(name) for name in here)


def _minor_of_platform(name: str) -> int:
    older = {name: minor for minor, name in OLDER_NAMES.items()}
    family = name.removesuffix("_aarch64").removesuffix("_x86_64")
    return older[family] if family in older else int(family.removeprefix("manylinux_2_"))


def marker_environment(target: Target) -> dict[str, str]:
    """What a requirement's condition is evaluated with. The patch version of Python is not known."""
    return {
        "implementation_name": "cpython", "implementation_version": f"{target.python}.0", "os_name": "posix",
        "platform_machine": target.architecture, "platform_python_implementation": "CPython", "platform_release": "",
        "platform_system": "Linux", "platform_version": "", "python_full_version": f"{target.python}.0",
        "python_version": target.python, "sys_platform": "linux", "extra": "",
    }  # fmt: skip
