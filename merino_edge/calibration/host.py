"""The profile of the machine at hand: its facts (`this_machine`), and coefficients from the probe that boards run.

The probe takes most of a minute, so it is kept in the user's cache folder, by CPU, cores and ONNX Runtime; one made on
a busy machine is kept only on request. Does not judge the profile: reading it does.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from merino_bench.probe.run import run_probe
from merino_edge.calibration.calibrate import calibrate
from merino_edge.calibration.probe import PROBE_SCHEMA, Probe, read_probe
from merino_edge.calibration.this_machine import core_name, facts, version_of
from merino_edge.storage.atomic import cache_folder, scratch_folder
from merino_runtime.errors import MerinoError
from merino_runtime.io import board
from merino_runtime.io.board import last_level_cache_bytes

PROBE_SECONDS = 50.0
DEFAULT_RUNTIME_MB = 65  # of one tiny onnxruntime session on x86_64, see the boards' profiles


Say = Callable[[str], None]


def silent(text: str) -> None:  # noqa: ARG001
    """A `say` where nobody listens."""


def host_profile(say: Say = silent) -> dict[str, Any]:
    """A profile's keys and values, as a TOML file would hold them; measures the machine where no probe is kept."""
    return facts() | {"performance": {"onnxruntime": _performance(host_probes(say))}}


def host_probes(say: Say = silent, *, renew: bool = False) -> list[Probe]:
    """The kept probes of this machine; where none is kept, or with `renew`, one is made first.

    A new probe with flags (the machine was busy, throttled or swapping) is not kept by itself: later runs would take
    its slow rows for the machine's. `renew` is the user's explicit request and keeps it.
    """
    folder = cache_folder()
    kept = []
    for path in sorted(folder.glob(f"probe-{machine_key()}-*.json")):
        with suppress(MerinoError):  # of an earlier schema
            kept.append(read_probe(path))
    if kept and not renew:
        return kept
    path = folder / f"probe-{machine_key()}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    kept.append(new_probe(path, say, keep_flagged=renew))
    if len(kept) > 1:
        say(f"the median of {len(kept)} probes counts; remove {folder}/probe-* to begin anew")
    return kept


def new_probe(path: Path, say: Say, *, keep_flagged: bool) -> Probe:
    """Measure this machine, and keep the probe at `path` where it has no flags or `keep_flagged`."""
    say(f"measuring this machine, for at most {PROBE_SECONDS + 10:.0f} s")
    with scratch_folder(path) as scratch:
        made = scratch / path.name
        run_probe(str(made), PROBE_SECONDS)
        probe = read_probe(made)
        if keep_flagged or not probe.flags:
            made.replace(path)
    if not probe.flags:
        say(f"measured in {probe.seconds:.0f} s; kept in {path}")
        return probe
    say(f"measured in {probe.seconds:.0f} s; the machine was {' and '.join(probe.flags)} meanwhile")
    if keep_flagged:
        say(f"kept all the same, as calibrate asks: to undo, remove {path} and calibrate again while nothing else runs")
    else:
        say("so this run uses the probe and does not keep it; `merino-edge calibrate --device host` makes one to keep")
    return probe


def machine_key() -> str:
    """A hash of what a probe depends on: CPU, cores, cache, ONNX Runtime, schema."""
    facts = [core_name(), len(board.usable_cpus()), last_level_cache_bytes(), version_of("onnxruntime"), PROBE_SCHEMA]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def _performance(probes: Sequence[Probe]) -> dict[str, Any]:
    runtime_mb = {"value": DEFAULT_RUNTIME_MB, "kind": "estimated", "source": "measured on another x86_64 machine"}
    return {"runtime_mb": runtime_mb} | calibrate(*probes).performance
