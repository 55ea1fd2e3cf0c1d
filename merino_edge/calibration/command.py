"""`merino-edge calibrate`: a board's own measurements into its profile, or this machine's, measured again."""

from collections.abc import Callable, Sequence
from pathlib import Path

from merino_edge.calibration.calibrate import Fit, calibrate, calibrated_toml, check_same_machine, mode_of
from merino_edge.calibration.host import host_probes
from merino_edge.calibration.probe import Probe, joined, read_probe
from merino_edge.profiles.profile import DeviceProfile
from merino_edge.profiles.reading import parse_profile_text, profile_text
from merino_edge.storage.atomic import check_file, check_keeps, write_text
from merino_runtime.errors import MerinoError


def recalibrate(
    device: str, probes: Sequence[Path], out: Path | None, say: Callable[[str], None] = lambda _: None,
    ask: Callable[[DeviceProfile], Probe] | None = None, backend: str | None = None,
) -> Fit:  # fmt: skip
    """Write the profile `out` from the board's profile and its probes; for `host` make and keep one more probe.

    ask: makes a probe of the profile's board with its backend, in place of `probes`; called when all else is known to
    be right.
    backend: what is to be measured; None: what the probes are of, else the board's default. Returns the fit.
    Raises MerinoError for what the user asked wrongly; nothing is written then.
    """
    if device == "host":
        if probes or out or ask or backend not in (None, "onnxruntime"):
            raise MerinoError(
                "--device host takes no --probe, --ssh, -o or --backend tensorrt: it measures this machine's CPU and"
                " keeps the result"
            )
        return calibrate(*host_probes(say, renew=True))
    if not (probes or ask) or out is None:
        raise MerinoError(
            f"--device {device} needs --probe FILE, which `merino probe` makes on it, or --ssh HOST, and -o FILE"
        )
    if probes and ask:
        raise MerinoError("--probe is a probe that was made before, --ssh makes one: give one of the two")
    check_keeps(out, [*probes, Path(device)])
    check_file(out)
    base = profile_text(device)
    profile = parse_profile_text(base, device).with_backend(backend)
    read = [read_probe(path) for path in probes] or ([ask(profile)] if ask else [])
    for one in read:
        check_same_machine(one, profile)
        if backend and one.backend != backend:
            raise MerinoError(f"the probe was made with {one.backend}, and --backend asks for {backend}: leave it out")
    boards = sorted({f"{one.machine.get('board')}, {one.backend}, {one.dialect}" for one in read})
    if len(boards) > 1:
        raise MerinoError(
            f"the probes are of different machines or backends: {'; '.join(boards)}. Give those of one"
        )
    measured = joined(read)
    found = calibrate(*read)
    mode = mode_of(measured, profile) if measured.backend == "tensorrt" else None
    text = calibrated_toml(base, measured, found, mode)
    parse_profile_text(text, f"the profile calibrated from {probes[-1] if probes else 'the board'}")
    write_text(out, text)
    return found
