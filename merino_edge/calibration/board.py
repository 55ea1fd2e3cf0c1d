"""The board that `--board` names: a shipped profile, a TOML file, or `host`, this machine; with `:BACKEND` behind it,
the one whose costs are predicted."""

from collections.abc import Callable
from pathlib import Path

from merino_edge.profiles.profile import BACKENDS, DeviceProfile
from merino_edge.profiles.reading import load_profile, parse_profile
from merino_runtime.errors import MerinoError


def board(name: str | Path, say: Callable[[str], None] = lambda _: None) -> DeviceProfile:
    """Return the profile of `--board`. `host` without a stored probe is measured first, which takes a minute; `say`
    reports it. Raise MerinoError if there is no such board or it has no such backend, or its file is not valid."""
    where, backend = with_backend(name)
    if where != "host":
        return load_profile(where).with_backend(backend)
    if backend not in (None, BACKENDS[0]):  # before it is measured
        raise MerinoError(f"--board {name}: this machine is measured on its CPU: give host")
    from merino_edge.calibration.host import host_probes, profile_from  # loads scipy and the harness

    return parse_profile(profile_from(host_probes(say)), "The profile probed from this machine").with_backend(backend)


def with_backend(name: str | Path) -> tuple[str, str | None]:
    """"jetson-nano:onnxruntime" -> ("jetson-nano", "onnxruntime"); without a backend, and for a file, (name, None).
    Raise MerinoError for an unknown backend."""
    where, _, backend = str(name).rpartition(":")
    if not where or backend not in BACKENDS and ("@" in where or Path(name).suffix == ".toml"):  # a port, a file
        return str(name), None
    if backend not in BACKENDS:
        raise MerinoError(f"--board {str(name)!r} has the unknown backend {backend!r}: choose {' or '.join(BACKENDS)}")
    return where, backend
