"""Fit a board's profile to its probes, or this machine's to a new probe (`merino-edge calibrate`).

The first fit is to the probe. Designs that a search picks by this fit are measured and added to the fit, in two rounds.
The errors of the second round's predictions show how far the next search's can be trusted. Nothing is written before
all is measured.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from merino_edge.calibration.board import with_backend
from merino_edge.calibration.calibrate import Fit, calibrate, calibrated_toml, check_same_machine, mode_of
from merino_edge.calibration.host import kept_probes, new_probe, profile_from
from merino_edge.calibration.probe import MeasuredDesign, Probe, joined, read_probe
from merino_edge.profiles.profile import DeviceProfile
from merino_edge.profiles.reading import collected_probes, parse_profile, parse_profile_text, profile_text
from merino_edge.storage.atomic import cache_folder, check_file, check_keeps, write_text
from merino_runtime.errors import MerinoError

ROUNDS = 2
Say = Callable[[str], None]
Choose = Callable[[DeviceProfile, int], list[MeasuredDesign]]  # by the fitted profile, in round 0, 1


def recalibrate(
    device: str, probes: Sequence[Path], out: Path | None, say: Say = lambda _: None,
    probe_board: Callable[[DeviceProfile], Probe] | None = None, choose: Choose | None = None,
) -> Fit:  # fmt: skip
    """Write the profile `out` from the board's profile and its probes; for `host`, measure and store one more probe.
    Without `probes` and `probe_board`, the collected probes of the board are used. Return the fit.

    probe_board: probes the profile's board with its backend, instead of `probes`; called after all checks. choose:
    measures designs that a search picks, on the probed machine; None: no designs are measured. device: the value of
    --board. If it names a backend, as jetson-nano:tensorrt does, the probes must be of that one. Raise MerinoError for
    a wrong request; nothing is written then.
    """
    device, backend = with_backend(device)
    if device == "host":
        if probes or out or probe_board or backend not in (None, "onnxruntime"):
            raise MerinoError(
                "--board host takes no --probe, --ssh, -o or :tensorrt: leave them out, it measures this"
                " machine's CPU and keeps the result"
            )
        return recalibrate_host(say, choose)
    collected = [] if probes or probe_board else collected_probes(device)
    if not (probes or probe_board or collected) or out is None:
        raise MerinoError(
            f"--board {device} needs --probe FILE, which `merino probe` makes on it, or --ssh HOST, and -o FILE: add"
            " what is missing"
        )
    if probes and probe_board:
        raise MerinoError("--probe is a probe that was made before, --ssh makes one: give one of the two")
    check_keeps(out, [*probes, Path(device)])
    check_file(out)
    base = profile_text(device)
    profile = parse_profile_text(base, device).with_backend(backend)
    if probe_board:
        used = [probe_board(profile)]
    else:
        used = [read_probe(path) for path in probes] or of_backend(collected, profile, say)
    for probe in used:
        check_same_machine(probe, profile)
        if backend and probe.backend != backend:
            raise MerinoError(f"the probe was made with {probe.backend}, not with {backend}: leave :{backend} out")
    boards = sorted({f"{probe.machine.get('board')}, {probe.backend}, {probe.dialect}" for probe in used})
    if len(boards) > 1 and not collected:
        raise MerinoError(f"the probes are of different machines or backends: {'; '.join(boards)}. Give those of one")
    origin = f"the profile calibrated from {probes[-1] if probes else 'the board'}"

    def calibrated(probes: Sequence[Probe]) -> tuple[Fit, str, DeviceProfile]:
        """Return the fit, and the profile as text and as an object."""
        fit, measured = calibrate(*probes), joined(probes)
        mode = mode_of(measured, profile) if measured.backend == "tensorrt" else None
        text = calibrated_toml(base, measured, fit, mode)
        return fit, text, parse_profile_text(text, origin).with_backend(backend)

    if probe_board and choose:
        used = [with_designs(used[0], lambda probe: calibrated([probe])[2], choose, say)]
    fit, text, _ = calibrated(used)
    write_text(out, text)
    return fit


def of_backend(collected: Sequence[Path], profile: DeviceProfile, say: Say) -> list[Probe]:
    """Return the collected probes of the profile's backend, and of the newest one's dialect. Raise MerinoError if all
    were made with another backend."""
    probes = sorted(map(read_probe, collected), key=lambda probe: probe.date)
    own = [probe for probe in probes if probe.backend == profile.backend]
    if not own:
        others = ", ".join(sorted({probe.backend for probe in probes}))
        raise MerinoError(f"no probe of {profile.id} with {profile.backend} was collected, only with {others}: give"
                          f" --board {profile.id}:BACKEND, or --probe FILE of your own")  # fmt: skip
    alike = [probe for probe in own if probe.dialect == own[-1].dialect]
    say(f"collected probes of {profile.id}, of {alike[-1].dialect} graphs: {len(alike)}")
    return alike


def recalibrate_host(say: Say, choose: Choose | None) -> Fit:
    """Measure one more probe of this machine, and store it when it is complete."""
    kept = kept_probes()

    def fitted(probe: Probe) -> DeviceProfile:
        return parse_profile(profile_from([*kept, probe]), "The profile probed from this machine")

    def more(probe: Probe) -> Probe:
        return with_designs(probe, fitted, choose, say) if choose else probe

    probe = new_probe(say, more)
    if kept:
        say(f"the median of {len(kept) + 1} probes counts; remove {cache_folder()}/probe-* to begin anew")
    return calibrate(*kept, probe)


def with_designs(probe: Probe, fitted: Callable[[Probe], DeviceProfile], choose: Choose, say: Say) -> Probe:
    """Return the probe with measured designs. Each round's designs are picked by the fit to the probe and earlier
    rounds."""
    if probe.backend != "onnxruntime" or probe.dialect == "portable":
        say("no designs are measured: they are of graphs for ONNX Runtime 1.18 and later on a CPU")
        return probe
    for number in range(ROUNDS):
        say(f"designs that the search chooses by this fit, round {number + 1} of {ROUNDS}")
        designs = choose(fitted(probe), number)
        # The errors of the predictions by which the designs were chosen.
        decode = [design.predicted_decode_ms / design.decode_ms - 1 for design in designs]
        prefill = [design.predicted_prefill_ms / design.prefill_ms - 1 for design in designs]
        phases = ", ".join(
            f"{phase} {median(errors):+.1%} in the median ({min(errors):+.1%} to {max(errors):+.1%})"
            for phase, errors in (("decode", decode), ("prefill", prefill))
        )
        say(f"round {number + 1}: {len(designs)} measured, predicted over measured: {phases}; now in the fit")
        probe = probe.model_copy(update={"designs": [*probe.designs, *designs]})
    return probe
