"""Runs the benchmark: measures idle power and read bandwidth once, then every bundle in each case, in fresh processes
that take turns.

A bundle that fails gives rows that say why, and the others go on. `worker` times, `processes` starts the processes,
`record` derives the statistics, `ratios` compares with baselines.
"""
import os
import shlex
import sys
import time
from functools import partial
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence

from merino_bench.harness import record
from merino_bench.harness.cases import BenchRequest, Case, cases_for
from merino_bench.harness.processes import block_sizes, joined, measure_apart
from merino_bench.harness.progress import Progress, line_progress
from merino_bench.harness.ratios import add_ratios
from merino_bench.harness.render import render
from merino_bench.harness.saving import append, appends, check_can_save, save
from merino_bench.probe.bandwidth import buffer_bytes, read_gb_s, thread_counts, touched_buffer
from merino_bench.sensors.energy import Sampler, energy_of, idle_watts
from merino_bench.sensors.power import find_source
from merino_runtime import board
from merino_runtime.bundle import Bundle, load_bundle
from merino_runtime.commands import say, write_out
from merino_runtime.errors import MerinoError

TIMEOUT_S = 3600.0  # of one row: a swapping board may never end
Records = List[Dict[str, Any]]
# (case, request) -> rows of other engines at this case, with every key of record.RECORD_KEYS.
MoreRows = Callable[[Case, BenchRequest], Iterable[Dict[str, Any]]]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; `records` holds those that were complete."""

    def __init__(self, records: Records) -> None:
        super().__init__()
        self.records = records


class Subject(NamedTuple):
    path: str
    bundle: Optional[Bundle]  # None: it cannot be read, and `reason` says why
    reason: str
    identity: Dict[str, Any]
    is_baseline: bool


class Conditions(NamedTuple):
    """What is measured or known once for all rows of a run."""
    read_gb_s: Optional[float]
    sampler: Optional[Sampler]
    idle_w: Optional[float]
    power_source: str  # for people: the source, or why there is none
    timeout_s: float
    command: str


def run_bench(bundle_paths: Sequence[str], request: BenchRequest = BenchRequest(),  # noqa: B008
              baselines: Sequence[str] = (), progress: Optional[Progress] = None, timeout_s: float = TIMEOUT_S,
              more_rows: Optional[MoreRows] = None, keep: Optional[Callable[[Records], None]] = None) -> Records:
    """-> one record per case and bundle: by case, within it by bundle as given, then the baselines.

    The bundles of a case take turns, so that a drift of the machine affects all alike. more_rows: makes the rows of
    other engines for a case. keep: is called with the rows of each case as soon as they are complete. Raises
    MerinoError where nothing can be measured as asked, Interrupted on ctrl-C.
    """
    if not timeout_s > 0:
        raise MerinoError(f"timeout is {timeout_s:g} s, allowed: more than 0.")
    subjects = subjects_of(bundle_paths, baselines)
    cases = cases_for(request, [(one.bundle.name, one.bundle.context) for one in subjects if one.bundle])
    records: Records = []
    turns = len(block_sizes(request.repetitions)) * len(subjects)
    tell = progress or unheard
    total = 1 + len(cases) * turns
    source, why_none = find_source()
    sampler = Sampler(source) if source else None
    try:
        tell(0, total, "power at rest and read bandwidth")
        power = f"{source.name}, {source.rail}" if source else f"none: {why_none}"
        conditions = Conditions(
            idle_w=idle_watts(sampler) if sampler else None,
            read_gb_s=best_read_gb_s() if any(one.bundle for one in subjects) else None,
            sampler=sampler, power_source=power, timeout_s=timeout_s, command=command_line())
        for number, case in enumerate(cases):
            rows = measure_in_turn(subjects, case, request, conditions,
                                   partial(_tell_turn, tell, 1 + number * turns, total))
            base_rows = [row for row, subject in zip(rows, subjects) if subject.is_baseline]
            others = list(more_rows(case, request)) if more_rows else []
            if baselines:
                add_ratios(rows + others, base_rows, in_turn=rows)
            records.extend(rows + others)
            if keep:
                keep(rows + others)
    except KeyboardInterrupt:
        raise Interrupted(records) from None
    finally:
        tell(total, total, "")
        if sampler:
            sampler.close()
    return records


def bench_command(bundle_paths: Sequence[str], request: BenchRequest, baselines: Sequence[str] = (),
                  output: str = "md", save_path: Optional[str] = None, timeout_s: float = TIMEOUT_S,
                  progress: Optional[Progress] = None, more_rows: Optional[MoreRows] = None) -> int:
    """The verb `bench` of both command lines: writes the records to stdout and to a file -> exit code, 1 where a row
    failed. On ctrl-C it writes what is complete and raises KeyboardInterrupt again. progress None: a plain line where
    stderr is a terminal."""
    render([], output)
    if save_path is not None:
        check_can_save(save_path)
    keep = (lambda rows: append(rows, str(save_path))) if save_path is not None and appends(save_path) else None
    try:
        records = run_bench(bundle_paths, request, baselines, progress or line_progress(), timeout_s, more_rows,
                            keep)
    except Interrupted as stopped:
        _deliver(stopped.records, output, save_path)
        raise
    _deliver(records, output, save_path)
    failed = record.failures(records)
    if failed:
        say(f"{len(failed)} of {len(records)} rows failed, their flags say why. First: {failed[0]}")
    return 1 if failed else 0


def subjects_of(bundle_paths: Sequence[str], baselines: Sequence[str]) -> List[Subject]:
    """The bundles and the baselines, each folder once. One that cannot be read is a subject too, with the reason."""
    if not bundle_paths:
        raise MerinoError("no bundle was given. Name at least one folder that `merino-edge export` wrote.")
    baseline_places = {os.path.realpath(path) for path in baselines}
    subjects: Dict[str, Subject] = {}
    for path in [*bundle_paths, *baselines]:
        place = os.path.realpath(path)
        if place in subjects:
            continue
        bundle, reason = None, ""
        try:
            bundle = load_bundle(path, verify=False)
        except MerinoError as error:
            reason = str(error)
        identity = record.identity_of(path, bundle)
        subjects[place] = Subject(path, bundle, reason, identity, place in baseline_places)
    return list(subjects.values())


def measure_in_turn(subjects: Sequence[Subject], case: Case, request: BenchRequest, conditions: Conditions,
                    tell: Callable[[int, str], None]) -> Records:
    """-> a record per subject. Its repetitions are split into blocks, each in a fresh process, in the order A B A B."""
    blocks: List[List[Dict[str, Any]]] = [[] for _ in subjects]
    reasons = [subject.reason for subject in subjects]
    left_s = [conditions.timeout_s] * len(subjects)
    sizes = block_sizes(request.repetitions)
    for turn, repetitions in enumerate(sizes):
        for place, subject in enumerate(subjects):
            tell(turn * len(subjects) + place,
                 f"{subject.identity['bundle']} {case.name} {turn + 1}/{len(sizes)}")
            if reasons[place]:
                continue
            start = time.perf_counter()
            try:
                blocks[place].append(measure_apart(subject.path, case, repetitions, request.seed, not turn,
                                                   left_s[place]))
            except MerinoError as error:
                reasons[place] = str(error)
            left_s[place] = max(0.0, left_s[place] - (time.perf_counter() - start))
    return [_record(*one, case, conditions) for one in zip(subjects, blocks, reasons)]


def best_read_gb_s() -> float:
    """Read bandwidth in GB/s (10**9 bytes) at the fastest thread count: on some boards that is not all cores."""
    buffer = touched_buffer(buffer_bytes())
    return max(read_gb_s(threads, buffer=buffer) for threads in thread_counts(len(board.usable_cpus())))


def unheard(done: int, total: int, what: str) -> None:  # noqa: ARG001
    """A `Progress` that shows nothing."""


def _tell_turn(tell: Progress, begun: int, total: int, done: int, what: str) -> None:
    tell(begun + done, total, what)


def command_line() -> str:
    """The command as it was typed, the program's name without its folders."""
    program = os.path.basename(sys.argv[0] or "python")
    if program == "__main__.py":
        program = os.path.basename(os.path.dirname(sys.argv[0]))
    return " ".join(map(shlex.quote, [program, *sys.argv[1:]]))


def _record(subject: Subject, blocks: Sequence[Dict[str, Any]], reason: str, case: Case,
            conditions: Conditions) -> Dict[str, Any]:
    if reason or subject.bundle is None:
        return record.failed_record(subject.identity, case, reason, conditions.command)
    measured = joined(blocks)
    measured["environment"]["power_source"] = conditions.power_source
    energy = None
    if conditions.sampler:
        energy = energy_of(conditions.sampler, conditions.idle_w, measured["prefill_phases_s"],
                           measured["decode_phases_s"])
    return record.record_of(subject.identity, subject.bundle, case, measured, conditions.read_gb_s, energy,
                            conditions.command)


def _deliver(records: Records, output: str, save_path: Optional[str]) -> None:
    write_out(render(records, output))
    if save_path is not None and not appends(save_path):
        save(records, save_path)
