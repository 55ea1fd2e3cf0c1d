"""Prediction intervals: they cover fresh decoders as often as they say, the search keeps their upper end, and where the
errors of predictions are not known there is none."""

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import numpy as np
import pytest
from few_examples import examples
from hypothesis import given
from hypothesis import strategies as st
from sample_probe import BOARD, MACHINE, calibrated_board, synthetic, with_errors
from typer.testing import CliRunner

from merino_edge.calibration import fit as fitting
from merino_edge.calibration.calibrate import calibrate, rounded
from merino_edge.calibration.command import recalibrate
from merino_edge.calibration.errors import distributions
from merino_edge.calibration.probe import joined
from merino_edge.cli.app import app
from merino_edge.design.budgets import BUDGETS_BY_NAME, amount
from merino_edge.design.designer import design
from merino_edge.design.pareto import front
from merino_edge.design.recommend import recommend
from merino_edge.design.space import Space
from merino_edge.families.designed import Architecture, Block
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.default_coefficients import estimated
from merino_edge.prediction.intervals import factors
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.coefficients import LatencyError
from merino_edge.profiles.reading import load_profile
from merino_edge.report.front import front_svg
from merino_runtime.errors import MerinoError

FORMATS = ("fp32", "int8", "int4")
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


def test_an_unseen_decoder_is_predicted_from_the_others_alone():
    """One decoder takes 1.5 times as long in a probe without noise: all rows together explain a part of that."""
    slow = (256, 1024, 4, 1, 8, 8)
    probe = synthetic()
    rows = [
        row.model_copy(update={"ms": 1.5 * row.ms}) if fitting.shape_of(row) == slow else row
        for row in probe.measurements
    ]
    fit = fitting.fit_threads(probe.model_copy(update={"measurements": rows}), 4)
    unseen = [error for row, error in fit.held_out if fitting.shape_of(row) == slow]
    seen = [-math.log1p(error) for row, error in fit.rows if row.kind == "decoder" and fitting.shape_of(row) == slow]
    assert len(unseen) == len(seen) == 5 * len(FORMATS)
    assert np.median(unseen) == pytest.approx(math.log(1.5), abs=0.03)
    assert np.mean(np.abs(seen)) < np.mean(np.abs(unseen))


def test_a_few_disturbed_rows_widen_an_interval_less_than_a_normal_distribution_would():
    probe = synthetic(0.03)
    disturbed = [index for index, row in enumerate(probe.measurements) if row.kind == "decoder"][::15]
    rows = [
        row.model_copy(update={"ms": 2 * row.ms}) if index in disturbed else row
        for index, row in enumerate(probe.measurements)
    ]
    slower = probe.model_copy(update={"measurements": rows})
    unseen = [error for count in slower.threads for _, error in fitting.fit_threads(slower, count).held_out]
    upper = factors(calibrate(slower).errors["fp32 decode"], 0.9).high
    assert factors(calibrate(probe).errors["fp32 decode"], 0.9).high < upper < math.exp(1.645 * np.std(unseen))


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


def test_a_calibrated_profile_keeps_the_errors():
    probe = synthetic(NOISE)
    own, fit = calibrated_board(probe).performance.onnxruntime.coefficients, calibrate(probe)
    for form in FORMATS:
        known = own.of_format(form)
        assert known.decode_error == fit.errors[f"{form} decode"] != fit.errors[f"{form} prefill"]
        assert known.prefill_error == fit.errors[f"{form} prefill"]
        assert rounded(known.decode_error.scale) == known.decode_error.scale


def test_a_format_with_too_few_decoders_has_no_interval():
    left = {(192, 576, 3, 1, 6), (256, 1024, 4, 1, 8)}
    probe = synthetic(left_out=lambda row: row.kind == "decoder" and row.format == "int8" and
                      fitting.shape_of(row) not in left)  # fmt: skip
    assert {name.split()[0] for name in calibrate(probe).errors} == {"fp32", "int4"}
    costs = cost_model(calibrated_board(probe), InferenceShape("int8", 256, 64))
    assert costs.predict(SMALL).decode_ms_interval is None
    assert "no errors of whole decoders in int8" in costs.on.why_no_interval()


@given(st.lists(st.lists(st.floats(-0.3, 0.3), min_size=1, max_size=2), min_size=14, max_size=20))
def test_formats_of_few_decoders_share_one_distribution(errors):
    by_format = {"fp32": errors[:3], "int8": errors[3:7], "int4": errors[7:]}
    numbered = {form: dict(enumerate(errors)) for form, errors in by_format.items()}
    found = distributions(numbered)
    assert found["fp32"] == found["int8"] == distributions({"fp32": dict(enumerate(errors[:7]))})["fp32"]
    assert found["int4"] == distributions({"int4": numbered["int4"]})["int4"]
    assert set(distributions(numbered | {"int8": dict(enumerate(errors[:2]))})) == {"fp32", "int4"}


