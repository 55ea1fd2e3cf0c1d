"""Real runs over the tiny bundles: figures against their samples, broken bundles, the zip, ctrl-C, tables on terminals,
TensorRT."""
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import zipfile

import pytest
import quick_bench
from processes import read_until_closed

from merino_bench.harness.cases import BenchRequest, decode_case
from merino_bench.harness.pairs import flags_by_place, select_processes
from merino_bench.harness.record import RECORD_KEYS
from merino_bench.harness.run import run_bench
from merino_bench.harness.turns import bundle_engine, measure_separately
from merino_runtime.bundle import sha256_of
from merino_runtime.errors import MerinoError
from merino_runtime.io.start import package_folders, safe_environment
from tests.tensorrt_stand_in import ON_PATH

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_benchmarks")]

SMALL = BenchRequest(prompts=(8, 16), steps=(6,), repetitions=3, threads=(1,))
RATIO_KEYS = {"ratio_to_baseline", "params_ratio", "baseline", "ratio_kind"}
PP_ONLY = ("-p", "8", "-n", "0", "-r", "1")
DEADLINE_S = 60  # of what should take a moment


def run(*arguments, call=None, cwd=None, path=quick_bench.ROOTS):
    environment = dict(os.environ)
    environment.pop("PYTHONPATH", None)
    if path:
        environment["PYTHONPATH"] = path
    call = call or quick_bench.CALL
    process = subprocess.Popen([*call, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd,
                               env=environment)
    out, err = (text.decode("utf-8", "replace") for text in process.communicate())
    assert "Traceback" not in err, err
    return process.returncode, out, err


@pytest.fixture(scope="module")
def folder(bundle_dirs):
    return bundle_dirs["portable"]


@pytest.fixture(scope="module")
def records(bundle_dirs, quick_benchmarks):  # noqa: ARG001
    """Of all dialects that this Python runs, the portable one as the baseline."""
    return run_bench(list(bundle_dirs.values()), SMALL, [bundle_dirs["portable"]])


def broken_copy(folder, place):
    """One byte of the weights differs, which only the hash tells."""
    shutil.copytree(folder, place)
    with open(os.path.join(place, "model.onnx.data"), "r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 1]))
    return place


def large_copy(folder, place):
    """The same graph, said to have so long a context that its KV cache takes 1 GB or more."""
    shutil.copytree(folder, place)
    path = os.path.join(place, "bundle.json")
    with open(path) as file:
        bundle = json.load(file)
    short, bundle["context"] = bundle["context"], bundle["context"] * (2 ** 30 // bundle["kv_bytes"] + 1)
    bundle["kv_bytes"] *= bundle["context"] // short
    for port in bundle["inputs"] + bundle["outputs"]:
        port["shape"] = [bundle["context"] if axis == short else axis for axis in port["shape"]]
    with open(path, "w") as file:
        json.dump(bundle, file)
    return place


def counting_rounds(record):
    """The repetitions of the processes that count, in order."""
    owners = [(process["turn"], process["attempt"]) for process in record["processes"]
              for _ in range(process["repetitions"])]
    places = select_processes(flags_by_place(record["processes"])).places
    return [samples_ms for owner, samples_ms in zip(owners, record["rounds_ms"]) if owner in places]


def check_figures(record):
    """What holds between the figures of any row that was measured."""
    steps = int(record["test"][2:]) if record["test"].startswith("tg") else 0
    tokens = steps or record["prompt_tokens"]
    size = steps or 1
    rounds = counting_rounds(record)
    samples = sum(rounds, [])
    speeds = [1000 * tokens / sum(samples_ms) for samples_ms in rounds]
    assert len(samples) == size * record["repetitions"] and min(samples) > 0
    assert record["tok_s"] == pytest.approx(statistics.mean(speeds))
    assert record["tok_s_sd"] == pytest.approx(statistics.stdev(speeds))
    assert min(samples) <= record["ms_p50"] <= record["ms_p90"] <= max(samples)
    if steps:
        assert record["mbu"] == pytest.approx(
            record["bytes_per_token"] * record["tok_s"] / record["read_gb_s"] / 1e9)
    else:
        assert record["mbu"] is None and record["prefill_ms"] == pytest.approx(record["ms_p50"])
        assert record["ttft_ms"] == pytest.approx(record["tokenize_ms"] + record["prefill_ms"])
    assert record["peak_rss_mb"] > record["bundle_bytes"] / 2 ** 20
    assert record["prefill_ms"] > 0 and record["load_ms"] > 0 and record["verify_ms"] > 0


class TestRun:

    def test_every_row_has_the_contracts_fields(self, records):
        for record in records:
            assert set(record) == set(RECORD_KEYS) | RATIO_KEYS
            assert not [flag for flag in record["flags"] if flag.startswith("failed")]
            assert json.loads(json.dumps(record, allow_nan=False)) == record

    def test_figures_follow_from_the_samples(self, records):
        for record in records:
            check_figures(record)
            assert record["repetitions"] == 3 and record["threads"] == 1

    def test_facts_are_those_of_the_bundle(self, records, bundle_dirs):
        for record in records:
            path = os.path.join(bundle_dirs[record["dialect"]], "bundle.json")
            with open(path) as file:
                described = json.load(file)
            assert record["bundle_sha256"] == sha256_of(path) and record["bundle"] == described["name"]
            assert record["params"] == described["params"] and record["precision"] == described["precision"]
            assert record["weights"] == {"trained": "real", "random": "random"}[described["weights"]]
            here = record["environment"]
            assert record["engine"] == "onnxruntime {} CPU".format(here["versions"]["onnxruntime"])
            assert here["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
            assert set(here["before"]) == set(here["after"])

    def test_ratios_are_those_of_the_processes(self, records):
        base = {record["test"]: record for record in records if record["dialect"] == "portable"}
        for record in records:
            own = record["dialect"] == "portable"
            assert (record["ratio_to_baseline"] == 1) == own and record["params_ratio"] == 1
            assert record["ratio_kind"] == ("equal format" if own else "as shipped")
            if own:
                continue
            low, high = record["ratio_interval"]
            assert low <= record["ratio_to_baseline"] <= high
            turns = {process["turn"] for process in record["processes"]}
            assert record["ratio_turns"][1] == len(turns) == 3
            speeds = [record["tok_s"], base[record["test"]]["tok_s"]]
            if not record["ratio_flags"] and record["flags"] == base[record["test"]]["flags"] == []:
                assert record["ratio_to_baseline"] == pytest.approx(speeds[0] / speeds[1], rel=0.5)

    def test_rows_of_a_case_are_kept_as_soon_as_they_are_complete(self, folder):
        kept = []
        rows = run_bench([folder], SMALL._replace(repetitions=1), [folder],
                         keep=lambda rows: kept.append([dict(row) for row in rows]))
        assert [[row["test"] for row in case_rows] for case_rows in kept] == [["pp8"], ["pp16"], ["tg6"]]
        assert [row for case_rows in kept for row in case_rows] == rows

    def test_other_engines_take_turns_with_the_bundles(self, folder):
        order = []

        def engine(name, **changes):
            real = bundle_engine(folder, False)

            def measure(*positional):
                order.append(name)
                return real.measure(*positional)

            return real._replace(measure=measure, identity=dict(real.identity, bundle=name), **changes)

        messages = []
        result = run_bench([folder], SMALL._replace(prompts=(8,), repetitions=2), [folder],
                          more=[engine("a"), engine("b")], progress=lambda _done, _total, what: messages.append(what))
        assert [row["test"] for row in result] == [test for test in ("pp8", "tg6") for _ in range(3)]
        assert all(set(row) == set(RECORD_KEYS) | RATIO_KEYS and row["ratio_to_baseline"] > 0 for row in result)
        first = [what.split()[0] for what in messages if "pp8" in what]
        name = result[0]["bundle"]
        assert first == [name, "a", "b", "b", "a", name] and len({row["run"] for row in result}) == 1
        assert order[:2] == ["a", "b"]

    def test_depths_and_threads_are_rows(self, folder):
        rows = run_bench([folder], BenchRequest((8,), (4,), 1, threads=(1, 2), depths=(0, 40)))
        assert [(row["test"], row["threads"], row["depth"], row["prompt_tokens"]) for row in rows] == [
            (test, threads, depth, 8) for threads in (1, 2)
            for test, depth in (("pp8", 0), ("tg4", 0), ("pp8 @ d40", 40), ("tg4 @ d40", 40))]
        by_test = {row["test"]: row["bytes_per_token"] for row in rows}
        assert by_test["tg4 @ d40"] > by_test["tg4"]

    def test_a_request_beyond_the_context_runs_nothing(self, folder):
        messages = []
        with pytest.raises(MerinoError, match="pp65 does not fit the context"):
            run_bench([folder], SMALL._replace(prompts=(65,)), progress=lambda *message: messages.append(message))
        assert not messages


class TestFailure:
    def test_a_broken_bundle_is_a_row_with_its_reason_and_the_others_go_on(self, folder, tmp_path):
        broken = broken_copy(folder, str(tmp_path / "broken"))
        request = BenchRequest((), (4,), 1)
        bad, missing, good = run_bench([broken, str(tmp_path / "none")], request, [folder])
        flag, = bad["flags"]
        assert flag.startswith("failed: bundle") and "model.onnx.data has sha256" in flag
        assert bad["tok_s"] is None and bad["params"] == good["params"] and bad["ratio_to_baseline"] is None
        assert missing["bundle"] == "none" and "no such bundle" in missing["flags"][0]
        assert good["tok_s"] > 0 and good["ratio_to_baseline"] == 1

    def test_what_takes_too_long_is_stopped(self, folder):
        row, = run_bench([folder], BenchRequest((), (8,), 10 ** 7), timeout_s=1)
        assert row["flags"] == ["failed: no result within 1 s, the time left to the row (--timeout)"]

    @pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
    def test_what_runs_out_of_memory_is_a_row_that_says_so(self, folder, tmp_path, monkeypatch):
        """The limit leaves room for the imports and 256 MB, not for a cache of 1 GB."""
        large = large_copy(folder, str(tmp_path / "large"))
        code = "import merino_bench.harness.worker, onnxruntime; print(open('/proc/self/status').read())"
        environment = safe_environment(*package_folders())
        status = subprocess.check_output([sys.executable, "-c", code], env=environment).decode()
        limit_kib = int(re.search(r"VmPeak:\s*(\d+) kB", status).group(1)) + 256 * 1024
        stand_in = tmp_path / "python"
        stand_in.write_text(f"#!/bin/sh\nulimit -v {limit_kib}\nexec {sys.executable} \"$@\"\n")
        stand_in.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(stand_in))
        bad, good = run_bench([large, folder], BenchRequest((8,), (), 1, threads=(1,)))
        flag, = bad["flags"]
        assert flag.startswith("failed: out of memory") and bad["tok_s"] is None
        assert good["tok_s"] > 0

    @pytest.mark.parametrize("script, reason", [
        ("kill -9 $$", "killed by signal 9, most likely out of memory"),
        ("kill -ILL $$", r"signal 4 \(SIGILL\)"),
        ("echo oops >&2; exit 3", "ended with code 3: oops"), ("echo no json", "ended with code 0")])
    def test_a_process_that_dies_says_how(self, folder, tmp_path, monkeypatch, script, reason):
        stand_in = tmp_path / "python"
        stand_in.write_text("#!/bin/sh\n" + script + "\n")
        stand_in.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(stand_in))
        with pytest.raises(MerinoError, match=reason):
            measure_separately(folder, decode_case(4), 1, True, DEADLINE_S)

    def test_ctrl_c_keeps_what_is_complete(self, folder):
        def stop_at_the_second(_done, _total, what):
            if "pp16" in what:
                raise KeyboardInterrupt

        complete = []
        with pytest.raises(KeyboardInterrupt):
            run_bench([folder], SMALL, [folder], progress=stop_at_the_second, keep=complete.extend)
        row, = complete
        check_figures(row)
        assert row["test"] == "pp8" and row["ratio_to_baseline"] == 1


class TestCommand:
    def test_json_goes_to_stdout_and_to_the_file(self, folder, tmp_path):
        saved = tmp_path / "result.json"
        code, out, err = run("bench", folder, "-p", "8", "-n", "4", "-r", "2", "--format", "json",
                             "-o", str(saved))
        assert code == 0 and err == ""  # quiet where nobody watches
        assert [row["test"] for row in json.loads(out)] == ["pp8", "tg4"]
        assert json.loads(saved.read_text()) == json.loads(out)

    def test_markdown_is_the_default_and_the_lengths_fit(self, folder):
        code, out, _ = run("bench", folder, "-r", "1")
        assert code == 0 and len(out.splitlines()) == 4 and "| pp32 |" in out and "| tg56 |" in out

    def test_a_failed_row_is_exit_1_with_the_data_written(self, folder, tmp_path):
        code, out, err = run("bench", folder, str(tmp_path / "none"), *PP_ONLY, "--format", "jsonl")
        rows = [json.loads(line) for line in out.splitlines()]
        assert code == 1 and rows[0]["tok_s"] > 0 and rows[1]["tok_s"] is None
        assert err.startswith("merino: 1 of 2 rows failed") and "no such bundle" in err

    def test_a_baseline_that_does_not_exist_is_refused_before_anything_is_measured(self, folder, tmp_path):
        saved = tmp_path / "rows.jsonl"
        code, out, err = run("bench", folder, *PP_ONLY, "--baseline", "nowhere", "-o", str(saved))
        assert code == 1 and out == "" and not saved.exists()
        assert err.startswith("merino: --baseline nowhere cannot be measured: no such bundle: 'nowhere'")

    @pytest.mark.parametrize("arguments, code, words", [
        (["-p", "100"], 1, "does not fit the context"), (["-p", "0", "-n", "0"], 1, "nothing is left"),
        (["-r", "0"], 1, "repetitions is 0"), (["-p", "many"], 2, "expected numbers"),
        (["-t", "0"], 2, "too small, allowed: 1"), (["-t", "1,100000"], 1, "threads is 100000, allowed: 1 to"),
        (["-d", "64"], 1, "does not fit the context"), (["--timeout", "0"], 1, "timeout is 0 s"),
        (["--format", "xml"], 2, "invalid choice"), (["-o", "/no/such/folder/x"], 1, "cannot write")])
    def test_a_request_that_cannot_be_met_says_so(self, folder, arguments, code, words):
        result, out, err = run("bench", folder, *arguments)
        assert result == code and out == "" and words in err

    def test_json_lines_grow(self, folder, tmp_path):
        saved = tmp_path / "results.jsonl"
        for _ in range(2):
            assert run("bench", folder, *PP_ONLY, "-o", str(saved))[0] == 0
        rows = [json.loads(line) for line in saved.read_text().splitlines()]
        assert [row["test"] for row in rows] == ["pp8", "pp8"]
        assert rows[0]["command"] == f"merino_bench bench {folder} -p 8 -n 0 -r 1 -o {saved}"

    def test_a_terminal_sees_progress_on_one_line(self, folder):
        own, other = os.openpty()
        process = subprocess.Popen([*quick_bench.CALL, "bench", folder, *PP_ONLY],
                                   stdout=subprocess.PIPE, stderr=other,
                                   env=dict(os.environ, PYTHONPATH=quick_bench.ROOTS))
        os.close(other)
        assert process.communicate()[0].startswith(b"| bundle")
        seen = read_until_closed(own)
        lines = seen.split(b"\r\x1b[K")
        assert lines[0] == b"" and lines[1].startswith(b"merino: 0/2 power at rest") and b"\n" not in seen
        assert lines[2].startswith(b"merino: 1/2 ") and lines[2].endswith(b" pp8 1/1") and lines[3:] == [b""]

    @pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="looks for the child in /proc")
    def test_ctrl_c_is_exit_130_and_leaves_no_process_and_older_records_as_they_were(self, folder, tmp_path):
        older = tmp_path / "older.json"
        older.write_text('[{"test": "tg128"}]')
        parent = subprocess.Popen(
            [*quick_bench.CALL, "bench", folder, "-p", "8", "-n", "0", "-r", str(10 ** 8), "--format", "json",
             "-o", str(older)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=quick_bench.ROOTS),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a shell's background job ignores it
        child = wait_for(lambda: children_of(parent.pid))[0]
        parent.send_signal(signal.SIGINT)
        out, err = parent.communicate(timeout=DEADLINE_S)
        assert parent.returncode == 130 and json.loads(out.decode()) == [] and b"Traceback" not in err
        assert not os.path.exists(f"/proc/{child}") and older.read_text() == '[{"test": "tg128"}]'


class TestZip:
    """The board side as one file, from an empty folder, with nothing installed on the path."""

    def test_its_child_runs_the_zips_own_code(self, folder, tmp_path):
        """A relative path to the zip, and a backend in it that says who it is."""
        app, marked = os.path.join(folder, "merino.pyz"), str(tmp_path / "marked.pyz")
        with zipfile.ZipFile(app) as source, zipfile.ZipFile(marked, "w") as copy:
            for name in source.namelist():
                text = quick_bench.quick(name, source.read(name))
                if name == "merino_runtime/backends/onnx.py":
                    text = text.replace(b" CPU\"", b" CPU of the zip\"")
                copy.writestr(name, text)
        code, out, err = run("bench", folder, *PP_ONLY, "--format", "json", call=[sys.executable, "marked.pyz"],
                             cwd=str(tmp_path), path=None)
        assert code == 0, err
        assert json.loads(out)[0]["engine"].endswith("CPU of the zip")


def wait_for(condition):
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        time.sleep(0.02)
    raise AssertionError("nothing came")


def children_of(pid):
    """Those that have loaded ONNX Runtime: the parent waits for them, and has long started them."""
    results = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as stat, open(f"/proc/{entry}/maps") as maps:
                parent = int(stat.read().rsplit(")", 1)[1].split()[1])
                if parent == pid and "onnxruntime" in maps.read():
                    results.append(int(entry))
        except OSError:
            continue
    return results


def on_tensorrt(*words):
    path = os.pathsep.join([ON_PATH, quick_bench.ROOTS])
    code, out, err = run("bench", *words, "-p", "8", "-n", "4", "-r", "1", "--format", "json", path=path)
    return code, json.loads(out), err


def test_rows_name_the_backend_and_the_engine_is_built_before_any_is_timed(bundle_dirs, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, rows, err = on_tensorrt(str(bundle_dirs["portable"]), "--backend", "tensorrt")
    assert code == 0, err
    assert [row["test"] for row in rows] == ["pp8", "tg4"]
    for row in rows:
        assert row["engine"] == "tensorrt 8.2.1.8 fp32 NVIDIA Stand-In X1" and row["tok_s"] > 0
        assert not [note for note in row["notes"] if "building" in note or "float16" in note]


def test_a_gpu_that_is_not_there_fails_its_rows_with_the_reason(bundle_dirs, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("MERINO_STAND_IN_BROKEN", "1")
    code, rows, _ = on_tensorrt(str(bundle_dirs["portable"]), "--backend", "tensorrt")
    assert code == 1 and all("no NVIDIA driver" in row["flags"][0] for row in rows) and len(rows) == 2
