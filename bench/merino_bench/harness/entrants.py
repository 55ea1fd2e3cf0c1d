"""What takes turns in a case: bundles here, models of other engines elsewhere. How each is measured, and its row."""
import os
from functools import partial
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

from merino_bench.harness import record
from merino_bench.harness.cases import Case
from merino_bench.harness.engines import make_ready
from merino_bench.harness.processes import measure_apart
from merino_runtime.bundle import Bundle, load_bundle
from merino_runtime.errors import MerinoError

Measured = Dict[str, Any]  # of `worker.measure`
TIME_OF_A_ROW = ", the time left to the row (--timeout)"


class Entrant(NamedTuple):
    """identity: the keys that all its rows share. reason: why it cannot be measured, empty where it can.

    measure: (case, repetitions, whether the row's first process, timeout in s) -> one process's result; raises
    MerinoError. row: (case, the row's processes, read bandwidth in GB/s, energy, command) -> a record.
    """
    identity: Dict[str, Any]
    is_baseline: bool
    bundle: Optional[Bundle]  # None: it cannot be read
    reason: str
    measure: Callable[[Case, int, bool, float], Measured]
    row: Callable[..., Dict[str, Any]]


def check_baselines(paths: Sequence[str]) -> None:
    """Raises MerinoError for a baseline that cannot be read: no ratio would be left, after all was measured."""
    for path in paths:
        try:
            load_bundle(path, verify=False)
        except MerinoError as error:
            raise MerinoError(f"--baseline {path} cannot be measured: {error}") from error


def bundle_entrants(bundle_paths: Sequence[str], baselines: Sequence[str], seed: int,
                    backend: Optional[str] = None) -> List[Entrant]:
    """The bundles and the baselines, each folder once. One that cannot be read takes part too, with the reason."""
    if not bundle_paths:
        raise MerinoError("no bundle was given. Name at least one folder that `merino-edge export` wrote.")
    baseline_places = {os.path.realpath(path) for path in baselines}
    found: Dict[str, Entrant] = {}
    for path in [*bundle_paths, *baselines]:
        place = os.path.realpath(path)
        if place not in found:
            found[place] = bundle_entrant(path, place in baseline_places, seed, backend)
    return list(found.values())


def bundle_entrant(path: str, is_baseline: bool, seed: int, backend: Optional[str] = None) -> Entrant:
    try:
        bundle = load_bundle(path, verify=False)
    except MerinoError as error:
        return Entrant(record.identity_of(path, None), is_baseline, None, str(error), never, never)
    identity = record.identity_of(path, bundle)
    try:
        make_ready(path, bundle, backend)
    except MerinoError as error:
        return Entrant(identity, is_baseline, bundle, str(error), never, never)

    def measure(case: Case, repetitions: int, first: bool, timeout_s: float) -> Measured:
        # Files are hashed once.
        return measure_apart(path, case, repetitions, seed, first, timeout_s, TIME_OF_A_ROW, backend)

    return Entrant(identity, is_baseline, bundle, "", measure, partial(record.record_of, identity, bundle))


def never(*_: Any) -> Any:
    """In place of `measure` and `row` of an entrant that cannot be measured."""
    raise AssertionError("an entrant with a reason takes no turn")
