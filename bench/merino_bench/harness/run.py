"""Runs the benchmark: measures idle power and read bandwidth once, then every bundle in each case, in fresh processes
that take turns.

An engine that fails gives rows with the reason, and the others go on. `turns` measures one case, `worker` times in each
process, `record` derives the statistics and compares with baselines.
"""

import os
import shlex
import sys
import time
from functools import partial
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

from merino_bench.harness import record
from merino_bench.harness.cases import BenchRequest, Case, cases_for
from merino_bench.harness.record import add_ratios
from merino_bench.harness.render import append, appends, check_can_save, render, save, terminal_width
from merino_bench.harness.turns import Engine, Measured, Turns, bundle_engines, check_baselines, turn_sizes
from merino_bench.probe.bandwidth import buffer_bytes, read_gb_s, thread_counts, touched_buffer
from merino_bench.sensors.energy import Sampler, energy_of, idle_watts, why_no_energy
from merino_bench.sensors.power import find_source
from merino_runtime.commands import say, say_note, write_out
from merino_runtime.errors import MerinoError
from merino_runtime.io import board
from merino_runtime.io.streams import as_text, show_line, stderr_is_terminal

Progress = Callable[[int, int, str], None]  # (done, total, what comes next); done == total: the end
TIMEOUT_S = 3600.0  # of one row: a swapping board may never end
Records = List[Dict[str, Any]]


def line_progress() -> Optional[Progress]:
    """None where stderr is no terminal."""
    return show_progress if stderr_is_terminal() else None


