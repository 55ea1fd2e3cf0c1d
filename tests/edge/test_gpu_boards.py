"""Boards with a GPU: their costs in TensorRT, the searches that these drive, profiles with several backends."""

import json
import tomllib
from dataclasses import replace

import pytest
from few_examples import examples
from hypothesis import given
from hypothesis import strategies as st
from sample_probe import calibrated_board, synthetic
from typer.testing import CliRunner

from merino_edge.bundles.description import GraphFormat
from merino_edge.calibration.calibrate import calibrate, calibrated_toml
from merino_edge.cli.app import app
from merino_edge.cli.recommended import recommendation_json
from merino_edge.design.design_file import Design, load_design
from merino_edge.design.designer import design
from merino_edge.design.recommend import recommend
from merino_edge.design.space import Space
from merino_edge.export.request import ExportRequest, graph_format
from merino_edge.families.designed import Architecture, Block
from merino_edge.families.zoo import model as published
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.formats import fast_formats, formats_of, missing_isa
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.reading import load_profile, parse_profile, parse_profile_text, profile_text
from merino_runtime.errors import MerinoError

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


@given(GPUS, st.sampled_from((*FASTER, *SLOWER, *LARGER)), st.floats(1, 4))
@examples(15)
def test_a_better_gpu_is_never_given_a_worse_design(board, name, factor):
    limits = {"decode_ms": 4, "memory_mb": board.performance.tensorrt.runtime_mb.value * 2}
    before, after = (
        design(profile, limits, space=SMALL, context=256, prompt=64, vocabs=[8000]).entropy
        for profile in (board, with_gpu(board, **{name: factor if name in FASTER else 1 / factor}))
    )
    assert after >= before * (1 - 1e-9)


def test_bandwidth_drives_the_design():
    """Ten times the bandwidth at the same launches: the search spends it on more weights."""
    limits = {"decode_ms": 8}
    slow, fast = (
        design(with_gpu(NANO, read_gb_s=factor), limits, context=256, prompt=64, vocabs=[8000])
        for factor in (0.2, 1.7)
    )
    assert fast.predicted.params > 2 * slow.predicted.params
    assert (slow.precision, slow.backend) == ("fp16", "tensorrt")
    launches = design(with_gpu(NANO, launch_us=3), limits, context=256, prompt=64, vocabs=[8000])
    normal = design(NANO, limits, context=256, prompt=64, vocabs=[8000])
    depth = [sum(block.depth for block in result.architecture.blocks) for result in (launches, normal)]
    assert depth[0] < depth[1], "where a launch costs more, a design has fewer layers"


def run(*words):
    done = CliRunner().invoke(app, [*words])
    assert done.exit_code == 0, done.output
    return done.stdout


GOLDEN = {
    # (board, backend asked for): backend, format, shape, decode ms, prefill ms, memory MB of the board's own budget
    ("jetson-nano", None): ("tensorrt", "fp16", "1920x1.5x13gk1", 50, 2013, 1821),
    ("jetson-nano", "onnxruntime"): ("onnxruntime", "int4", "1536x2x12gk1", 50, 13365, 275),
    ("jetson-orin-nano", None): ("tensorrt", "fp16", "1280x4x18gk1", 25, 378, 2346),
    ("jetson-orin-nano", "onnxruntime"): ("onnxruntime", "int4", "1920x2x11gk1", 25, 1924, 597),
}  # fmt: skip


@pytest.mark.parametrize(("board", "requested"), [
    pytest.param(*case, marks=() if case[1] is None else pytest.mark.nightly) for case in GOLDEN
])  # fmt: skip
def test_the_design_for_a_jetsons_own_budget(board, requested):
    words = () if requested is None else ("--backend", requested)
    result = Design.model_validate_json(run("design", "--device", board, *words, "--json"))
    cost = result.predicted
    assert (
        result.backend, result.precision, result.architecture.shape(),
        *(round(value) for value in (cost.decode_ms, cost.prefill_ms, cost.memory_mb)),
    ) == GOLDEN[board, requested]  # fmt: skip
    assert result.solver.gap < 1e-6


