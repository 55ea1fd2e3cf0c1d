"""The board that `--device` names: a shipped profile, a TOML file, or `host`, the machine at hand."""

from pathlib import Path

from merino_edge.profiles.profile import DeviceProfile, load_profile, parse_profile


def board(id_or_path: str | Path) -> DeviceProfile:
    """The profile of `--device`. `host` is measured where that was never done, which takes a minute.

    Raises MerinoError where there is no such board, or its file is not valid.
    """
    if str(id_or_path) != "host":
        return load_profile(id_or_path)
    from merino_edge.calibration.host import probe_host  # loads scipy and the harness

    return parse_profile(probe_host(), "The profile probed from this machine")