def show_progress(done: int, total: int, what: str) -> None:
    show_line(f"merino: {done}/{total} {what}" if done < total else "")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; `records` holds those that were complete."""

    def __init__(self, records: Records) -> None:
        super().__init__()
        self.records = records


class Conditions(NamedTuple):
    """What is measured or known once for all rows of a run."""
    run: str
    read_gb_s: Optional[float]
    sampler: Optional[Sampler]
    idle_w: Optional[float]
    power_source: str  # for people: the source, or why there is none
    command: str


def run_bench(bundle_paths: Sequence[str], request: BenchRequest = BenchRequest(),  # noqa: B008
              baselines: Sequence[str] = (), progress: Optional[Progress] = None, timeout_s: float = TIMEOUT_S,
              more: Sequence[Engine] = (), keep: Optional[Callable[[Records], None]] = None) -> Records:
    """-> one record per case and engine: by case, within it by bundle as given, then the baselines, then `more`.

    All engines of a case take turns, so that a drift of the machine affects all alike. more: models of other engines.
    keep: is called with the rows of each case as soon as they are complete. Raises MerinoError where nothing can be
    measured as requested, Interrupted on ctrl-C.
    """
    check_timeout(timeout_s)
    engines = [*bundle_engines(bundle_paths, baselines, request.seed, request.backend), *more]
    cases = cases_for(request, [(one.bundle.name, one.bundle.context) for one in engines if one.bundle])
    records: Records = []
    planned = len(turn_sizes(request.repetitions)) * len(engines)  # processes of a case
    report = progress or unheard
    total = 1 + len(cases) * planned
    source, why_none = find_source()
    sampler = Sampler(source) if source else None
    try:
        report(0, total, "power at rest and read bandwidth")
        power = f"{source.name}, {source.rail}" if source else f"none: {why_none}"
        conditions = Conditions(
            run=new_run_id(), idle_w=idle_watts(sampler) if sampler else None,
            read_gb_s=best_read_gb_s() if any(one.bundle for one in engines) else None,
            sampler=sampler, power_source=power, command=command_line())
        for number, case in enumerate(cases):
            turns = Turns(engines, case, request.repetitions, timeout_s)
            turns.measure(partial(_report_turn, report, 1 + number * planned, total))
            rows = rows_of(turns, conditions)
            if baselines:
                add_ratios(rows, [row for row, one in zip(rows, engines) if one.is_baseline])
            records.extend(rows)
            if keep:
                keep(rows)
    except KeyboardInterrupt:
        raise Interrupted(records) from None
    finally:
        report(total, total, "")
        if sampler:
            sampler.close()
    return records


def bench_command(bundle_paths: Sequence[str], request: BenchRequest, baselines: Sequence[str] = (),
                  output: str = "md", save_path: Optional[str] = None, timeout_s: float = TIMEOUT_S,
                  progress: Optional[Progress] = None, more: Sequence[Engine] = ()) -> int:
    """The verb `bench` of both command lines: writes the records to stdout and to a file -> exit code, 1 where a row
    failed. On ctrl-C it writes what is complete and raises KeyboardInterrupt again. progress None: a plain line where
    stderr is a terminal."""
    render([], output)
    check_baselines(baselines)
    if save_path is not None:
        check_can_save(save_path)
    unsaved: List[MerinoError] = []
    keep = partial(_append, str(save_path), unsaved) if save_path is not None and appends(save_path) else None
    try:
        records = run_bench(bundle_paths, request, baselines, progress or line_progress(), timeout_s, more, keep)
    except Interrupted as stopped:
        _deliver(stopped.records, output, save_path if stopped.records else None)  # else older records stay
        raise
    _deliver(records, output, save_path)
    if unsaved:
        raise unsaved[0]
    failed = record.failures(records)
    if failed:
        say(f"{len(failed)} of {len(records)} rows failed, the reason is in their flags. First: {failed[0]}")
    return 1 if failed else 0


def check_timeout(timeout_s: float) -> None:
    if not timeout_s > 0:
        raise MerinoError(f"timeout is {timeout_s:g} s, allowed: more than 0.")


def rows_of(turns: Turns, conditions: Conditions) -> Records:
    """A record per engine."""
    rows = [record.failed_record(engine.identity, turns.case, reason, conditions.command) if reason
            else _row(engine, turns.case, processes, conditions)
            for engine, processes, reason in zip(turns.engines, turns.processes, turns.reasons)]
    return [dict(row, run=conditions.run) for row in rows]


def _row(engine: Engine, case: Case, processes: Sequence[Measured], conditions: Conditions) -> Dict[str, Any]:
    energy, notes = None, []  # type: Optional[Dict[str, Any]], List[str]
    if conditions.sampler:
        prefill, decode = record.counting_phases(processes)
        energy = energy_of(conditions.sampler, conditions.idle_w, prefill, decode)
        timed = decode if case.steps else prefill
        if timed and energy["decode_j" if case.steps else "prefill_j"] is None:
            notes = [why_no_energy(conditions.sampler, timed)]
    row = engine.row(case, processes, conditions.read_gb_s, energy, conditions.command)
    row["environment"]["power_source"] = conditions.power_source
    row["notes"] = [*row["notes"], *notes]
    return row


def new_run_id() -> str:
    """Of the second and of this process, so that no two runs on one machine share it."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}"


def best_read_gb_s() -> float:
    """Read bandwidth in GB/s (10**9 bytes) at the fastest thread count: on some boards that is not all cores."""
    buffer = touched_buffer(buffer_bytes())
    return max(read_gb_s(threads, buffer=buffer) for threads in thread_counts(len(board.usable_cpus())))


def unheard(done: int, total: int, what: str) -> None:  # noqa: ARG001
    """A `Progress` that shows nothing."""


def _report_turn(report: Progress, begun: int, total: int, done: int, what: str) -> None:
    report(begun + done, total, what)


def command_line() -> str:
    """The command as it was typed, the program's name without its folders."""
    program = os.path.basename(sys.argv[0] or "python")
    if program == "__main__.py":
        program = os.path.basename(os.path.dirname(sys.argv[0]))
    return as_text(" ".join(map(shlex.quote, [program, *sys.argv[1:]])))


def _append(path: str, unsaved: List[MerinoError], rows: Records) -> None:
    """A disk that is full by now ends no measurement: its rows are printed at the end."""
    try:
        append(rows, path)
    except MerinoError as fault:
        say_note(f"{fault} What is measured will be printed.")
        unsaved.append(fault)


def _deliver(records: Records, output: str, save_path: Optional[str]) -> None:
    """Saved first, since printing may fail; and printed where saving fails, since they took long."""
    try:
        if save_path is not None and not appends(save_path):
            save(records, save_path)
    finally:
        write_out(render(records, output, terminal_width()))
