"""Build the profile of this machine: its facts (`this_machine`), and coefficients from the probe that boards run.

The probe takes most of a minute, so it is stored in the user's cache folder, by CPU, cores and ONNX Runtime; a probe of
a busy machine is stored only on request.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from merino_bench.probe.run import run_probe
from merino_edge.calibration.calibrate import calibrate
from merino_edge.calibration.probe import PROBE_SCHEMA, Probe, read_probe
from merino_edge.calibration.this_machine import core_name, facts, version_of
from merino_edge.storage.atomic import cache_folder, scratch_folder, write_text
from merino_runtime.errors import MerinoError
from merino_runtime.io.board import last_level_cache_bytes, usable_cpus

PROBE_SECONDS = 50.0
DEFAULT_RUNTIME_MB = 65  # of one tiny onnxruntime session on x86_64, see the boards' profiles
Say = Callable[[str], None]


def profile_from(probes: Sequence[Probe]) -> dict[str, Any]:
    """Return a profile's keys and values, as in a TOML file, from these probes."""
    runtime_mb = {"value": DEFAULT_RUNTIME_MB, "kind": "estimated", "source": "measured on another x86_64 machine"}
    return facts() | {"performance": {"onnxruntime": {"runtime_mb": runtime_mb} | calibrate(*probes).performance}}


def host_probes(say: Say = lambda _: None) -> list[Probe]:
    """Return the stored probes of this machine, or else a new one. A probe with flags (the machine was busy, throttled
    or swapping) is not stored, because later runs would take its slow rows for the machine's."""
    return kept_probes() or [new_probe(say)]


def kept_probes() -> list[Probe]:
    kept = []
    for path in sorted(cache_folder().glob(f"probe-{machine_key()}-*.json")):
        with suppress(MerinoError):  # of an earlier schema
            kept.append(read_probe(path))
    return kept


def new_probe(say: Say, more: Callable[[Probe], Probe] | None = None) -> Probe:
    """Measure this machine and store the probe.

    more: further measurements; then the user requested the probe, and it is stored whatever its flags. The file is
    written after all measurements.
    """
    path = cache_folder() / f"probe-{machine_key()}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    say(f"measuring this machine, for at most {PROBE_SECONDS + 10:.0f} s")
    with scratch_folder(path.with_name("probe")) as scratch:  # a fixed name, so that a killed run's rest is removed
        made = scratch / path.name
        run_probe(str(made), PROBE_SECONDS)
        probe = read_probe(made)
    state = f"; the machine was {' and '.join(probe.flags)} meanwhile" if probe.flags else ""
    say(f"measured in {probe.seconds:.0f} s{state}")
    if more:
        probe = more(probe)
    elif probe.flags:
        say("so this run uses the probe and does not keep it; `merino-edge calibrate --board host` makes one to keep")
        return probe
    write_text(path, probe.model_dump_json(by_alias=True, indent=1) + "\n")
    undo = f" all the same: to undo, remove {path} and calibrate again while nothing else runs" if probe.flags else ""
    say(f"kept in {path}{undo}")
    return probe


def machine_key() -> str:
    """Return a hash of the facts that a probe depends on: CPU, cores, cache, ONNX Runtime, schema."""
    facts = [core_name(), len(usable_cpus()), last_level_cache_bytes(), version_of("onnxruntime"), PROBE_SCHEMA]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
