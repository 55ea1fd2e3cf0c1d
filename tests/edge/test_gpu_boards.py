"""Boards with a GPU: costs in TensorRT, searches, profiles with several backends, and what a probe of a GPU gives."""

import json
import tomllib
from dataclasses import replace

import pytest
from few_examples import examples
from hypothesis import given
from hypothesis import strategies as st
from sample_probe import synthetic
from typer.testing import CliRunner

from merino_edge.bundles.description import GraphFormat
from merino_edge.calibration.calibrate import calibrate, calibrated_toml
from merino_edge.calibration.command import recalibrate
from merino_edge.calibration.gpu_fit import fit_gpu
from merino_edge.calibration.probe import PROBE_SCHEMA, Probe
from merino_edge.cli.app import app
from merino_edge.design.design_file import Design, load_design
from merino_edge.design.designer import design
from merino_edge.design.space import Space
from merino_edge.export.request import ExportRequest, graph_format
from merino_edge.families.designed import Architecture, Block
from merino_edge.families.zoo import model as published
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.formats import fast_formats, formats_of, missing_isa
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.reading import load_profile, parse_profile, parse_profile_text, profile_text
from merino_runtime.errors import MerinoError
from tests.sample_gpu_probe import SPEEDS, probed
from tests.sample_probe import row
from tests.tensorrt_stand_in import VERSIONS, Speeds

NANO, ORIN = load_profile("jetson-nano"), load_profile("jetson-orin-nano")
GPUS = st.sampled_from([NANO, ORIN])
SMALL = Space(widths=(128, 192, 256, 512), ffn_ratios=(1.0, 3.0), depths=(2, 4, 12))
OPT_350M = published("opt-350m").geometry
# What a higher figure does to latency and memory.
FASTER = ("read_gb_s", "fp32_gflops", "fp16_gflops", "host_copy_gb_s")
SLOWER = ("launch_us", "step_us")
LARGER = ("runtime_mb", "cuda_context_mb")


def with_gpu(board, **factors):
    """The board with figures of its GPU times a factor."""
    speed = board.performance.tensorrt
    scaled = {
        name: getattr(speed, name).model_copy(update={"value": factor * getattr(speed, name).value})
        for name, factor in factors.items()
    }
    performance = board.performance.model_copy(update={"tensorrt": speed.model_copy(update=scaled)})
    return board.model_copy(update={"performance": performance})


@st.composite
def decoders(draw):
    widths = sorted(draw(st.lists(st.sampled_from(range(64, 513, 64)), min_size=1, max_size=3)))
    blocks = tuple(
        Block(width=width, ffn_ratio=draw(st.sampled_from([1, 1.5, 3])), depth=draw(st.integers(1, 4)),
              shared=draw(st.booleans()))
        for width in widths
    )  # fmt: skip
    return Architecture(blocks=blocks, vocab=draw(st.sampled_from([512, 50257])), head_size=32)


shapes = st.builds(
    InferenceShape, st.sampled_from(["fp16", "fp32"]), st.integers(64, 2048), st.integers(1, 600)
)


@given(decoders(), GPUS, shapes, st.sampled_from(FASTER + SLOWER + LARGER), st.floats(1, 10))
def test_a_better_gpu_is_never_slower_and_each_figure_counts(arch, board, shape, name, factor):
    before = cost_model(board, shape).predict(arch.operators)
    after = cost_model(with_gpu(board, **{name: factor}), shape).predict(arch.operators)
    worse, better = (before, after) if name in FASTER else (after, before)
    for cost in ("decode_ms", "prefill_ms", "memory_mb"):
        assert getattr(better, cost) <= getattr(worse, cost) * (1 + 1e-12)
    if factor > 1.01 and name not in ("fp32_gflops", "fp16_gflops"):  # a step computes less than it reads
        changed = "memory_mb" if name in LARGER else "decode_ms"
        assert getattr(better, changed) < getattr(worse, changed)
    assert before.decode_threads is None and before.prefill_threads is None


