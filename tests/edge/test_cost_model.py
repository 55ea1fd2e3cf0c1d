"""The cost model: costs add up and grow with the model. Prediction intervals cover as often as they say."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from few_examples import examples
from hypothesis import given
from hypothesis import strategies as st
from sample_probe import BOARD, MACHINE, calibrated_board, synthetic, with_errors
from typer.testing import CliRunner

from merino_edge.calibration.calibrate import calibrate
from merino_edge.calibration.command import recalibrate
from merino_edge.calibration.probe import joined
from merino_edge.cli.app import app
from merino_edge.design.budgets import BUDGETS_BY_NAME, amount
from merino_edge.design.designer import design
from merino_edge.design.recommend import recommend
from merino_edge.design.space import Space
from merino_edge.families.designed import Architecture, Block
from merino_edge.families.operators import CPU_FORMATS, weight_bytes
from merino_edge.families.zoo import model as published
from merino_edge.prediction.cost_model import added_file_mb, cost_model
from merino_edge.prediction.default_coefficients import estimated
from merino_edge.prediction.formats import formats_of
from merino_edge.prediction.intervals import factors
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.coefficients import LatencyError
from merino_edge.profiles.reading import load_profile, profile_ids
from merino_runtime.backends.threads import TWO_SESSIONS_BELOW_BYTES
from merino_runtime.errors import MerinoError

FORMATS = CPU_FORMATS
OPT_350M = published("opt-350m").geometry
BOARDS = {board: load_profile(board) for board in profile_ids()}
ON_CPU = {board: profile.with_backend("onnxruntime") for board, profile in BOARDS.items()}


@st.composite
def decoders(draw, most=512):
    widths = sorted(draw(st.lists(st.sampled_from(range(64, most + 1, 64)), min_size=1, max_size=3)))
    blocks = tuple(
        Block(width=width, ffn_ratio=draw(st.sampled_from([1, 1.5, 3])), depth=draw(st.integers(1, 4)),
              shared=draw(st.booleans()))
        for width in widths
    )  # fmt: skip
    return Architecture(blocks=blocks, vocab=draw(st.sampled_from([512, 8000, 50257])), head_size=32)
MACHINES = [board.with_backend(backend) for board in BOARDS.values() for backend in board.backends]
models = st.sampled_from(MACHINES).flatmap(
    lambda board: st.builds(
        cost_model, st.just(board),
        st.builds(InferenceShape, st.sampled_from(formats_of(board)), st.integers(8, 2048), st.integers(1, 600)),
    )
)  # fmt: skip


@given(decoders(), models, st.data())
def test_costs_add_up_over_operators(arch, model, data):
    operators = arch.operators
    cut = data.draw(st.integers(0, len(operators)))
    for cost in (
        model.on.read_mb,
        lambda ops: model.on.weights_mb(ops, opening=False),
        lambda ops: model.on.weights_mb(ops, opening=True),
        lambda ops: model.on.latency_tables(ops, prefill=True)[0].sum(),
        lambda ops: model.on.latency_tables(ops, prefill=True)[1].sum(),
        lambda ops: added_file_mb(ops, model.shape.precision),
    ):
        parts = [cost(part) for part in (operators[:cut], operators[cut:]) if part]
        assert sum(parts) == pytest.approx(cost(operators), rel=1e-9)


@given(decoders(), models)
def test_a_prediction_is_positive_and_of_the_weakest_kind(arch, model):
    result = model.predict(arch.operators)
    assert 0 < result.decode_ms < 1e6 and 0 < result.prefill_ms < 1e7
    assert result.memory_mb > model.on.runtime_mb
    assert result.provenance == "estimated"


def model_of(board, precision, context, prompt):
    return cost_model(ON_CPU[board], InferenceShape(precision, context, prompt))


def test_two_sessions_hold_prepacked_weights_twice():
    model, operators = model_of("raspberry-pi-5", "fp32", 512, 256), OPT_350M.operators
    one, two = (model.memory_mb(operators, sessions) for sessions in (1, 2))
    assert two - one == pytest.approx(model.on.weights_mb(operators, opening=False))
    for result in model.predict_each(operators):
        assert result.memory_mb == (one if result.decode_threads == result.prefill_threads else two)
    tight = model.predict(operators, {"memory_mb": one + 1})
    assert tight.decode_threads == tight.prefill_threads
    alone = model.predict(operators)  # as the runtime opens a bundle without a plan of threads
    assert alone.decode_threads == alone.prefill_threads and alone.memory_mb == one
    assert model.predict(operators, {}).memory_mb == two, "on this board the fastest counts differ"
    # So few weights that the runtime opens the second session by itself.
    small = Architecture(blocks=(Block(width=256, ffn_ratio=2, depth=4),), vocab=4096, head_size=32).operators
    assert weight_bytes(small, "fp32") < TWO_SESSIONS_BELOW_BYTES <= weight_bytes(operators, "fp32")
    assert model.predict(small) == model.predict(small, {}) and model.predict(small).prefill_threads == 4


@given(decoders(), models)
def test_nothing_gets_cheaper_by_growing(arch, model):
    shape = model.shape
    small = model.predict(arch.operators)
    wider = cost_model(model.profile, replace(shape, context=2 * shape.context))
    larger = [
        (arch.model_copy(update={"blocks": (*arch.blocks, arch.blocks[-1])}), model),
        (arch.model_copy(update={"vocab": 2 * arch.vocab}), model),
        (arch, wider),
    ]
    for other, its_model in larger:
        result = its_model.predict(other.operators)
        assert result.decode_ms >= small.decode_ms * (1 - 1e-9)
        assert its_model.memory_mb(other.operators) >= model.memory_mb(arch.operators)
    longer = cost_model(model.profile, replace(shape, prompt=shape.prompt + 64)).predict(arch.operators)
    assert longer.prefill_ms > small.prefill_ms


@pytest.mark.parametrize("board", ON_CPU)
def test_decode_latency_does_not_jump_at_the_edges_of_the_cache(board):
    profile, shape = ON_CPU[board], InferenceShape("fp32", 16, 16)
    operators = Architecture(blocks=(Block(width=64, ffn_ratio=1, depth=1),), vocab=256, head_size=32).operators
    model = cost_model(profile, shape)
    read_mb, at, size = model.on.read_mb(operators), model.on.by_threads[1], profile.cpu.last_level_cache_mb
    for edge_mb in (at.resident_mb, at.streaming_mb):
        below, above = (
            cost_model(profile.model_copy(update={"cpu": profile.cpu.model_copy(update={
                "last_level_cache_mb": size.model_copy(update={"value": factor * size.value * read_mb / edge_mb})
            })}), shape).predict(operators) for factor in (1 + 1e-12, 1 - 1e-12)
        )  # fmt: skip
        assert below.decode_ms == pytest.approx(above.decode_ms, rel=1e-9)


def test_a_format_without_coefficients_has_memory_and_no_latency():
    model, operators = model_of("jetson-nano", "fp16", 512, 256), OPT_350M.operators
    assert set(FORMATS) <= set(formats_of(model.profile)) and "fp16" not in formats_of(model.profile)
    assert model.on.weights_mb(operators, opening=True) == pytest.approx(weight_bytes(operators, "fp16") / 2**20)
    with pytest.raises(MerinoError, match="latency of fp16 cannot be predicted.* fp32, int8, int4"):
        model.predict(operators)


NOISE = 0.05
SPACE = Space(widths=(64, 128, 256), depths=(2, 4, 8), ffn_ratios=(1.0, 2.0))
KEYS = {"space": SPACE, "context": 256, "prompt": 64, "vocabs": [2000], "kvs": [None]}
TIMED = ("decode_ms", "prefill_ms", "j_per_token")
KNOWN = with_errors(BOARD)

errors = st.builds(
    LatencyError, center=st.floats(-0.1, 0.1), scale=st.floats(0.001, 0.3), degrees_of_freedom=st.floats(3, 40)
)
confidences = st.floats(0.5, 0.999)


def random_decoders(random, count):
    for _ in range(count):
        widths = sorted(64 * random.integers(1, 13, 2))
        yield Architecture(
            blocks=tuple(
                Block(width=int(width), ffn_ratio=float(random.choice([1, 2, 3])), depth=int(random.integers(1, 7)),
                      shared=bool(random.random() < 0.3))
                for width in widths
            ),
            vocab=int(random.choice([4096, 16384])), head_size=32,
        )  # fmt: skip


def fresh(seed):
    """(interval, measured) of decoders that no probe had, on a board calibrated from a noisy probe."""
    random = np.random.default_rng(seed)
    board = calibrated_board(synthetic(NOISE, seed=seed))
    for decoder in random_decoders(random, 8):
        for form in FORMATS:
            shape = InferenceShape(form, 512, 256)
            result = cost_model(board, shape, 0.9).predict(decoder.operators)
            threads = result.decode_threads, result.prefill_threads
            true = next(
                predicted for predicted in cost_model(BOARD, shape).predict_each(decoder.operators)
                if (predicted.decode_threads, predicted.prefill_threads) == threads
            )  # fmt: skip
            for name in TIMED[:2]:
                yield result.interval(name), getattr(true, name) * math.exp(NOISE * random.normal())


@pytest.mark.nightly
def test_intervals_of_90_percent_cover_about_that_share_of_fresh_decoders():
    seen = [ratio for seed in range(10) for ratio in fresh(seed)]
    assert len(seen) == 10 * 8 * 3 * 2
    inside = np.mean([low <= measured <= high for (low, high), measured in seen])
    above = np.mean([measured > high for (_, high), measured in seen])
    assert 0.87 <= inside <= 0.97
    assert 0.01 <= above <= 0.08


def test_the_difference_between_probes_widens_the_interval():
    def slower(factor):
        probe = synthetic(0.02)
        rows = [row.model_copy(update={"ms": row.ms * factor}) for row in probe.measurements]
        return probe.model_copy(update={"measurements": rows})

    probes = [slower(1.0), slower(0.8), slower(1.25)]
    apart, together = calibrate(*probes).errors, calibrate(joined(probes)).errors
    assert set(apart) == set(together) == {f"{form} {phase}" for form in FORMATS for phase in ("decode", "prefill")}
    for name, error in apart.items():
        assert error.scale > 2 * together[name].scale, name


SMALL = Architecture(blocks=(Block(width=128, ffn_ratio=2, depth=2),), vocab=2000).operators


@given(errors, confidences, confidences)
def test_an_interval_grows_with_its_confidence(error, confidence, higher):
    narrow, wide = (factors(error, confidence) for confidence in sorted((confidence, higher)))
    assert 0 < wide.low <= narrow.low < narrow.high <= wide.high < math.inf
    assert narrow.low * narrow.high == pytest.approx(math.exp(2 * error.center))


@pytest.mark.parametrize("profile", [
    load_profile("jetson-orin-nano").with_backend("onnxruntime"),
    calibrated_board(synthetic(
        machine=MACHINE._replace(formats=("fp32", "int8"), fused=False), truth=estimated(load_profile("jetson-nano"))
    )),
], ids=["estimated", "portable"])  # fmt: skip
def test_where_errors_are_not_known_there_is_no_interval(profile):
    costs = cost_model(profile, InferenceShape("fp32", 256, 64))
    result = costs.predict(SMALL)
    assert [result.interval(name) for name in TIMED] == [None] * 3 and result.confidence is None
    assert all(result.upper(name) == getattr(result, name) for name in (*TIMED, "memory_mb"))
    assert costs.on.why_no_interval()


@pytest.mark.parametrize("confidence", [0.0, 0.499, 0.9995, 1.0, 90.0, -0.9, math.nan])
def test_a_confidence_out_of_range_is_refused(confidence):
    with pytest.raises(MerinoError, match=r"a confidence of .*% is not allowed: choose 50% to 99\.9%, such as 80%"):
        design(KNOWN, {"decode_ms": 5}, **KEYS, confidence=confidence)


@pytest.mark.slow
@given(errors, confidences, st.sampled_from(TIMED), st.floats(0.05, 0.9), st.sampled_from(FORMATS))
@examples(40, by_day=15)
def test_a_design_keeps_the_upper_end_of_its_interval(error, confidence, name, share, form):
    board = with_errors(BOARD, **error.model_dump())
    keys = {**KEYS, "precisions": [form], "confidence": confidence}
    free = design(board, {"params_m": 100}, **keys).predicted
    limit = share * free.upper(name)
    try:
        designed = design(board, {name: limit}, **keys)
    except MerinoError as refused:  # the value told works at this confidence, and none below it does
        message = float(re.search(r"is below (\S+), the smallest", str(refused))[1])
        assert design(board, {name: message}, **keys).predicted.upper(name) <= message
        with pytest.raises(MerinoError, match="the smallest that any decoder needs"):
            design(board, {name: message * 0.99}, **keys)
        return
    assert designed.solver.gap < 1e-8 and designed.budget == {name: limit}
    low, high = designed.predicted.interval(name)
    assert low < high <= limit * (1 + 1e-12)
    expected = factors(error, confidence)
    assert (low, high) == pytest.approx(tuple(factor * getattr(designed.predicted, name) for factor in expected))
    assert designed.predicted.confidence == confidence


def test_every_verdict_keeps_the_upper_end():
    verdicts = [
        verdict
        for candidate in recommend(KNOWN, {"decode_ms": 20}, context=256, prompt=64, space=SPACE).candidates
        for verdict in candidate.verdicts
    ]
    decode = BUDGETS_BY_NAME["decode_ms"]
    assert all(verdict.fits == (amount(decode, verdict.predicted) <= 20) for verdict in verdicts)
    narrowly = [
        verdict for verdict in verdicts
        if verdict.predicted.decode_ms <= 20 < verdict.predicted.decode_ms_interval[1]
    ]  # fmt: skip
    assert narrowly and not any(verdict.fits for verdict in narrowly)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """The path of a profile as `calibrate` writes it."""
    folder = tmp_path_factory.mktemp("calibrated")
    (folder / "probe.json").write_text(synthetic(NOISE).model_dump_json(by_alias=True))
    recalibrate("raspberry-pi-5", [folder / "probe.json"], folder / "mine.toml")
    return folder / "mine.toml"


def run(*words):
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    return result.exit_code, " ".join(result.output.split()), result.exception


def test_design_prints_and_writes_its_intervals(calibrated, tmp_path):
    words = ("design", "--board", calibrated, "--decode-ms", "4", "--vocab", "2000", "--context", "128")
    words += ("--precision", "int8")
    code, shown, _ = run(*words, "-o", tmp_path / "design.json")
    assert code == 0
    assert "the upper bound of each 80% prediction interval must meet its latency or energy budget" in shown
    result = json.loads((tmp_path / "design.json").read_text())["predicted"]
    (low, high), predicted = result["decode_ms_interval"], result["decode_ms"]
    assert low < predicted < high <= 4 and result["confidence"] == 0.8 and result["prefill_ms_interval"]
    assert f"{predicted:.1f} ms ({low:.2f} to {high:.2f}, 80%)" in shown


@pytest.mark.parametrize("command", ["recommend", pytest.param("design", marks=pytest.mark.nightly)])
@pytest.mark.usefixtures("small_space")
def test_each_command_prints_intervals_or_says_why_there_is_none(command, calibrated):
    words = ("--context", "64", *(("--vocab", "300") if command != "recommend" else ()))
    code, shown, _ = run(command, "--board", "raspberry-pi-4", *words)
    assert code == 0 and "no prefill interval: decode's is that of other engines' published speeds; " in shown
    assert "the coefficients are estimated; run `merino.pyz probe` on the board" in shown
    code, shown, _ = run(command, "--board", calibrated, *words)
    assert code == 0 and "each 80% prediction interval" in shown and re.search(r"\(\d[\d.,]* to \d", shown)


def test_calibrate_prints_the_intervals(calibrated, tmp_path):
    probe = calibrated.parent / "probe.json"
    code, shown, _ = run("calibrate", "--board", "raspberry-pi-5", "--probe", probe, "-o", tmp_path / "again.toml")
    within = factors(load_profile(calibrated).performance.onnxruntime.coefficients.int8.decode_error, 0.8)
    assert code == 0 and "80% prediction intervals" in shown
    assert f"int8 decode {within.low:.2f} to {within.high:.2f}" in shown
