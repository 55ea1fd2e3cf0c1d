"""Run the benchmark: measure idle power and read bandwidth once, then every bundle in each case, in fresh processes
that take turns.

An engine that fails gets rows with the reason, and the others continue. `turns` measures one case, `worker` times in
each process, `record` derives the statistics and compares with baselines.
"""

import os
import shlex
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

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


def show_progress(done: int, total: int, what: str) -> None:
    show_line(f"merino: {done}/{total} {what}" if done < total else "")


def run_bench(bundle_paths: Sequence[str], request: BenchRequest = BenchRequest(),  # noqa: B008
              baselines: Sequence[str] = (), progress: Optional[Progress] = None, timeout_s: float = TIMEOUT_S,
              more: Sequence[Engine] = (), keep: Optional[Callable[[Records], None]] = None) -> Records:
    """Return one record per case and engine: by case, within it by bundle in the given order, then the baselines, then
    `more`.

    All engines of a case take turns, so that a drift of the machine affects all alike. more: models of other engines.
    keep: is called with the rows of each case as soon as they are complete. Raise MerinoError if nothing can be
    measured as requested.
    """
    check_timeout(timeout_s)
    engines = [*bundle_engines(bundle_paths, baselines, request.backend), *more]
    cases = cases_for(request, [(engine.bundle.name, engine.bundle.context) for engine in engines if engine.bundle])
    records: Records = []
    planned = len(turn_sizes(request.repetitions)) * len(engines)  # processes of a case
    report = progress or (lambda *_: None)
    total = 1 + len(cases) * planned
    run_id = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}"  # unique on this machine
    command = command_line()
    source, why_none = find_source()
    sampler = Sampler(source) if source else None
    try:
        # 1. What is measured once: the power at rest, and the read bandwidth at the best thread count, which on some
        # boards is not the number of cores.
        report(0, total, "power at rest and read bandwidth")
        idle_w = idle_watts(sampler) if sampler else None
        bandwidth = None
        if any(engine.bundle for engine in engines):
            buffer = touched_buffer(buffer_bytes())
            bandwidth = max(read_gb_s(threads, buffer=buffer) for threads in thread_counts(len(board.usable_cpus())))
            del buffer
        for number, case in enumerate(cases):
            # 2. The processes of the case, engine by engine.
            def report_turn(done: int, what: str, begun: int = 1 + number * planned) -> None:
                report(begun + done, total, what)

            turns = Turns(engines, case, request.repetitions, timeout_s)
            turns.measure(report_turn)
            # 3. Their records.
            rows = []
            for engine, processes, reason in zip(engines, turns.processes, turns.reasons):
                if reason:
                    row = record.failed_record(engine.identity, case, reason, command)
                else:
                    energy, notes = energy_and_notes(sampler, idle_w, case, processes)
                    row = engine.row(case, processes, bandwidth, energy, command)
                    row["environment"]["power_source"] = (
                        f"{source.name}, {source.rail}" if source else f"none: {why_none}")
                    row["notes"] = [*row["notes"], *notes]
                rows.append(dict(row, run=run_id))
            if baselines:
                add_ratios(rows, [row for row, engine in zip(rows, engines) if engine.is_baseline])
            records.extend(rows)
            if keep:
                keep(rows)
    finally:
        report(total, total, "")
        if sampler:
            sampler.close()
    return records


def energy_and_notes(sampler: Optional[Sampler], idle_w: Optional[float], case: Case,
                     processes: Sequence[Measured]) -> Tuple[Optional[Dict[str, Any]], List[str]]:
    """Return a row's `energy`, and why it has none of the timed phase although there is a sensor."""
    if sampler is None:
        return None, []
    counting = record.counting_processes(processes)
    phases = {phase: record.joined(counting, f"{phase}_phases_s") for phase in ("prefill", "decode")}
    energy = energy_of(sampler, idle_w, phases["prefill"], phases["decode"])
    phase = "decode" if case.steps else "prefill"
    timed = phases[phase]
    return energy, [why_no_energy(sampler, timed)] if timed and energy[f"{phase}_j"] is None else []


def bench_command(bundle_paths: Sequence[str], request: BenchRequest, baselines: Sequence[str] = (),
                  output: str = "md", save_path: Optional[str] = None, timeout_s: float = TIMEOUT_S,
                  progress: Optional[Progress] = None, more: Sequence[Engine] = ()) -> int:
    """Run the verb `bench` of both command lines: write the records to stdout and to a file. Return the exit code, 1 if
    a row failed.

    On ctrl-C, write the complete rows and raise KeyboardInterrupt again. progress None: a plain line if stderr is a
    terminal.
    """
    check_baselines(baselines)
    if save_path is not None:
        check_can_save(save_path)
    progress = progress or (show_progress if stderr_is_terminal() else None)
    complete: Records = []
    unsaved: List[MerinoError] = []

    def keep(rows: Records) -> None:
        complete.extend(rows)
        if save_path is not None and appends(save_path):
            try:
                append(rows, save_path)
            except MerinoError as fault:  # a full disk does not end the measurement: its rows are printed
                say_note(f"{fault} What is measured will be printed.")
                unsaved.append(fault)

    try:
        run_bench(bundle_paths, request, baselines, progress, timeout_s, more=more, keep=keep)
    except KeyboardInterrupt:
        deliver(complete, output, save_path if complete else None)  # older records are kept
        raise
    code = deliver(complete, output, save_path)
    if unsaved:
        raise unsaved[0]
    return code


def deliver(records: Records, output: str, save_path: Optional[str]) -> int:
    """Save the records, because printing may fail, then print them, even if saving fails. Return the exit code, 1 if a
    row failed. A file of lines is left to `append`."""
    try:
        if save_path is not None and not appends(save_path):
            save(records, save_path)
    finally:
        write_out(render(records, output, terminal_width()))
    failed = record.failures(records)
    if failed:
        say(f"{len(failed)} of {len(records)} rows failed, the reason is in their flags. First: {failed[0]}")
    return 1 if failed else 0


def check_timeout(timeout_s: float) -> None:
    if not timeout_s > 0:
        raise MerinoError(f"timeout is {timeout_s:g} s, allowed: more than 0.")


def command_line() -> str:
    """Return the command as it was typed, the program's name without its folders."""
    program = os.path.basename(sys.argv[0] or "python")
    if program == "__main__.py":
        program = os.path.basename(os.path.dirname(sys.argv[0]))
    return as_text(" ".join(map(shlex.quote, [program, *sys.argv[1:]])))
