"""Runs one block of repetitions in a fresh worker process, and joins the results of a row's processes."""
from statistics import median
from typing import Any, Dict, List, Optional, Sequence

from merino_bench.fresh_process import run_apart
from merino_bench.harness.cases import Case
from merino_bench.harness.passes import chosen, flags_by_place
from merino_bench.harness.worker import request_of
from merino_bench.sensors.load import Load

PER_REPETITION = ("prefill_ms", "step_ms")
PHASES = ("prefill_phases_s", "decode_phases_s")


def measure_apart(path: str, case: Case, repetitions: int, seed: int, verify: bool,
                  timeout_s: float, remedy: str = "", backend: Optional[str] = None) -> Dict[str, Any]:
    """`worker.measure` in a fresh process. Raises MerinoError with the reason where it gives no result. remedy: as of
    `run_apart`."""
    request = request_of(path, case, repetitions, seed, verify, backend)
    return run_apart("merino_bench.harness.worker", request, timeout_s, remedy=remedy)


def joined(processes: Sequence[Dict[str, Any]]) -> Dict[str, Any]:
    """One result from those of a row's processes, each with its `turn` and `attempt`.

    `processes`, `prefill_ms` and `step_ms` are of all processes. All else is of those that count (`passes.chosen`):
    `flags`, the median load time, the highest load and memory peak, the machine's state before the first and after the
    last.
    """
    choice = chosen(flags_by_place(processes))
    counting = [one for one in processes if (one["turn"], one["attempt"]) in choice.places]
    found = dict(counting[0], verify_ms=processes[0]["verify_ms"])
    found["processes"] = [{"turn": one["turn"], "attempt": one["attempt"], "repetitions": len(one["prefill_ms"]),
                           "flags": one["flags"]} for one in processes]
    for key in PER_REPETITION:
        found[key] = _strung(processes, key)
    for key in PHASES:
        found[key] = _strung(counting, key)
    for key in ("flags", "notes"):
        said = _strung(counting, key)
        found[key] = sorted(set(said), key=said.index)
    found["load_ms"] = median(one["load_ms"] for one in counting)
    found["peak_rss_mb"] = max(one["peak_rss_mb"] for one in counting)
    tokenize_ms = [one["tokenize_ms"] for one in counting if one.get("tokenize_ms") is not None]
    found["tokenize_ms"] = median(tokenize_ms) if tokenize_ms else None
    states = [one["environment"] for one in counting]
    loads = {key: max((state[key] for state in states if state[key] is not None), default=None)
             for key in Load._fields}
    found["environment"] = dict(states[0], after=states[-1]["after"], **loads)
    return found


def _strung(processes: Sequence[Dict[str, Any]], key: str) -> List[Any]:
    return [one for process in processes for one in process[key]]
