"""`merino-edge calibrate`: a board's own measurements into its profile, or this machine's, measured again."""

from pathlib import Path

from merino_edge.calibration import Residual, calibrate, calibrated_toml, check_same_machine
from merino_edge.files import write_text
from merino_edge.host import host_probe
from merino_edge.probe_file import read_probe
from merino_edge.profiles import parse_profile_text, profile_text
from merino_runtime.errors import MerinoError


def recalibrate(device: str, probe: Path | None, out: Path | None) -> list[Residual]:
    """Write the profile `out` from the board's profile and `probe`; for `host` renew the kept probe.

    Returns what the fit leaves over. Raises MerinoError for what the user asked wrongly; nothing is written then.
    """
    if device == "host":
        if probe or out:
            raise MerinoError("--device host takes no --probe and no -o: it measures this machine and keeps the result")
        return calibrate(host_probe(renew=True)).residuals
    if probe is None or out is None:
        raise MerinoError(f"--device {device} needs --probe FILE, which `merino probe` makes on it, and -o FILE")
    measured, base = read_probe(probe), profile_text(device)
    check_same_machine(measured, parse_profile_text(base, device).arch)
    found = calibrate(measured)
    text = calibrated_toml(base, measured, found)
    parse_profile_text(text, f"the profile calibrated from {probe}")
    write_text(out, text)
    return found.residuals
