"""Verdicts on existing models against direct predictions, and what `recommend` prints."""

import json
import re
import shlex

import pytest
from typer.testing import CliRunner

from merino_edge.cli.app import app
from merino_edge.cli.recommended import first_command, reasons, recommendation_json
from merino_edge.design.budgets import NOISE, shares_over, surely_over, with_board_defaults
from merino_edge.design.recommend import recommend
from merino_edge.design.space import Space
from merino_edge.families.operators import CPU_FORMATS
from merino_edge.families.zoo import load_models, model
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.formats import refused_words
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.reading import load_profile, profile_text
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError

PI5, ZERO, NANO, ORIN = (
    load_profile(name).with_backend("onnxruntime")
    for name in ("raspberry-pi-5", "raspberry-pi-zero-2w", "jetson-nano", "jetson-orin-nano")
)
SMALL = Space(widths=tuple(range(64, 321, 64)), depths=tuple(range(3, 10)), ffn_ratios=(1.0, 2.0))


def recommended(profile=PI5, context=1024, **budgets):
    return recommend(profile, with_board_defaults(budgets, profile), context=context, prompt=128, space=SMALL)


def predicted(existing, profile, precision, context, kv=None):
    return cost_model(profile, InferenceShape(precision, context, 128, kv)).predict(existing.geometry.operators)


@pytest.mark.slow
def test_every_verdict_is_a_direct_prediction_held_against_the_budgets():
    given = {"decode_ms": 25, "prefill_ms": 400, "params_m": 150, "file_mb": 300, "j_per_token": 0.2}
    budgets = with_board_defaults(given, PI5)
    recommendation = recommend(PI5, budgets, context=1024, prompt=128, space=SMALL)
    assert {candidate.model.id for candidate in recommendation.candidates} == {each.id for each in load_models()}
    assert recommendation.budget == budgets and "memory_mb" in recommendation.budget
    kinds = set()
    for candidate in recommendation.candidates:
        assert [verdict.precision for verdict in candidate.verdicts] == list(CPU_FORMATS)
        for verdict in candidate.verdicts:
            cost = predicted(candidate.model, PI5, verdict.precision, 1024, verdict.kv)
            assert verdict.predicted == cost
            used = {
                "decode_ms": cost.decode_ms_interval[1], "prefill_ms": cost.prefill_ms, "memory_mb": cost.memory_mb,
                "params_m": cost.params / 1e6, "file_mb": cost.file_mb, "j_per_token": cost.j_per_token_interval[1],
            }  # fmt: skip
            least = used | {name: used[name] / (1 + NOISE) for name in ("prefill_ms", "memory_mb")}
            least |= {name: cost.interval(name)[0] for name in ("decode_ms", "j_per_token")}
            assert verdict.over == {name: used[name] / limit for name, limit in recommendation.budget.items()
                                    if used[name] > limit}
            assert verdict.fits == (not verdict.over)
            surely = any(least[name] > limit for name, limit in recommendation.budget.items())
            assert verdict.borderline == (bool(verdict.over) and not surely)
            kinds |= {verdict.fits, *verdict.over}
    assert kinds == {True, False, *budgets}
    borderline = [candidate.borderline for candidate in recommendation.candidates if not candidate.fits]
    assert borderline == sorted(borderline, reverse=True)


def test_a_budget_is_refused_when_the_interval_says_so_and_borderline_inside_it():
    estimate = predicted(model("smollm2-135m"), ORIN, "int4", 512)  # nobody published decode on its CPU
    known = estimate.model_copy(update={"decode_ms_interval": (0.5 * estimate.decode_ms, 2 * estimate.decode_ms)})
    for share, of_estimate, of_known in [(2.1, "fits", "fits"), (1.01, "fits", "may"), (0.99, "may", "may"),
                                         (0.85, "no", "may"), (0.49, "no", "no")]:  # fmt: skip
        for cost, expected in ((estimate, of_estimate), (known, of_known)):
            limits = {"decode_ms": share * estimate.decode_ms}
            assert bool(shares_over(limits, cost)) == (expected != "fits"), (share, expected)
            assert surely_over(limits, cost) == (expected == "no"), (share, expected)
    assert surely_over({"params_m": 0.999 * estimate.params / 1e6}, estimate)