@given(decoders(), GPUS, st.integers(64, 1024))
def test_a_step_takes_no_less_than_its_reads_and_its_launches(arch, board, context):
    """The portable graph reads all slots of the cache, so the length of the context costs and not what is filled."""
    speed, shape = board.performance.tensorrt, InferenceShape("fp16", context, 1)
    result, longer = (
        cost_model(board, replace(shape, context=length)).predict(arch.operators) for length in (context, 2 * context)
    )
    read_ms = 1e-6 * (result.weight_bytes - 2 * arch.vocab * arch.blocks[0].width) / speed.read_gb_s.value
    assert result.decode_ms > read_ms + 1e-3 * len(arch.operators) * speed.launch_us.value
    assert longer.decode_ms - result.decode_ms > 1e-6 * result.kv_bytes / speed.read_gb_s.value


@given(decoders(), GPUS, shapes)
def test_memory_holds_the_engine_the_cache_and_the_context(arch, board, shape):
    result, model = cost_model(board, shape).predict(arch.operators), cost_model(board, shape)
    speed = board.performance.tensorrt
    fixed = speed.runtime_mb.value + speed.cuda_context_mb.value
    stored_mb = (result.weight_bytes + result.kv_bytes) / 2**20
    assert result.memory_mb >= fixed + stored_mb
    opening_mb = model.on.weights_mb(arch.operators, opening=True)
    assert result.memory_mb >= fixed + opening_mb >= fixed + 2 * result.weight_bytes / 2**20


def test_a_gpu_computes_fp16_first_and_no_integers():
    for board in (NANO, ORIN):
        assert formats_of(board) == ("fp16", "fp32") == tuple(fast_formats(board))
        assert formats_of(board.with_backend("onnxruntime")) == ("fp32", "int8", "int4")
    assert missing_isa(NANO.with_backend("onnxruntime"), "int8") == ()  # a graph for its kind of core has no dotprod
    assert missing_isa(NANO, "int8") == ()  # the CPU's features say nothing of the GPU
    half, whole = (
        cost_model(NANO, InferenceShape(form, 512, 64)).predict(OPT_350M.operators) for form in ("fp16", "fp32")
    )
    assert 1.7 < whole.decode_ms / half.decode_ms < 2  # half the bytes, as many launches
    with pytest.raises(MerinoError, match="latency of int8 cannot be predicted, tensorrt has no figures.* fp16, fp32"):
        cost_model(NANO, InferenceShape("int8", 512, 64)).predict(OPT_350M.operators)


def run(*words):
    done = CliRunner().invoke(app, [*words])
    assert done.exit_code == 0, done.output
    return done.stdout


GOLDEN = {
    # (board, backend asked for): backend, format, shape, decode ms, prefill ms, memory MB of the board's own budget
    ("jetson-nano", None): ("tensorrt", "fp16", "1920x1.5x13gk1", 50, 2013, 1821),
    ("jetson-nano", "onnxruntime"): ("onnxruntime", "int4", "1408x3.5x8gk1", 42, 10421, 238),
    ("jetson-orin-nano", None): ("tensorrt", "fp16", "1280x4x18gk1", 25, 378, 2346),
    ("jetson-orin-nano", "onnxruntime"): ("onnxruntime", "int4", "1184x4x16gk1", 25, 1759, 315),
}  # fmt: skip


@pytest.mark.parametrize(("board", "requested"), [
    pytest.param(*case, marks=() if case[1] is None else pytest.mark.nightly) for case in GOLDEN
])  # fmt: skip
def test_the_design_for_a_jetsons_own_budget(board, requested):
    name = board if requested is None else f"{board}:{requested}"
    result = Design.model_validate_json(run("design", "--board", name, "--json"))
    cost = result.predicted
    assert (
        result.backend, result.precision, result.architecture.shape(),
        *(round(value) for value in (cost.decode_ms, cost.prefill_ms, cost.memory_mb)),
    ) == GOLDEN[board, requested]  # fmt: skip
    assert result.solver.gap < 1e-6


