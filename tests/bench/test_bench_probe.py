"""The board's probe: what it plans for a machine, and that it runs here to the end. Runs on Python 3.6, too."""
import json
import os
import threading
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from merino_bench.probe import bandwidth, graphs
from merino_bench.probe import run as board_probe
from merino_bench.probe import tasks as plan
from merino_bench.probe import timing as probe_timing
from merino_bench.probe.tasks import MB, Machine
from merino_bench.probe.timing import lower_decile_ms
from merino_runtime.bundle.requirements import version_tuple
from merino_runtime.errors import MerinoError

ZERO_2W = Machine(512 * 1024, 300 * MB, (1, 2, 4), ("fp32", "int8", "int4"), True)
NANO = Machine(2 * MB, 3300 * MB, (1, 2, 4), ("fp32", "int8", "int4"), False, own_kernels=True)
UNKNOWN = Machine(0, 0, (1,), ("fp32",), True)
SERVER = Machine(256 * MB, 100000 * MB, (1, 2, 4, 64), ("fp32", "int8", "int4"), True, caches=("int8", "int4"),
                 own_kernels=True)
MACHINES = [ZERO_2W, NANO, UNKNOWN, SERVER]


@pytest.mark.parametrize("machine", MACHINES)
def test_a_plan_fits_the_machine(machine):
    tasks = plan.tasks(machine)
    assert len(set(tasks)) == len(tasks)
    assert {task.threads for task in tasks} == set(machine.threads)
    for threads in machine.threads:
        mine = [task for task in tasks if task.threads == threads]
        assert {task.kind for task in mine} == {
            "linear", "head", "attention", "norm", "activation", "call", "argmax", *["decoder"] * machine.fused}
        for form in machine.formats:
            rows = [task for task in mine if (task.kind, task.format) == ("linear", form)]
            assert any(task.runs == plan.PREFILL for task in rows) and any(task.runs == plan.DECODE for task in rows)
        attentions = [task for task in mine if task.kind == "attention"]
        assert {task.kv for task in attentions} == {"fp32", *machine.caches}
        by_groups = {(task.kv, task.kv_heads) for task in attentions if task.by_groups}
        on_kernels = machine.own_kernels and machine.fused
        assert by_groups == ({("fp32", 1), ("fp32", 4), ("int8", 1)} if on_kernels else set())
        for kv in {"fp32", *machine.caches}:
            assert {0, 1} <= {task.kv_heads for task in attentions if task.kv == kv}
    for task in tasks:
        if task.kind in ("linear", "head"):
            size = plan.kernel_of(task, machine.dialect).weight_bytes
            assert size <= plan.MOST_BEYOND_BYTES
            assert not machine.free_bytes or size <= machine.free_bytes // plan.SHARE_OF_FREE


def test_no_decoder_has_more_layers_than_a_block_of_a_design_may_have():
    """A cache of 260 MB asked for 107 layers, which the fit of the coefficients could not read back."""
    decoders = [task for task in plan.tasks(SERVER) if task.kind == "decoder"]
    assert decoders and max(task.count * task.uses for task in decoders) <= 64


@pytest.mark.parametrize("machine", MACHINES)
def test_what_a_plan_asks_for_is_shipped(machine):
    for task in plan.tasks(machine):
        if task.kind != "argmax":
            kernel = plan.kernel_of(task, machine.dialect)
            assert kernel.model and machine.dialect in kernel.dialects
            assert len(kernel.inputs) >= 1 and len(kernel.outputs) >= (task.count if task.kind == "linear" else 1)


def test_a_graph_of_each_kind_and_format_opens_and_runs(tmp_path):
    """In the operators that this machine's ONNX Runtime has: `portable` on the oldest boards."""
    own_kernels = probe_timing.loads_kernels(onnxruntime)
    machine = board_probe.this_machine(version_tuple(onnxruntime.__version__), own_kernels)
    written, ran = 0, set()
    kinds = ("call", "norm", "activation", "attention", "linear", "head", "table")
    for kind in kinds:
        for form in machine.formats:
            result = graphs.kernels_of(machine.dialect, kind, form)
            if kind == "attention":  # without weights, and all of them differ
                smallest = [kernel for kernel in result if kernel.kv in ("fp32",) + machine.caches
                            and (own_kernels or not kernel.own_kernels)]
            else:
                smallest = sorted(result, key=lambda kernel: kernel.weight_bytes)[:1]
            for kernel in smallest:
                written = graphs.write_weights(str(tmp_path), kernel.weight_bytes, written)
                path = tmp_path / "model.onnx"
                path.write_bytes(kernel.model)
                session = probe_timing.open_graph(onnxruntime, str(path), 1, kernel.own_kernels)
                for cached, tokens in ((0, 1), (2047, 1), (0, 3)) if kind != "head" else ((0, 1),):
                    arrays, shared = probe_timing.bound(session, kernel, cached, tokens)()
                    for values in list(arrays.values()) + list(shared.values()):
                        assert np.isfinite(values).all(), kernel.file
                ran.add((kind, kernel.kv, kernel.kv_heads))
    attentions = {("attention", kv, kv_heads) for kv in machine.caches for kv_heads in (0, 1)}
    chosen = () if machine.dialect == "portable" else (4,)
    attentions |= {("attention", "fp32", kv_heads) for kv_heads in (0, 1, 2, *chosen)}
    assert ran == attentions | {(kind, "fp32", 0) for kind in kinds if kind != "attention"}


