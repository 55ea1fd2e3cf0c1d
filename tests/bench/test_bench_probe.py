"""The board's probe: what it plans for a machine, and that it runs here to the end. Runs on Python 3.6, too."""
import json
import os
import time
from types import SimpleNamespace

import pytest

from merino_bench.probe import graphs as kernels
from merino_bench.probe import pace
from merino_bench.probe import run as board_probe
from merino_bench.probe import tasks as plan
from merino_bench.probe import timing as probe_timing
from merino_bench.probe.onnx_writer import model
from merino_bench.probe.tasks import MB, Machine
from merino_bench.probe.timing import undisturbed_ms
from merino_runtime.backends.onnx_session import version_tuple
from merino_runtime.errors import MerinoError

ZERO_2W = Machine(512 * 1024, 300 * MB, (1, 2, 4), ("fp32", "int8", "int4"), True)
NANO = Machine(2 * MB, 3300 * MB, (1, 2, 4), ("fp32", "int8"), False)
UNKNOWN = Machine(0, 0, (1,), ("fp32",), True)
SERVER = Machine(256 * MB, 100000 * MB, (1, 2, 4, 64), ("fp32", "int8", "int4"), True)
MACHINES = [ZERO_2W, NANO, UNKNOWN, SERVER]


@pytest.mark.parametrize("machine", MACHINES)
def test_a_plan_fits_the_machine(machine):
    tasks = plan.tasks(machine)
    assert len(set(tasks)) == len(tasks)
    assert {task.threads for task in tasks} == set(machine.threads)
    for threads in machine.threads:
        mine = [task for task in tasks if task.threads == threads]
        assert {task.kind for task in mine} == {
            "linear", "head", "attention", "norm", "activation", "call", "choose", *["decoder"] * machine.fused}
        for form in machine.formats:
            rows = [task for task in mine if (task.kind, task.format) == ("linear", form)]
            assert any(task.runs == plan.PREFILL for task in rows) and any(task.runs == plan.DECODE for task in rows)
    for task in tasks:
        if task.kind in ("linear", "head"):
            size = task.count * kernels.matrix_bytes(task.format, task.rows, task.columns, machine.fused)
            assert size <= plan.MOST_BEYOND_BYTES + 8 * MB
            assert not machine.free_bytes or size <= machine.free_bytes // 5


def test_no_decoder_has_more_layers_than_a_block_of_a_design_may_have():
    """A cache of 260 MB asked for 107 layers, which the fit of the coefficients could not read back."""
    decoders = [task for task in plan.tasks(SERVER) if task.kind == "decoder"]
    assert decoders and max(task.count * task.uses for task in decoders) <= 64


def test_the_first_figures_of_each_thread_count_come_before_the_last_of_any():
    tasks = plan.tasks(SERVER)
    assert [task.threads for task in tasks[:4]] == [1, 2, 4, 64]


@pytest.mark.parametrize("fused", [True, False])
def test_each_graph_reads_as_much_as_the_plan_says(fused):
    for form in ("fp32", "int8"):
        kernel = kernels.linears(form, 96, 64, 3, fused)
        assert kernel.weight_bytes == 3 * (kernels.matrix_bytes(form, 96, 64, fused) + padding(form))
        assert len(kernel.outputs) == 3 and kernel.inputs[0].shape == (1, "T", 64)


def padding(form):
    """Up to the next page, of codes and of scales."""
    codes = 96 * 64 * kernels.BITS[form] // 8
    sizes = [codes] if form == "fp32" else [codes, 4 * 96]
    return sum(-size % kernels.PAGE for size in sizes)


def test_a_model_of_nothing_is_a_few_bytes():
    assert len(model([], [], [], [], 13, 8)) < 60


def test_a_short_probe_of_this_machine(tmp_path):
    told = []
    path = tmp_path / "probe.json"
    found = board_probe.run_probe(str(path), seconds=8, tell=told.append)
    assert json.loads(path.read_text()) == found
    assert os.listdir(str(tmp_path)) == ["probe.json"]
    assert found["schema"] == 4 and told
    assert found["cores"] >= 1 and found["machine"]["versions"]["onnxruntime"]
    kinds = {row["kind"] for row in found["measurements"]}
    assert {"read", "call"} <= kinds
    for row in found["measurements"]:
        assert row["median_ms"] >= row["ms"] >= row["least_ms"] > 0 and row["repeats"] >= 1, row
    graphs = len(plan.tasks(board_probe.this_machine((1, 99, 0))))
    assert len(found["left_out"]) < graphs
    nothing = [row for row in found["resident"] if row["kind"] == "call"]
    assert nothing and 10 < nothing[0]["imports_mb"] <= nothing[0]["open_mb"] <= nothing[0]["peak_mb"] + 1