SMALL = Architecture(blocks=(Block(width=128, ffn_ratio=2, depth=2),), vocab=2000).operators


@given(errors, confidences, confidences)
def test_an_interval_grows_with_its_confidence(error, confidence, higher):
    narrow, wide = (factors(error, confidence) for confidence in sorted((confidence, higher)))
    assert 0 < wide.low <= narrow.low < narrow.high <= wide.high < math.inf
    assert narrow.low * narrow.high == pytest.approx(math.exp(2 * error.center))


@pytest.mark.parametrize("profile", [load_profile("raspberry-pi-4"), calibrated_board(synthetic(
    machine=MACHINE._replace(formats=("fp32", "int8"), fused=False), truth=estimated(load_profile("jetson-nano"))
))], ids=["estimated", "portable"])  # fmt: skip
def test_where_errors_are_not_known_there_is_no_interval(profile):
    costs = cost_model(profile, InferenceShape("fp32", 256, 64))
    result = costs.predict(SMALL)
    assert [result.interval(name) for name in TIMED] == [None] * 3 and result.confidence is None
    assert all(result.upper(name) == getattr(result, name) for name in (*TIMED, "memory_mb"))
    assert costs.on.why_no_interval()


@pytest.mark.parametrize("confidence", [0.0, 0.499, 0.9995, 1.0, 90.0, -0.9, math.nan])
def test_a_confidence_out_of_range_is_refused(confidence):
    with pytest.raises(MerinoError, match=r"--confidence .*% is not allowed: choose 50% to 99\.9%, such as 80%"):
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


def test_more_confidence_never_gives_a_better_decoder():
    entropies = [
        design(KNOWN, {"decode_ms": 0.4}, **KEYS, confidence=share).entropy for share in (0.5, 0.8, 0.9, 0.99, 0.999)
    ]
    assert all(less <= more * (1 + 1e-12) for more, less in pairwise(entropies)) and entropies[0] > entropies[-1]


def test_every_point_of_a_front_and_every_verdict_keep_the_upper_end():
    result = front(KNOWN, {}, "decode_ms", 4, **KEYS, confidence=0.95)
    for point in result.points:
        assert point.predicted.decode_ms < point.predicted.decode_ms_interval[1] <= point.budget["decode_ms"]
        assert point.predicted.confidence == 0.95
    drawn = ElementTree.fromstring(front_svg(result)).itertext()
    assert "upper bounds of 95% prediction intervals" in " ".join(" ".join(drawn).split())
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
    words = ("design", "--device", calibrated, "--decode-ms", "4", "--vocab", "2000", "--context", "128")
    words += ("--precision", "int8")
    code, shown, _ = run(*words, "-o", tmp_path / "design.json")
    assert code == 0
    assert "the upper bound of each 80% prediction interval must meet its latency or energy budget" in shown
    result = json.loads((tmp_path / "design.json").read_text())["predicted"]
    (low, high), predicted = result["decode_ms_interval"], result["decode_ms"]
    assert low < predicted < high <= 4 and result["confidence"] == 0.8 and result["prefill_ms_interval"]
    assert f"{predicted:.1f} ms ({low:.2f} to {high:.2f}, 80%)" in shown
    code, shown, _ = run(*words, "--confidence", "99%")
    assert code == 0 and re.search(r"to (3\.9\d|4\.00), 99%\)", shown)


@pytest.mark.parametrize("command", ["recommend", pytest.param("design", marks=pytest.mark.nightly)])
@pytest.mark.usefixtures("small_space")
def test_each_command_takes_a_confidence_and_says_why_there_is_no_interval(command, calibrated):
    words = ("--context", "64", *(("--vocab", "300") if command != "recommend" else ()))
    code, shown, _ = run(command, "--device", "raspberry-pi-4", *words)
    assert code == 0 and "no interval: the coefficients are estimated; run `merino.pyz probe` on the board" in shown
    code, shown, _ = run(command, "--device", calibrated, *words, "--confidence", "95%")
    assert code == 0 and "each 95% prediction interval" in shown and re.search(r"\(\d[\d.,]* to \d", shown)
    code, _, error = run(command, "--device", "host", "--confidence", "20%")  # before this machine is measured
    assert code == 1 and "--confidence 20% is not allowed: choose 50% to 99.9%" in str(error)
    code, shown, _ = run(command, "--device", "host", "--confidence", "0.9")
    assert code == 2 and "'0.9' is not allowed: choose 50% to 99.9%, such as 80%" in shown.replace("│ ", "")


def test_calibrate_prints_the_intervals(calibrated, tmp_path):
    probe = calibrated.parent / "probe.json"
    code, shown, _ = run("calibrate", "--device", "raspberry-pi-5", "--probe", probe, "-o", tmp_path / "again.toml")
    within = factors(load_profile(calibrated).performance.onnxruntime.coefficients.int8.decode_error, 0.8)
    assert code == 0 and "80% prediction intervals" in shown
    assert f"int8 decode {within.low:.2f} to {within.high:.2f}" in shown