def test_what_the_commands_say_of_a_boards_backends():
    output = run("design", "--device", "jetson-nano", "--vocab", "2000", "--context", "64")
    assert "budgets for jetson-nano on tensorrt (--backend onnxruntime for the other): --decode-ms 50" in output
    assert "Design for NVIDIA Jetson Nano (4 GB) on tensorrt, predicted from estimated coefficients" in output
    assert "no interval: the errors of predictions for TensorRT were not measured yet" in output
    on_cpu = run("design", "--device", "jetson-nano", "--vocab", "2000", "--context", "64",
                 "--backend", "onnxruntime")  # fmt: skip
    assert "budgets for jetson-nano on onnxruntime (--backend tensorrt for the other)" in on_cpu
    pi = run("design", "--device", "raspberry-pi-4", "--vocab", "2000", "--context", "64")
    assert "budgets for raspberry-pi-4: --decode-ms 50" in pi and "onnxruntime" not in pi


def test_the_figures_of_a_board_are_those_of_its_backend():
    gpu, cpu = run("devices", "jetson-nano"), run("devices", "jetson-nano", "--backend", "onnxruntime")
    assert gpu.startswith("NVIDIA Jetson Nano (4 GB) (jetson-nano) on tensorrt (--backend onnxruntime for the other)")
    lines = [" ".join(line.split()) for line in gpu.splitlines()]
    assert "performance.tensorrt.read_gb_s 15 estimated 60 % of the datasheet's 25.6" in lines
    assert "gpu.fp16_gflops 472 datasheet Jetson Nano module datasheet, a peak" in lines
    assert "the GPU's figures are of its power mode 10W" in lines
    assert "performance.onnxruntime" not in gpu
    assert "performance.onnxruntime.read_gb_s" in cpu and "performance.tensorrt" not in cpu and "gpu." not in cpu
    (shown,) = json.loads(run("devices", "jetson-nano", "--json"))
    assert shown["default_backend"] == "tensorrt" and set(shown["performance"]) == {"onnxruntime", "tensorrt"}
    rows = {line.split()[0]: line.split() for line in run("devices").splitlines() if line.startswith(("jet", "rasp"))}
    assert {name: ("tensorrt" in words, "onnxruntime" in words) for name, words in rows.items()} == {
        name: (name.startswith("jetson"), name.startswith("raspberry")) for name in rows
    }


def test_recommend_judges_the_formats_of_the_backend():
    judged = recommend(ORIN, {"decode_ms": 40, "memory_mb": 4096}, context=256, prompt=64, space=SMALL)
    result = recommendation_json(judged, ORIN, ORIN.id)
    assert (result["schema"], result["backend"]) == (5, "tensorrt")
    formats = {tuple(verdict["precision"] for verdict in model["formats"]) for model in result["models"]}
    assert formats == {("fp16", "fp32")}
    assert [design["precision"] for design in result["designs"]] == ["fp16", "fp32"]
    assert all(design["design"]["backend"] == "tensorrt" for design in result["designs"])
    fitting = [model for model in result["models"] if model["fits"]]
    assert fitting and {model["precision"] for model in fitting} == {"fp16"}
    assert not any(verdict["refused"] for model in result["models"] for verdict in model["formats"])


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
    assert graph_format(ExportRequest(), on_cpu, 64).dialect == "fused"


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


def test_a_board_without_a_gpu_is_what_it_was():
    pi = load_profile("raspberry-pi-5")
    assert pi.with_backend(None) is pi and pi.with_backend("onnxruntime") == pi
    assert calibrated_board(synthetic()).backends == ("onnxruntime",)
    with pytest.raises(MerinoError, match="no performance.tensorrt: choose onnxruntime"):
        pi.with_backend("tensorrt")