def test_what_the_commands_say_of_a_boards_backends():
    output = run("design", "--board", "jetson-nano", "--vocab", "2000", "--context", "64")
    assert "for jetson-nano on tensorrt (--board jetson-nano:onnxruntime for the other): --decode-ms 50" in output
    assert "Design for NVIDIA Jetson Nano (4 GB) on tensorrt, predicted from estimated coefficients" in output
    assert "no interval: the errors of predictions for TensorRT were not measured yet" in output
    on_cpu = run("design", "--board", "jetson-nano:onnxruntime", "--vocab", "2000", "--context", "64")
    assert "budgets for jetson-nano on onnxruntime (--board jetson-nano:tensorrt for the other)" in on_cpu
    pi = run("design", "--board", "raspberry-pi-4", "--vocab", "2000", "--context", "64")
    assert "budgets for raspberry-pi-4: --decode-ms 50" in pi and "onnxruntime" not in pi


def test_the_figures_of_a_board_are_those_of_all_its_backends():
    shown = run("devices", "jetson-nano")
    assert shown.startswith("NVIDIA Jetson Nano (4 GB) (jetson-nano)")
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "performance.tensorrt.read_gb_s 15 estimated 60 % of the datasheet's 25.6" in lines
    assert "gpu.fp16_gflops 472 datasheet Jetson Nano module datasheet, a peak" in lines
    assert "the GPU's figures are of its power mode 10W" in lines
    assert "performance.onnxruntime.read_gb_s" in shown
    assert "gpu." not in run("devices", "raspberry-pi-4")
    (shown,) = json.loads(run("devices", "jetson-nano", "--json"))
    assert shown["default_backend"] == "tensorrt" and set(shown["performance"]) == {"onnxruntime", "tensorrt"}
    rows = {line.split()[0]: line.split() for line in run("devices").splitlines() if line.startswith(("jet", "rasp"))}
    assert {name: ("tensorrt" in words, "onnxruntime" in words) for name, words in rows.items()} == {
        name: (name.startswith("jetson"), name.startswith("raspberry")) for name in rows
    }


def test_a_design_for_tensorrt_is_exported_in_its_dialect(tmp_path):
    made = design(NANO, {"decode_ms": 20}, space=SMALL, context=64, prompt=32, kvs=[None])
    path = tmp_path / "design.json"
    path.write_text(made.to_json())
    read = load_design(path)
    assert read == made
    assert graph_format(ExportRequest(), read, 64) == GraphFormat("fp16", "portable", 64)
    assert graph_format(ExportRequest(), None, 64) == GraphFormat("fp32", "fused", 64)
    cpu = NANO.with_backend("onnxruntime")
    on_cpu = design(cpu, {"decode_ms": 20}, space=SMALL, context=64, prompt=32, kvs=[None])
    assert graph_format(ExportRequest(), on_cpu, 64).dialect == on_cpu.dialect == "portable"
    assert graph_format(ExportRequest(board=load_profile("raspberry-pi-4")), on_cpu, 64).dialect == "fused"


def raw_profile(board="jetson-nano"):
    return tomllib.loads(profile_text(board))


@pytest.mark.parametrize(("path", "value", "message"), [
    ("default_backend", "cuda", 'default_backend is "cuda", must be \'onnxruntime\' or \'tensorrt\''),
    ("performance.tensorrt", None, 'default_backend is "tensorrt", and there is no performance.tensorrt'),
    ("performance.onnxruntime", None, "performance.onnxruntime: missing, must be a table of read_gb_s, fp32_gflops"),
    ("performance.read_gb_s", 5, "performance.read_gb_s: unknown key"),
    ("performance.tensorrt.power_mode", "MAXN", 'power_mode is "MAXN", must be one of power.modes, 10W, 5W'),
    ("performance.tensorrt.read_gb_s.value", 26, "is 26, must be at most memory.peak_gb_s, which is 25.6"),
    ("performance.tensorrt.runtime_mb.value", 2049, "is 2049, must be at most budget.memory_mb, which is 2048"),
    ("performance.tensorrt.launch_us", None, "performance.tensorrt.launch_us: missing, must be { value = a positive"),
    ("performance.tensorrt.launchs_us", 3, "unknown key (did you mean launch_us?)"),
])  # fmt: skip
def test_faults_of_a_profile_with_a_gpu(path, value, message):
    raw = raw_profile()
    *tables, key = path.split(".")
    at = raw
    for table in tables:
        at = at[table]
    if value is None:
        del at[key]
    else:
        at[key] = value
    with pytest.raises(MerinoError) as caught:
        parse_profile(raw, "bad.toml")
    assert message in str(caught.value)