def test_a_borderline_model_says_so_and_is_not_exported():
    smallest = next(one for one in recommended(ZERO, 512).candidates if one.model.id == "tinystories-1m")
    fastest = min(verdict.predicted.decode_ms for verdict in smallest.verdicts)
    recommendation = recommended(ZERO, 512, decode_ms=0.99 * fastest)
    near = [candidate for candidate in recommendation.candidates if candidate.borderline]
    assert near and recommendation.candidates[0] == near[0] and not near[0].fits
    assert reasons(near[0], near[0].chosen, recommendation).startswith("borderline: decode ")
    assert first_command(recommendation, ZERO, ZERO.id) is None
    assert recommendation_json(recommendation, ZERO, ZERO.id)["models"][0]["borderline"]


def test_what_fits_comes_first_by_score_and_in_the_format_of_most_bits():
    recommendation = recommended(decode_ms=25)
    fits = [candidate.fits for candidate in recommendation.candidates]
    assert fits == sorted(fits, reverse=True) and len(set(fits)) == 2
    scores = [score for each in recommendation.candidates if each.fits and (score := each.model.ranking_score())]
    assert scores == sorted(scores, reverse=True) and len(scores) > 3
    for candidate in recommendation.candidates:
        fitting = [verdict for verdict in candidate.verdicts if verdict.fits]
        if fitting:
            assert candidate.chosen == fitting[0]
        else:
            near = [verdict for verdict in candidate.verdicts if not verdict.surely] or candidate.verdicts
            least = min(max(verdict.over.values()) for verdict in near)
            assert max(candidate.chosen.over.values()) == least > 1
            assert f"({least:.1f}x)" in reasons(candidate, candidate.chosen, recommendation) or least < 1.1


def test_a_format_that_the_runtime_refuses_on_a_board_does_not_fit_it():
    assert {refused_words(board, precision) for board in (ZERO, PI5) for precision in CPU_FORMATS} == {""}
    old = NANO.model_copy(update={"arch": "x86_64", "isa": ("avx2",)})
    assert refused_words(NANO, "int4") == ""
    assert refused_words(old, "int4") == "not there: the CPU has no f16c, fma"
    recommendation = recommended(old, 256)
    for candidate in recommendation.candidates:
        assert not any(verdict.fits for verdict in candidate.verdicts if verdict.precision == "int4")
    fp32, int8, int4 = recommendation.designs
    assert fp32.design and int8.design and not int4.design and "has no f16c, fma" in int4.reason


def test_a_model_whose_context_is_too_short_does_not_fit_however_small():
    recommendation = recommended(context=4096, decode_ms=1000)
    short = next(each for each in recommendation.candidates if each.model.id == "tinystories-1m")
    assert not short.fits and all(verdict.fits for verdict in short.verdicts)
    assert "context 2048 of 4096" in reasons(short, short.chosen, recommendation)
    assert any(each.fits for each in recommendation.candidates if each.model.geometry.context >= 4096)


@pytest.mark.parametrize(("board", "graph"), [
    (ZERO, ""), (load_profile("jetson-orin-nano"), " --dialect portable"),
    pytest.param(NANO, " --board jetson-nano", marks=pytest.mark.nightly),
])  # fmt: skip
def test_it_ends_with_the_command_that_exports_the_first_for_the_board(board, graph, tmp_path, monkeypatch):
    """Random weights take the place of those that it fetches from the hub. The file has no room for float32."""
    budget = {} if board.backend == "tensorrt" else {"file_mb": 20}
    recommendation = recommended(board, context=128, params_m=10, decode_ms=1e5, **budget)
    first, command = recommendation.candidates[0], first_command(recommendation, board, board.id)
    assert first.fits and recommendation_json(recommendation, board, board.id)["command"] == command
    assert f"export {first.model.id} --precision {first.chosen.precision}{graph} " in command
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*command.split()[1:], "--set=weights=random"])
    assert done.exit_code == 0, done.output
    made = load_bundle(command.split()[-1])
    assert (made.precision, made.context) == (first.chosen.precision, 128)
    assert board.backend in [need.name for need in made.backends]