def test_a_folder_that_is_not_there_is_refused():
    with pytest.raises(MerinoError, match="absent"):
        board_probe.run_probe(os.path.join("absent", "probe.json"))


def test_formats_follow_the_version_of_onnxruntime():
    assert board_probe.this_machine((1, 10, 0)).formats == ("fp32", "int8")
    assert not board_probe.this_machine((1, 10, 0)).fused
    assert board_probe.this_machine((1, 19, 2)).formats == ("fp32",)
    assert board_probe.this_machine((1, 23, 2)).formats == ("fp32", "int8", "int4")


def row(ms, pace_us):
    return {**dict.fromkeys(board_probe.MEASURED, 0), **dict.fromkeys(board_probe.TIMES, ms), "repeats": 20,
            "pace_us": pace_us}


def test_passes_of_a_quick_machine_count_by_their_median():
    passes = [row(2.0, 35.0), row(1.0, 60.0), row(1.9, 36.0), row(1.95, 35.0)]
    kept = board_probe.middle(passes, 35.0)
    assert (kept["ms"], kept["least_ms"], kept["repeats"]) == (1.95, 1.95, 60)
    slow = board_probe.middle([row(3.0, 60.0), row(2.0, 60.0)], 35.0)
    assert (slow["ms"], slow["pace_us"]) == (2.5, 60.0)
    assert not board_probe.was_slow([row(1.0, 35.0), row(1.0, 36.0)])
    assert board_probe.was_slow([row(1.0, 35.0), row(1.0, 60.0)])


@pytest.mark.parametrize(("pace_us", "again"), [([35.0], 0), ([60.0], 1), ([35.0, 60.0], 2)])
def test_what_was_timed_while_the_machine_was_slow_is_timed_again(pace_us, again, tmp_path, monkeypatch):
    """The pace is as told and then 35 us: slow before the first graph, or between the first and the second."""
    machine = Machine(2 * MB, 300 * MB, (1,), ("fp32",), True)
    asked, timed = iter(pace_us), []

    def pace_meter(_, work, *_rest):
        kernels.write_weights(work, 1, 0)
        return lambda: next(asked, 35.0)

    def time_task(_, task, *_rest):
        timed.append(task)
        return [dict(row(1.0, None), kind=task.kind, rows=task.rows)]

    monkeypatch.setattr(board_probe, "pace_meter", pace_meter)
    monkeypatch.setattr(board_probe, "time_task", time_task)
    found = board_probe.timed_rows(None, machine, str(tmp_path), time.perf_counter() + 60, lambda _: None)
    tasks = plan.tasks(machine)
    assert len(timed) == board_probe.PASSES * len(tasks) + again
    assert not found.left_out and not board_probe.was_slow(found.rows)


def test_the_pace_of_this_machine_is_some_microseconds(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    fused = board_probe.this_machine(version_tuple(onnxruntime.__version__)).fused
    measure = pace.pace_meter(onnxruntime, str(tmp_path), 1, fused)
    assert 1 < measure() < 1e6
    assert pace.is_slow(42.0, 35.0) and not pace.is_slow(38.0, 35.0)
    assert not pace.is_slow(None, 35.0) and not pace.is_slow(42.0, None)


def test_a_graph_is_run_until_there_are_enough_samples_or_no_time(monkeypatch):
    clock = [0.0]

    def call(seconds):
        clock[0] += seconds

    monkeypatch.setattr(probe_timing, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    few, some, many = (len(probe_timing.repeat_ms(lambda each=each: call(each), 0.3)) for each in (0.5, 0.004, 0.0001))
    assert few == probe_timing.LEAST_RUNS and some == probe_timing.ENOUGH_RUNS
    assert many == pytest.approx(probe_timing.LEAST_RUN_S / 0.0001, abs=2)


def test_bursts_do_not_move_what_is_undisturbed():
    quiet = [1.0 + 0.001 * index for index in range(50)]
    assert undisturbed_ms(quiet + [3.0] * 40) == pytest.approx(1.0, rel=0.02)
    assert undisturbed_ms([5.0, 4.0, 6.0]) == 4.0