def test_calibrating_the_cpu_leaves_the_gpu_as_it_was():
    probe = synthetic()
    assert probe.backend == "onnxruntime"
    text = calibrated_toml(profile_text("jetson-nano"), probe, calibrate(probe))
    after = parse_profile_text(text, "calibrated")
    assert after.performance.tensorrt == NANO.performance.tensorrt and after.backend == "tensorrt"
    assert after.performance.onnxruntime.read_gb_s.kind == "calibrated"
    assert "# Nothing here was measured on the board" in text
    work = InferenceShape("fp16", 256, 64)
    assert cost_model(after, work).predict(OPT_350M.operators) == cost_model(NANO, work).predict(OPT_350M.operators)
    with pytest.raises(MerinoError, match="lacks chains of matmuls"):
        calibrate(probe.model_copy(update={"backend": "tensorrt"}))


MODEL = "NVIDIA Jetson Nano Developer Kit"


def as_of(probe, model=MODEL, mode="MAXN (0)", **changes):
    """The probe as the board would have written it."""
    return probe | {"machine": probe["machine"] | {"arch": "aarch64", "board": model}, "power_mode": mode} | changes


def written(folder, probe, name="probe.json"):
    path = folder / name
    path.write_text(json.dumps(probe))
    return path


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return as_of(probed(VERSIONS[0], tmp_path_factory.mktemp("nano") / "probe.json", patch))


def test_the_devices_figures_come_back_within_one_percent(nano, tmp_path):
    fit = recalibrate("jetson-nano", [written(tmp_path, nano)], tmp_path / "mine.toml")
    board, shipped = load_profile(tmp_path / "mine.toml"), load_profile("jetson-nano")
    speed = board.performance.tensorrt
    for name, truth in SPEEDS._asdict().items():
        figure = getattr(speed, name)
        assert figure.value == pytest.approx(truth, rel=0.01), name
        assert figure.kind == "calibrated" and "tensorrt 8.2.1.8" in figure.source and "MAXN (0)" in figure.source
    assert speed.runtime_mb.value == pytest.approx(nano["resident"][0]["open_mb"], rel=1e-3)
    assert speed.power_mode == "10W" and speed.busy_w == shipped.performance.tensorrt.busy_w
    assert board.performance.onnxruntime == shipped.performance.onnxruntime and board.backend == "tensorrt"
    assert {residual.kind for residual in fit.residuals} >= {"chain fp16 decode", "chain fp32 prefill", "all"}
    assert max(residual.worst for residual in fit.residuals) < 0.03 and fit.errors == {}


positive = st.floats(1, 100)


