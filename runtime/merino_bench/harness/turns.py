"""Measure the engines of one case in interleaved runs, each in fresh processes.

The order alternates (A B, B A, A B, ...), so that a steady drift of the machine meets both sides alike. If a process
was disturbed, it and the one it is compared with are measured again, up to twice.
"""

import json
import os
import time
from functools import partial
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Set

from merino_bench.fresh_process import run_separately
from merino_bench.harness import record
from merino_bench.harness.cases import Case
from merino_bench.harness.pairs import unequal_flags
from merino_bench.harness.record import baseline_for
from merino_runtime.backends import TENSORRT, choose_backend
from merino_runtime.bundle import Bundle, load_bundle
from merino_runtime.errors import MerinoError
from merino_runtime.io.streams import say

Measured = Dict[str, Any]  # of `worker.measure`
BUILD_TIMEOUT_S = 7200.0  # a Jetson Nano builds a large model for a quarter of an hour and more
TIME_OF_A_ROW = ", the time left to the row (--timeout)"
MOST_PROCESSES = 5  # turns of a row, at most
MOST_ATTEMPTS = 3  # of a turn
MOST_VAIN = 2  # turns that stayed disturbed in all attempts: then it is the machine's state, and no burst
Report = Callable[[int, str], None]  # (processes of planned turns that are done, what comes next)


def never(*_: Any) -> Any:
    """Stand in for `measure` and `row` of an engine that cannot be measured."""
    raise AssertionError("an engine with a reason takes no turn")


class Engine(NamedTuple):
    """A bundle in this project's runtime, or a model in another engine (`merino_edge`).

    identity: the keys that all its rows share. reason: why it cannot be measured, empty if it can.

    measure: (case, repetitions, whether the row's first process, timeout in s) -> one process's result; raises
    MerinoError. row: (case, the row's processes, read bandwidth in GB/s, energy, command) -> a record.
    """
    identity: Dict[str, Any]
    is_baseline: bool
    bundle: Optional[Bundle]  # None: it cannot be read
    reason: str
    measure: Callable[[Case, int, bool, float], Measured] = never
    row: Callable[..., Dict[str, Any]] = never


def check_baselines(paths: Sequence[str]) -> None:
    """Raise MerinoError for a baseline that cannot be read: no ratio would be left, after all was measured."""
    for path in paths:
        try:
            load_bundle(path, verify=False)
        except MerinoError as refusal:
            raise MerinoError(f"--baseline {path} cannot be measured: {refusal}") from refusal


def bundle_engines(bundle_paths: Sequence[str], baselines: Sequence[str],
                   backend: Optional[str] = None) -> List[Engine]:
    """Return the bundles and the baselines, each folder once. One that cannot be read is included, with the reason."""
    if not bundle_paths:
        raise MerinoError("no bundle was given. Name at least one folder that `merino-edge export` wrote.")
    baseline_folders = {os.path.realpath(path) for path in baselines}
    engines: Dict[str, Engine] = {}
    for path in [*bundle_paths, *baselines]:
        folder = os.path.realpath(path)
        if folder not in engines:
            engines[folder] = bundle_engine(path, folder in baseline_folders, backend)
    return list(engines.values())


def bundle_engine(path: str, is_baseline: bool, backend: Optional[str] = None) -> Engine:
    try:
        bundle = load_bundle(path, verify=False)
    except MerinoError as error:
        return Engine(record.identity_of(path, None), is_baseline, None, str(error))
    identity = record.identity_of(path, bundle)
    try:
        if choose_backend(bundle, backend, say) == TENSORRT:  # its engine is built before anything is timed
            run_separately("merino_bench.harness.worker", json.dumps({"bundle_path": path}), BUILD_TIMEOUT_S)
    except MerinoError as error:
        return Engine(identity, is_baseline, bundle, str(error))

    def measure(case: Case, repetitions: int, first: bool, timeout_s: float) -> Measured:
        # Only the first process hashes the files.
        return measure_separately(path, case, repetitions, first, timeout_s, backend)

    return Engine(identity, is_baseline, bundle, "", measure, row=partial(record.record_of, identity, bundle))


