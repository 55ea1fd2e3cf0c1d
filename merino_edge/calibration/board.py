"""The board that `--board` names: a shipped profile, a TOML file, or `host`, this machine."""

from collections.abc import Callable
from pathlib import Path

from merino_edge.profiles.profile import BACKENDS, DeviceProfile
from merino_edge.profiles.reading import load_profile, parse_profile
from merino_runtime.errors import MerinoError


def board(
    id_or_path: str | Path, say: Callable[[str], None] = lambda _: None, backend: str | None = None
) -> DeviceProfile:
    """Return the profile of `--board`, with predictions of `--backend`, by default the board's own. `host` without a
    stored probe is measured first, which takes a minute; `say` reports it.

    Raise MerinoError if there is no such board or it has no such backend, or its file is not valid.
    """
    if backend is not None and backend not in BACKENDS:
        raise MerinoError(f"--backend {backend} is not known: choose {' or '.join(BACKENDS)}")
    if str(id_or_path) != "host":
        return load_profile(id_or_path).with_backend(backend)
    from merino_edge.calibration.host import host_probes, profile_from  # loads scipy and the harness

    return parse_profile(profile_from(host_probes(say)), "The profile probed from this machine").with_backend(backend)