@pytest.mark.nightly  # by day tests/edge/test_calibration.py makes a profile of one
@pytest.mark.slow
def test_a_short_probe_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(bandwidth, "buffer_bytes", lambda: 64 * MB)  # four caches of a server take half the time
    messages = []
    path = tmp_path / "probe.json"
    result = board_probe.run_probe(str(path), seconds=8, report=messages.append)
    assert json.loads(path.read_text()) == result
    assert os.listdir(str(tmp_path)) == ["probe.json"]
    assert result["schema"] == 10 and messages
    assert result["cores"] >= 1 and result["machine"]["versions"]["onnxruntime"]
    kinds = {row["kind"] for row in result["measurements"]}
    assert {"read", "call"} <= kinds
    for row in result["measurements"]:
        assert row["median_ms"] >= row["ms"] >= row["least_ms"] > 0 and row["repeats"] >= 1, row
    graphs = len(plan.tasks(board_probe.this_machine((1, 99, 0), True)))
    assert len(result["left_out"]) < graphs
    nothing = [row for row in result["resident"] if row["kind"] == "call"]
    assert nothing and 10 < nothing[0]["imports_mb"] <= nothing[0]["open_mb"] <= nothing[0]["peak_mb"] + 1


def test_a_folder_that_is_not_there_is_refused():
    with pytest.raises(MerinoError, match="absent"):
        board_probe.run_probe(os.path.join("absent", "probe.json"))


def test_what_takes_no_file_and_a_disk_without_space_are_refused_before_the_minute(tmp_path, monkeypatch):
    def measure(*_):
        raise AssertionError("it was measured")

    monkeypatch.setattr(board_probe, "probe_cpu", measure)
    with pytest.raises(MerinoError, match="is a folder. Name a file"):
        board_probe.run_probe(str(tmp_path))
    monkeypatch.setattr(plan, "MOST_BEYOND_BYTES", 2 ** 60)
    with pytest.raises(MerinoError, match="MB are needed and .* MB are free there"):
        board_probe.run_probe(str(tmp_path / "probe.json"))
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name are Unix's")
def test_a_probe_goes_into_a_pipe_and_its_graphs_elsewhere(tmp_path, monkeypatch):
    works, read = [], []
    monkeypatch.setattr(board_probe, "probe_cpu", lambda work, *_: works.append(work) or {"flags": []})
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)

    def reading():
        with open(pipe) as file:
            read.append(file.read())

    reader = threading.Thread(target=reading)
    reader.start()
    board_probe.run_probe(pipe)
    reader.join()
    assert json.loads(read[0])["flags"] == [] and os.listdir(str(tmp_path)) == ["pipe"]
    assert not os.path.exists(works[0])


def test_formats_follow_the_version_of_onnxruntime():
    assert board_probe.this_machine((1, 10, 0)).formats == ("fp32", "int8")
    assert board_probe.this_machine((1, 10, 0), "kernels.so").formats == ("fp32", "int8", "int4")
    assert not board_probe.this_machine((1, 10, 0)).fused
    assert board_probe.this_machine((1, 19, 2)).formats == ("fp32",)
    assert board_probe.this_machine((1, 19, 2), "kernels.so").formats == ("fp32", "int8", "int4")
    assert board_probe.this_machine((1, 26, 0)).caches == ()
    assert board_probe.this_machine((1, 27, 0)).caches == ("int8", "int4")


def test_what_the_deadline_cuts_is_not_done(tmp_path, monkeypatch):
    """A needed task that runs when the minute ends is run to its end; another one has the rows that it came to."""
    machine = Machine(2 * MB, 300 * MB, (4,), ("fp32", "int8"), True)
    tasks = plan.tasks(machine)
    needed = set(plan.needed_of(tasks))
    clock, rows_of = [0.0], {}

    def time_task(_, task, *_rest, deadline, **_limits):
        rows = []
        for cached, tokens in task.runs:
            if rows and clock[0] > deadline:
                break
            clock[0] += 1
            rows.append(dict(dict.fromkeys(board_probe.MEASURED, 0), place=tasks.index(task), past=cached,
                             tokens=tokens, ms=1))
        rows_of[task] = max(rows_of.get(task, 0), len(rows))
        return rows

    monkeypatch.setattr(board_probe, "time_task", time_task)
    monkeypatch.setattr(board_probe, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(graphs, "write_weights", lambda *_: 0)
    for deadline in range(1, 80):
        clock[0] = 0.0
        rows_of.clear()
        rows, left_out = board_probe.timed_rows(None, machine, str(tmp_path), deadline, lambda _: None)
        assert all(rows_of[task] == len(task.runs) for task in needed), deadline
        cut = {board_probe.task_name(task) for task in tasks if rows_of.get(task, 0) < len(task.runs)}
        assert set(left_out) == cut, deadline


def test_bursts_do_not_move_the_lower_decile():
    quiet = [1.0 + 0.001 * index for index in range(50)]
    assert lower_decile_ms(quiet + [3.0] * 40) == pytest.approx(1.0, rel=0.02)
    assert lower_decile_ms([5.0, 4.0, 6.0]) == 4.0