def measure_separately(path: str, case: Case, repetitions: int, verify: bool, timeout_s: float,
                       backend: Optional[str] = None) -> Dict[str, Any]:
    """Run `worker.measure` in a fresh process and return its result. Raise MerinoError with the reason if there is
    none."""
    request = {"bundle_path": path, "case": list(case), "repetitions": repetitions, "verify": verify,
               "backend_name": backend}
    return run_separately("merino_bench.harness.worker", json.dumps(request), timeout_s, remedy=TIME_OF_A_ROW)


class Turns:
    """The processes of each engine at one case, and why an engine has none. `measure` fills them."""

    def __init__(self, engines: Sequence[Engine], case: Case, repetitions: int, timeout_s: float) -> None:
        self.engines, self.case = engines, case
        self.processes: List[List[Dict[str, Any]]] = [[] for _ in engines]
        self.reasons = [engine.reason for engine in engines]
        baselines = [engine.identity for engine in engines if engine.is_baseline]
        index_of = {id(engine.identity): index for index, engine in enumerate(engines)}
        # For each engine the index of its baseline, or its own.
        self.base_of = [index_of[id(baseline_for(engine.identity, baselines) or engine.identity)] for engine in engines]
        self._sizes = turn_sizes(repetitions)
        self._left_s = [timeout_s] * len(engines)
        self._longest_s = [0.0] * len(engines)

    def measure(self, report: Report) -> None:
        everyone, vain = range(len(self.engines)), 0
        for turn in range(len(self._sizes)):
            order = everyone if turn % 2 == 0 else everyone[::-1]
            for count, index in enumerate(order):
                report(turn * len(everyone) + count, self._title(index, turn))
                self._measure(index, turn, 0)
            for attempt in range(1, MOST_ATTEMPTS if vain < MOST_VAIN else 1):
                disturbed = self._disturbed(turn, attempt - 1)
                for index in (order if attempt % 2 == 0 else order[::-1]):
                    if index in disturbed:
                        report((turn + 1) * len(everyone) - 1, self._title(index, turn) + ", again: it was disturbed")
                        self._measure(index, turn, attempt)
            vain += bool(self._disturbed(turn, MOST_ATTEMPTS - 1))

    def _measure(self, index: int, turn: int, attempt: int) -> None:
        """Measure one process. A row that fails once is not measured again."""
        if self.reasons[index]:
            return
        began = time.perf_counter()
        try:
            measured = self.engines[index].measure(self.case, self._sizes[turn], not self.processes[index],
                                                   self._left_s[index])
            self.processes[index].append(dict(measured, turn=turn, attempt=attempt))
        except MerinoError as error:
            self.reasons[index] = str(error)
        took_s = time.perf_counter() - began
        self._left_s[index] = max(0.0, self._left_s[index] - took_s)
        self._longest_s[index] = max(self._longest_s[index], took_s)

    def _disturbed(self, turn: int, attempt: int) -> List[int]:
        """Return both sides of each comparison in which one side was disturbed in this attempt. A row that may need its
        time for the turns still planned is left out."""
        flags = {index: frozenset(process["flags"]) for index, processes in enumerate(self.processes)
                 for process in processes if (process["turn"], process["attempt"]) == (turn, attempt)}
        disturbed: Set[int] = set()
        for index in flags:
            pair = {index, self.base_of[index]}
            rows = [{(turn, attempt): flags[side]} for side in pair if side in flags]
            if unequal_flags(rows, (turn, attempt)):
                disturbed |= pair
        turns_left = len(self._sizes) - turn - 1
        return [index for index in sorted(disturbed) if not self.reasons[index]
                and self._left_s[index] > 2 * (turns_left + 1) * self._longest_s[index]]

    def _title(self, index: int, turn: int) -> str:
        name = self.engines[index].identity["bundle"]
        return f"{name} {self.case.name} {turn + 1}/{len(self._sizes)}"


def turn_sizes(repetitions: int) -> List[int]:
    """Return the repetitions of each turn: 7 -> 2, 2, 1, 1, 1."""
    turns = min(MOST_PROCESSES, repetitions)
    return [repetitions // turns + (turn < repetitions % turns) for turn in range(turns)]