@examples(40)
@given(positive, st.floats(10, 120), st.floats(1, 2), st.floats(1, 40), st.floats(20, 500), st.floats(0.5, 20))
def test_any_device_that_computes_longer_than_it_reads_comes_back(read, flops_a_byte, more, launch, step, copy):
    speeds = Speeds(read, flops_a_byte * read, more * flops_a_byte * read, launch, step, copy)
    rows = []
    for side, count in ((1024, 16), (64, 8), (64, 64)):
        for form in ("fp32", "fp16"):
            size = 4 * side * side * count
            plan = {"flags": ["FP16"] if form == "fp16" else [], "weight_bytes": size, "matmuls": count}
            rows += [row("chain", format=form, rows=side, columns=side, count=count, tokens=tokens,
                         weight_bytes=size // (2 if form == "fp16" else 1), ms=1e3 * speeds.run_s(plan, tokens))
                     for tokens in (1, 256)]  # fmt: skip
    rows += [row("copy", weight_bytes=size, ms=0.01 + 1e3 * speeds.copy_s(size)) for size in (2**16, 2**22)]
    memory = {"imports_mb": 40, "open_mb": 300, "peak_mb": 310, "gpu_mb": 170, "kind": "call", "format": "fp32",
              "weight_bytes": 0}  # fmt: skip
    probe = Probe.model_validate({
        "schema": PROBE_SCHEMA, "backend": "tensorrt", "date": "2026-01-01", "seconds": 50, "cores": 4, "isa": [],
        "machine": {"board": MODEL, "arch": "aarch64"}, "last_level_cache_mb": 2.0, "memory_mb": 4000,
        "dialect": "portable", "flags": [], "others_cpu_share": 0.0, "left_out": [], "resident": [memory],
        "measurements": rows,
    })  # fmt: skip
    results = {name: figure["value"] for name, figure in fit_gpu(probe)[0].items()}
    for name, truth in speeds._asdict().items():
        assert results[name] == pytest.approx(truth, rel=0.01), name
    assert (results["runtime_mb"], results["cuda_context_mb"]) == (300, 170)


def test_a_probe_of_another_backend_board_or_mode_is_refused_by_name(nano, tmp_path):
    gpu, out = written(tmp_path, nano), tmp_path / "x.toml"
    refused = [
        ("raspberry-pi-4", gpu, "made with tensorrt, but Raspberry Pi 4.* has only onnxruntime"),
        ("jetson-nano:onnxruntime", gpu, "made with tensorrt, not with onnxruntime: leave :onnx"),
        ("raspberry-pi-4:tensorrt", gpu, "no performance.tensorrt: choose onnxruntime"),
        ("jetson-orin-nano", gpu, f"the probed machine is '{MODEL}', the profile is of NVIDIA Jetson Orin Nano"),
    ]
    changes = {
        "mode": (as_of(nano, mode="5W_EXTRA (7)"), "power mode 5W_EXTRA, the profile has 10W, 5W"),
        "arch": (nano | {"machine": nano["machine"] | {"arch": "x86_64"}}, "the probed machine is x86_64"),
        "fp16": (nano | {"measurements": [row for row in nano["measurements"] if row["format"] != "fp16"]}, "lacks"),
        "memory": (nano | {"resident": []}, "lacks copies to the host or the memory"),
        "time": (nano | {"measurements": [row | {"ms": 1} for row in nano["measurements"]]}, "took no longer"),
    }
    refused += [("jetson-nano", written(tmp_path, got, name), text) for name, (got, text) in changes.items()]
    for device, path, text in refused:
        with pytest.raises(MerinoError, match=text):
            recalibrate(device, [path], out)
        assert not out.exists()
    with pytest.raises(MerinoError, match="--board host takes no .*:tensorrt"):
        recalibrate("host:tensorrt", [], None)


def test_a_mode_that_the_profile_has_stands_in_the_file(nano, tmp_path):
    for mode, named in (("5W (1)", "5W"), (None, "10W")):
        recalibrate("jetson-nano", [written(tmp_path, as_of(nano, mode=mode))], tmp_path / "mine.toml")
        assert tomllib.loads((tmp_path / "mine.toml").read_text())["performance"]["tensorrt"]["power_mode"] == named


def test_a_board_over_ssh_is_asked_for_the_backend_of_its_profile(nano, tmp_path):
    calls = []

    def search(profile):
        calls.append(profile.backend)
        return Probe.model_validate(nano)

    recalibrate("jetson-nano", [], tmp_path / "mine.toml", probe_board=search)
    with pytest.raises(MerinoError, match="not with onnxruntime"):
        recalibrate("jetson-nano:onnxruntime", [], tmp_path / "other.toml", probe_board=search)
    assert calls == ["tensorrt", "onnxruntime"]
