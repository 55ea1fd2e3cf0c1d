"""Runs the benchmark: the read bandwidth once, then every case of every bundle in a process of its own.

A bundle that fails gives rows that say why, and the others go on. Timing is `measure`'s, figures are
`record`'s.
"""
import json
import os
import signal
import subprocess
import sys
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

import merino_bench
import merino_runtime
from merino_bench import record
from merino_bench.measure import request_of
from merino_bench.probe import buffer_bytes, read_gb_s, thread_counts, touched_buffer
from merino_bench.render import check_can_save, render, save
from merino_bench.workload import Case, Workload, cases_for
from merino_runtime import board
from merino_runtime.bundle import Bundle, load_bundle
from merino_runtime.commands import say, write_out
from merino_runtime.errors import MerinoError

TIMEOUT_S = 3600.0  # of one case: a swapping board may never end
Records = List[Dict[str, Any]]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with the records that were complete."""

    def __init__(self, records: Records) -> None:
        super().__init__()
        self.records = records


class Subject(NamedTuple):
    path: str
    bundle: Optional[Bundle]  # None: it cannot be read, and `reason` says why
    reason: str
    identity: Dict[str, Any]
    is_baseline: bool


def run_bench(bundle_paths: Sequence[str], workload: Workload = Workload(),  # noqa: B008
              baseline: Optional[str] = None, progress: Optional[Callable[[str], None]] = None,
              timeout_s: float = TIMEOUT_S) -> Records:
    """Rows by case, within it by bundle as given, the baseline last (or where it stands among them).

    Case by case, so that bundles that are compared run close in time. Raises MerinoError where nothing can be
    measured as asked, Interrupted on ctrl-C.
    """
    tell = progress or (lambda _: None)
    subjects = subjects_of(bundle_paths, baseline)
    cases = cases_for(workload, [(one.bundle.name, one.bundle.context) for one in subjects if one.bundle])
    records: Records = []
    baseline_records: Records = []
    try:
        tell("probing the read bandwidth of the memory")
        bandwidth_gb_s = best_read_gb_s() if any(one.bundle for one in subjects) else None
        for case in cases:
            for subject in subjects:
                tell(f"{subject.identity['bundle']} {case.name}")
                row = _one_record(subject, case, workload, bandwidth_gb_s, timeout_s)
                records.append(row)
                baseline_records.extend([row] * subject.is_baseline)
    except KeyboardInterrupt:
        raise Interrupted(records) from None
    finally:
        if baseline is not None:
            record.add_ratios(records, baseline_records)
    return records


def bench_command(bundle_paths: Sequence[str], workload: Workload, baseline: Optional[str] = None,
                  output: str = "md", save_path: Optional[str] = None) -> int:
    """The verb `bench` of both command lines: records to stdout and to a file -> the exit code, 1 where a
    row failed. After ctrl-C what is complete is written, and KeyboardInterrupt goes on."""
    render([], output)
    if save_path is not None:
        check_can_save(save_path)
    try:
        records = run_bench(bundle_paths, workload, baseline, say if sys.stderr.isatty() else None)
    except Interrupted as stopped:
        _deliver(stopped.records, output, save_path)
        raise
    _deliver(records, output, save_path)
    failed = record.failures(records)
    if failed:
        say(f"{len(failed)} of {len(records)} rows failed, their flags say why. First: {failed[0]}")
    return 1 if failed else 0


def subjects_of(bundle_paths: Sequence[str], baseline: Optional[str]) -> List[Subject]:
    """Each folder once; the baseline is one of them."""
    if not bundle_paths:
        raise MerinoError("no bundle was given. Name at least one folder that `merino-edge export` wrote.")
    baseline_place = os.path.realpath(baseline) if baseline is not None else None
    subjects: Dict[str, Subject] = {}
    for path in [*bundle_paths, *([baseline] if baseline is not None else [])]:
        place = os.path.realpath(path)
        if place in subjects:
            continue
        bundle, reason = None, ""
        try:
            bundle = load_bundle(path, verify=False)
        except MerinoError as error:
            reason = str(error)
        identity = record.identity_of(path, bundle)
        subjects[place] = Subject(path, bundle, reason, identity, place == baseline_place)
    return list(subjects.values())


def best_read_gb_s() -> float:
    """At the thread count that reads fastest: on some boards that is not all cores."""
    buffer = touched_buffer(buffer_bytes())
    return max(read_gb_s(threads, buffer=buffer) for threads in thread_counts(len(board.usable_cpus())))


def measure_apart(path: str, case: Case, workload: Workload, timeout_s: float = TIMEOUT_S) -> Dict[str, Any]:
    """`measure` in a fresh process; MerinoError with the reason where it gives no result."""
    request = request_of(path, case, workload.repetitions, workload.threads, workload.seed)
    process = subprocess.Popen([sys.executable, "-m", "merino_bench.measure", request],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=child_environment())
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise MerinoError(f"no result after {timeout_s:g} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    lines = out.decode("utf-8", "replace").splitlines()
    try:
        result: Dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError):
        raise MerinoError(_reason(process.returncode, err.decode("utf-8", "replace"))) from None
    if "error" in result:
        raise MerinoError(result["error"])
    return result


def child_environment() -> Dict[str, str]:
    """So that the child imports the packages that this process did, from a folder or from a zip."""
    board.prepare_environment()
    roots = [os.path.dirname(os.path.dirname(os.path.abspath(package.__file__ or "")))
             for package in (merino_runtime, merino_bench)]
    before = os.environ.get("PYTHONPATH")
    paths = sorted(set(roots), key=roots.index) + ([before] if before else [])
    return dict(os.environ, PYTHONPATH=os.pathsep.join(paths))


def _one_record(subject: Subject, case: Case, workload: Workload, bandwidth_gb_s: Optional[float],
                timeout_s: float) -> Dict[str, Any]:
    if subject.bundle is None:
        return record.failed_record(subject.identity, case, subject.reason)
    try:
        measured = measure_apart(subject.path, case, workload, timeout_s)
        return record.record_of(subject.identity, subject.bundle, case, measured, bandwidth_gb_s)
    except MerinoError as error:
        return record.failed_record(subject.identity, case, str(error))


def _reason(return_code: int, err: str) -> str:
    if return_code == -signal.SIGKILL:
        return "killed by signal 9: most likely out of memory"
    if return_code < 0:
        return f"ended by signal {-return_code} ({signal.Signals(-return_code).name})"
    said = [line.strip() for line in err.splitlines() if line.strip()]
    return f"ended with code {return_code}: {said[-1] if said else 'it said nothing'}"


def _deliver(records: Records, output: str, save_path: Optional[str]) -> None:
    write_out(render(records, output))
    if save_path is not None:
        save(records, save_path)
