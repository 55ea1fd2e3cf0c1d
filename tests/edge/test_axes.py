"""The measured score: its law, each axis's term against the records of its constants, and `recommend SOURCE`. The
paper's search against the enumeration of small spaces, and its entropy against sampled matrices."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from few_examples import ALL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_models import of_two_cores
from scipy.optimize import OptimizeResult
from typer.testing import CliRunner

from merino_edge.cli.app import app
from merino_edge.cli.design import text_size
from merino_edge.cli.design_tables import PROVED, solver_line
from merino_edge.design.axes import training_text, vocabulary
from merino_edge.design.budgets import BUDGETS_BY_NAME, amount
from merino_edge.design.costs import AtThreads, Costs
from merino_edge.design.designer import TrainingText, design, design_by_paper
from merino_edge.design.law import effective_weights, ln_loss
from merino_edge.design.paper import search
from merino_edge.design.paper.score import linear_entropy
from merino_edge.design.paper.search import solve, variables_of
from merino_edge.design.paper.space import PaperSpace
from merino_edge.design.score import MEASURED, MERINO, SCORES, MeasuredScoring, existing_score, score_named
from merino_edge.families.designed import Architecture, Block
from merino_edge.families.hugging_face import build_model, save_model
from merino_edge.families.zoo import model
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.limits import most_within
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.reading import load_profile
from merino_edge.training.sources import read_sources
from merino_runtime.errors import MerinoError

ROOT = Path(__file__).resolve().parents[2]
VALUES = MEASURED.constants


def score(weights, layers, terms=0.0, constants=VALUES):
    return effective_weights(ln_loss(weights, layers, terms, constants), constants)


def decoder(**keys):
    block = {"width": 512, "ffn_ratio": 4, "depth": 6, **keys}
    return Architecture(blocks=(Block(**block),), vocab=4096, context=64)


def test_sharing_kv_heads_and_gates_count_as_the_constants_say():
    flat = MEASURED.having(kappa=0, vocab_curve=0)
    alone, plain = (existing_score(decoder(depth=depth), flat) for depth in (1, 6))
    assert plain == pytest.approx(6 * alone)
    assert existing_score(decoder(shared=True), flat) == pytest.approx(alone * 6 ** VALUES["sharing"])
    one_head = existing_score(decoder(depth=1, kv_heads=1), flat.having(kv_heads=0.002))
    assert one_head == pytest.approx(2 * 512 * (512 + 64 + 2048) * math.exp(-3 * 0.002 / VALUES["alpha"]))
    gated = existing_score(decoder(depth=1, gated=True), flat)
    assert gated == pytest.approx(512 * (4 * 512 + 3 * 2048) * math.exp(0.026 / VALUES["alpha"]))


def test_bytes_per_token_are_the_measured_ones():
    record = json.loads((ROOT / "bench/results/vocabulary.json").read_text())["records"]["fertility"]
    measured = {row["vocab"]: row["bytes_per_token"] for row in record["trained"]}
    assert {257: 1.0, **measured} == vocabulary.BYTES_PER_TOKEN
    for vocab, value in measured.items():
        assert vocabulary.bytes_per_token(vocab) == pytest.approx(value, rel=1e-12)


@given(st.integers(2, 1_000_000), st.integers(1, 1000))
def test_a_token_of_a_larger_vocabulary_is_no_less_text(vocab, more):
    assert 1 <= vocabulary.bytes_per_token(vocab) <= vocabulary.bytes_per_token(vocab + more) <= 4.1648


@pytest.mark.parametrize(("weights", "best"), [(1e6, 170e3), (10e6, 1.16e6), (100e6, 7.95e6)])
def test_the_best_embedding_is_the_published_one(weights, best):
    width = 512
    around = [vocabulary.term(share * best / width, width, weights, VALUES) for share in (0.25, 0.5, 1, 2, 4)]
    assert around[2] == pytest.approx(0, abs=1e-5) and min(around) == around[2]
    assert around[1] == pytest.approx(around[3], rel=0.1) and around[0] == pytest.approx(4 * around[1], rel=0.1)


def test_the_curve_of_the_vocabulary_is_the_fitted_one():
    record = json.loads((ROOT / "bench/results/vocabulary.json").read_text())["records"]["vocabulary"]["summary"]
    curve = record["curve"], *record["curve_interval"]
    assert vocabulary.CONSTANTS["vocab_curve"][:3] == pytest.approx(curve, abs=1e-4)
    assert vocabulary.CONSTANTS["vocab_best"][1:3] == pytest.approx(record["best_interval"], rel=5e-3)
    assert vocabulary.CONSTANTS["vocab_exponent"][1:3] == pytest.approx(record["exponent_interval"], abs=5e-3)


def test_the_tokens_of_a_text_are_counted_by_its_bytes(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"x" * 37294)
    size, _ = text_size(read_sources([str(path)]), 257)
    assert training_text.count(size, 8192) == 10000 and training_text.count(2 * size, 8192) == 20000


@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf])
def test_a_number_of_tokens_that_no_text_has_is_refused(wrong):
    with pytest.raises(MerinoError, match="--budget tokens=.* is not allowed"):
        design(load_profile("raspberry-pi-4"), {"decode_ms": 50}, context=64, prompt=32, text=TrainingText(wrong))


@pytest.mark.parametrize("wrong", [0, -5, 2, 256, 1_000_001])
def test_a_vocabulary_that_no_tokenizer_has_is_refused(wrong):
    with pytest.raises(MerinoError, match=f"--vocab {wrong} is not allowed: choose 257 to 1000000"):
        design(load_profile("raspberry-pi-4"), {"decode_ms": 50}, context=64, prompt=32, vocabs=[wrong])


@pytest.mark.parametrize(("change", "message"), [
    ({"alpha": 0.0}, "alpha 0.0 must be above 0"), ({"color": 1.0}, "color is missing or unknown"),
])  # fmt: skip
def test_constants_that_make_no_score_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        MeasuredScoring(constants={**VALUES, **change})


BLOCKS = [{"width": 64, "ffn_ratio": 1.0, "depth": 2, "shared": True}, {"width": 128, "ffn_ratio": 2.0, "depth": 1}]
ARCH = Architecture(blocks=BLOCKS, vocab=300, head_size=32, context=64)


def scored(*arguments):
    result = CliRunner().invoke(app, ["recommend", "--json", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return json.loads(result.output)


def test_a_source_scores_the_same_in_each_form_and_no_weights_are_read(tmp_path):
    plan, folder = tmp_path / "arch.json", tmp_path / "checkpoint"
    plan.write_text(ARCH.model_dump_json())
    torch.manual_seed(0)
    save_model(build_model(ARCH), folder)
    (folder / "model.safetensors").write_bytes(b"damaged")
    result = scored(plan, folder, "--board", "raspberry-pi-4")
    one, other = result["sources"]
    assert one["scores"] == other["scores"] and list(one["scores"]) == list(SCORES)
    assert one["weights"] == other["weights"] == 2 * 2 * 64 * 192 + 2 * 128 * (128 + 128 + 256)
    assert set(one["predicted"]) == {"fp32", "int8", "int4"} and one["predicted"] == other["predicted"]
    assert one["scores"]["merino"]["value"] == existing_score(ARCH, MERINO)


def test_a_gated_ffn_has_weights_and_no_entropy():
    [row] = scored("smollm2-135m", "embedded")["sources"][:1]
    assert row["scores"]["merino"]["value"] is None and "two matrices" in row["scores"]["merino"]["reason"]
    geometry = model("smollm2-135m").geometry
    assert row["weights"] == 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    assert row["scores"]["measured"]["value"] == existing_score(geometry, MEASURED)


@pytest.mark.parametrize(("arguments", "message"), [
    (("nothing-here",), "'nothing-here' names no model"),
    (("someone/something",), "not in the hub's cache here, so its config.json with the geometry is missing"),
    (("opt-125m", "--board", "raspberry-pi-4", "--context", "4096"), "takes 2 to 2048 tokens"),
])  # fmt: skip
def test_what_cannot_be_scored_says_why(arguments, message):
    with pytest.raises(MerinoError) as refused:
        scored(*arguments)
    assert message in str(refused.value)


NAMES = tuple(BUDGETS_BY_NAME)
PROFILE = settings.default.max_examples
SPACES = 2000 if PROFILE >= ALL else 2 * PROFILE
ZERO = load_profile("raspberry-pi-zero-2w")
BOARDS = {
    "zero": ZERO, "two cores": of_two_cores(ZERO), "pi 5": load_profile("raspberry-pi-5"),
    "gpu": load_profile("jetson-nano"),
}  # fmt: skip


class Enumerated:
    """Every decoder of a small space, and its costs at each pair of thread counts, in arrays."""

    def __init__(self, space, model):
        variables, options = variables_of(space, model, MERINO), space.options()
        choices = itertools.product(range(len(options)), repeat=space.blocks)
        widths = [block.width for block in options]
        self.choices = np.array([
            choice for choice in choices
            if all(widths[a] <= widths[b] for a, b in itertools.pairwise(choice))
            and widths[choice[-1]] <= space.growth * widths[choice[0]]
        ])  # fmt: skip
        self.space, self.model, self.options = space, model, options
        row = {
            (int(o), *map(int, b), *(map(int, w) if o < 0 else ())): index
            for index, (o, b, w) in enumerate(zip(variables.option, variables.blocks, variables.widths, strict=True))
        }
        chosen = np.array([
            [row[option, place, place] for place, option in enumerate(choice)]
            + [
                row[-1 - place, place, place + 1, widths[a], widths[b]]
                for place, (a, b) in enumerate(itertools.pairwise(choice))
            ]
            + [row[-space.blocks, 0, space.blocks - 1, widths[choice[0]], widths[choice[-1]]]]
            for choice in self.choices.tolist()
        ])  # fmt: skip
        sums, peak = variables.amounts[chosen].sum(axis=1), variables.peak[chosen].max(axis=1)
        self.score = variables.score[chosen].sum(axis=1)
        costs, counts = Costs(model, lambda number: sums[:, number], peak), range(len(model.thread_counts))
        self.at = [AtThreads(costs, decode, prefill) for decode in counts for prefill in counts]

    def fits(self, limits):
        kept = [
            np.logical_and.reduce([BUDGETS_BY_NAME[name].of(at) <= most_within(limits[name]) for name in limits])
            for at in self.at
        ]
        return np.logical_or.reduce(kept)

    def built(self, index):
        blocks = tuple(self.options[option] for option in self.choices[index])
        return self.space.architecture(blocks, self.model.shape.context)


@st.composite
def problems(draw):
    """A small space, and limits near what one of its decoders takes."""

    def some(values, least, most):
        return tuple(sorted(draw(st.lists(st.sampled_from(values), min_size=least, max_size=most, unique=True))))

    blocks = draw(st.sampled_from([1, 2, 2, 3, 3]))
    space = PaperSpace(
        widths=some([64, 128, 192, 256, 320, 448, 640], 1, 3 if blocks < 3 else 2),
        ffn_ratios=some([1.0, 1.5, 2.0, 3.0, 4.0], 1, 2),
        depths=some([1, 2, 3, 6], 1, 2),
        growth=draw(st.sampled_from([1.5, 2.0, 8.0])),
        blocks=blocks,
        vocab=draw(st.sampled_from([257, 8000])),
        head_size=draw(st.sampled_from([32, 64])),
    )
    board = BOARDS[draw(st.sampled_from(sorted(BOARDS)))]
    form = draw(st.sampled_from(["fp32", "int8", "int4"] if board.backend == "onnxruntime" else ["fp16", "fp32"]))
    every = Enumerated(space, cost_model(board, InferenceShape(form, 128, draw(st.sampled_from([16, 64])))))
    names = some([name for name in NAMES if not BUDGETS_BY_NAME[name].needs or board.id != "jetson-nano"], 1, 4)
    at = draw(st.sampled_from(every.at))
    near = draw(st.integers(0, len(every.choices) - 1))
    limits = {
        name: float(BUDGETS_BY_NAME[name].of(at)[near]) * draw(st.sampled_from([0.97, 1.0, 1.0, 1.003, 1.05]))
        for name in names
    }  # fmt: skip
    return every, limits


def check(every, limits):
    fits = every.fits(limits)
    if not fits.any():
        with pytest.raises(MerinoError, match="no decoder of this space fits"):
            solve(every.space, every.model, limits, MERINO)
        return
    best = float(every.score[fits].max())
    found = solve(every.space, every.model, limits, MERINO)
    assert found.score <= found.bound
    assert found.bound >= best * (1 - 1e-12), "a false proof"
    assert found.score >= best * (1 - 1e-5), "not the best"
    assert found.bound <= found.score * (1 + PROVED) or found.score == 0, "not proved"
    predicted = every.model.predict_each(found.architecture.operators)
    assert any(all(amount(BUDGETS_BY_NAME[n], one) <= most_within(limits[n]) for n in limits) for one in predicted)


@pytest.mark.slow
@given(problems())
@settings(max_examples=SPACES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_proof_is_false_near_a_decoders_own_costs(problem):
    check(*problem)


def failing_milp(monkeypatch, status):
    """HiGHS ends integer programs with `status` and no solution."""
    solved, failed = search.milp, []

    def milp(*args, integrality=None, **keys):
        if integrality is None:
            return solved(*args, integrality=integrality, **keys)
        failed.append(status)
        return OptimizeResult(status=status, x=None)

    monkeypatch.setattr(search, "milp", milp)
    return failed


SMALL = PaperSpace(widths=(64, 128, 192), depths=(1, 2, 3), ffn_ratios=(1.0, 2.0), blocks=3, vocab=500)


@pytest.mark.parametrize("status", [1, 3, 4])
def test_a_failure_of_the_integer_solver_is_no_proof(status, monkeypatch):
    request = {"space": SMALL, "context": 128, "prompt": 64, "precision": "fp32"}
    proved = design_by_paper(ZERO, {"decode_ms": 4}, **request)
    assert "proved: no decoder of the paper's space has 0.01 % more entropy" in solver_line(proved)
    failed = failing_milp(monkeypatch, status)
    designed = design_by_paper(ZERO, {"decode_ms": 4}, **request)
    assert failed and designed.entropy < proved.entropy <= designed.solver.bound
    assert designed.solver.gap == pytest.approx(designed.solver.bound / designed.entropy - 1)
    assert "not proved, at most" in solver_line(designed)


def test_a_space_in_which_nothing_is_worth_anything_has_a_best_decoder():
    """Blocks of 64 channels and four layers score 0."""
    space = PaperSpace(widths=(64,), depths=(4, 5), ffn_ratios=(1.0,), blocks=2, vocab=257)
    found = solve(space, cost_model(ZERO, InferenceShape("fp32", 128, 64)), {"memory_mb": 250}, MERINO)
    assert (found.score, found.bound) == (0, 0)
    wider = PaperSpace(widths=(64, 128), depths=(4,), ffn_ratios=(1.0,), blocks=2, vocab=257)
    assert solve(wider, cost_model(ZERO, InferenceShape("fp32", 128, 64)), {"memory_mb": 250}, MERINO).score > 0


@pytest.mark.slow
@pytest.mark.parametrize(("flops_g", "score"), [
    (60, 88_169), pytest.param(110, 147_977, marks=pytest.mark.nightly),
    pytest.param(160, 202_467, marks=pytest.mark.nightly),
])  # fmt: skip
def test_the_paper_s_budgets_have_the_optimum_that_another_program_proved(flops_g, score):
    """By branch and bound over sequences of widths, with sampled entropies in place of the formula."""
    model = cost_model(load_profile("raspberry-pi-4"), InferenceShape("fp32", 1024, 512))
    found = solve(PaperSpace(), model, {"flops_g": flops_g}, MERINO)
    assert found.bound <= found.score * (1 + PROVED)
    assert found.score == pytest.approx(score, rel=5e-4)


def sampled_entropy(inputs, outputs, eps=1.0):
    """The mean over drawn matrices of log det(I + W W^T / eps^2), the same sum without an SVD. A log determinant varies
    by about 1 whatever the size, so a small matrix is drawn more often."""
    small, large = sorted((inputs, outputs))
    rng = np.random.default_rng([small, large])
    draws = [rng.standard_normal((small, large)) for _ in range(8 * max(1, 512 // small) ** 2)]
    return np.mean([np.linalg.slogdet(np.eye(small) + draw @ draw.T / eps**2)[1] for draw in draws])


@pytest.mark.parametrize("sides", [(64, 64), (96, 240), (128, 320), (256, 256), (512, 1024), (64, 512)])
def test_the_formula_agrees_with_sampled_matrices(sides):
    """Within 0.1 %: it is exact for infinite matrices."""
    assert linear_entropy(*sides) == pytest.approx(sampled_entropy(*sides), rel=1e-3)


def test_a_score_that_has_no_name_is_refused():
    assert list(SCORES) == ["measured", "merino"]
    assert score_named("merino") is MERINO
    with pytest.raises(MerinoError, match="choose one of measured, merino"):
        score_named("merino-off")