def test_a_board_of_a_file_is_exported_for_by_the_file(tmp_path):
    path = tmp_path / "my pi.toml"
    path.write_text(re.sub('onnxruntime = "[^"]*"', 'onnxruntime = "1.16"', profile_text("raspberry-pi-4")))
    budgets = with_board_defaults({}, load_profile(path))
    recommendation = recommend(load_profile(path), budgets, context=256, prompt=128, space=SMALL)
    command = first_command(recommendation, load_profile(path), str(path))
    assert shlex.split(command)[5:7] == ["--board", str(path)]
    assert first_command(recommended(decode_ms=0.01), PI5, PI5.id) is None




def run(*words):
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "250"})
    return result.exit_code, result.stdout, result.exception


@pytest.mark.usefixtures("small_space")
def test_recommend_prints_json_with_sources_and_verdicts():
    code, out, _ = run("recommend", "--board", "raspberry-pi-5", "--decode-ms", "20", "--context", "512", "--json")
    printed = json.loads(out)
    assert code == 0 and (printed["schema"], printed["backend"]) == (7, "onnxruntime")
    assert printed["budget"] == {"decode_ms": 20, "memory_mb": 1024}
    assert (printed["context"], printed["prompt"]) == (512, 256)
    smol = next(each for each in printed["models"] if each["id"] == "smollm2-135m")
    assert smol["scores"]["percent"]["piqa"] == 68.4 and "lighteval" in smol["scores"]["source"]
    assert [form["precision"] for form in smol["formats"]] == list(CPU_FORMATS)
    broken = [form for form in smol["formats"] if not form["fits"]]
    assert broken and all(form["over"] for form in broken)
    assert all(form["predicted"]["provenance"] for form in smol["formats"])
    assert [our["design"]["schema"] for our in printed["designs"]] == [6, 6, 6]


@pytest.mark.usefixtures("small_space")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("recommend", "--board", "raspberry-pi-4", "--decode-ms", "-1"), "positive"),
        (("recommend", "--board", "raspberry-pi-4", "--memory-mb", "1e9"), "free"),
        (("recommend", "--board", "raspberry-pi-4", "--context", "1"), "--context 1 "),
        (("recommend", "--board", "jetson-nano:onnxruntime", "--budget", "j-per-token=1"), "power.stress_w"),
        (("design", "--board", "raspberry-pi-4:tensorrt"), "no performance.tensorrt"),
        (("recommend", "--board", "jetson-nano:cuda"), "choose onnxruntime or tensorrt"),
        (("design", "--board", "jetson-nano", "--precision", "int8"), "one of fp16, fp32, or --board jetson-nano:onnx"),
        (("design", "--board", "jetson-nano:onnxruntime", "--precision", "fp16"), "int4, or --board jetson-nano:t"),
        (("design", "--board", "raspberry-pi-4", "--budget", "file-mb=0.001"), "--budget file-mb=0.001 is below"),
        (("recommend", "smollm2-135m", "--board", "raspberry-pi-4", "--decode-ms", "9"), "not for SOURCE"),
        (("design", "--board", "raspberry-pi-9"), "No device profile"),
        (("design", "--board", "raspberry-pi-4", "--kv", "int2"), "--kv int2 is not known: choose one of fp32, int8"),
        (("design", "--board", "jetson-nano:onnxruntime", "--kv", "int8"), "1.27 or later, and a "),
        (("design", "--board", "raspberry-pi-4", "--precision", "fp7"), "fp7"),
        (("design", "--board", "raspberry-pi-4", "--vocab", "300", "-o", "/proc/no/p.json"), "write"),
    ],
)
def test_a_users_mistake_is_one_clear_error(words, message):
    code, out, error = run(*words)
    assert code == 1 and out == "" and isinstance(error, MerinoError)
    assert message in str(error)
