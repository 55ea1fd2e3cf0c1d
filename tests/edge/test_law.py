"""The measured law: its constants against their source's properties, and its exact solver against enumeration."""

import itertools
import math

import numpy as np
import pytest
from few_examples import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from merino_edge.design import exact
from merino_edge.design.budgets import with_board_defaults
from merino_edge.design.constraints import regimes
from merino_edge.design.designer import design
from merino_edge.design.encode import encode, least, tabulate
from merino_edge.design.evolution import Effort, evolve
from merino_edge.design.law import CONSTANTS, EVEN, LAYER_WEIGHTS, MeasuredScoring, even, law_score, least_weights
from merino_edge.design.program import smallest_choice, uniform
from merino_edge.design.score import MEASURED, total_score
from merino_edge.design.space import FULL, GROUPED, Space, spaced
from merino_edge.families.designed import Block
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.reading import load_profile, profile_ids

BOARD = load_profile("raspberry-pi-zero-2w")
MODEL = cost_model(BOARD, InferenceShape("int8", 128, 64))
REGIME = MODEL.default_regime()


@given(st.floats(1e3, 1e10), st.integers(1, 48), st.floats(0, 0.006))
def test_weights_are_found_again_from_their_score(weights, layers, kappa):
    scoring = MeasuredScoring(kappa=kappa)
    score = law_score(weights, layers, scoring)
    assert least_weights(score, layers, scoring) == pytest.approx(weights, rel=1e-6)


def test_a_score_that_no_number_of_weights_has():
    assert least_weights(1e300, 40, MeasuredScoring(kappa=0.006)) == math.inf


def test_the_best_aspect_ratio_is_the_constants():
    """Uniform decoders of 100 M weights: the best width over depth is e^a*, but for whole layers."""
    def width_over_depth(layers):
        return math.sqrt(1e8 / 12 / layers) / layers

    best = max(range(2, 49), key=lambda layers: law_score(1e8, layers, MEASURED))
    assert abs(math.log(width_over_depth(best)) - CONSTANTS["aspect"].value) < 1.5 * math.log((best + 1) / best)


def test_sharing_and_few_kv_heads_cost_what_the_constants_say():
    block = Block(width=512, ffn_ratio=4, depth=6)
    alone = total_score([block.model_copy(update={"depth": 1})], 64, MeasuredScoring(kappa=0))
    shared = total_score([block.model_copy(update={"shared": True})], 64, MeasuredScoring(kappa=0))
    assert shared == pytest.approx(alone * 6 ** CONSTANTS["sharing"].value)
    weights = 2 * 512 * (512 + 64 + 2048)  # one KV head of eight
    one_head = [block.model_copy(update={"depth": 1, "kv_heads": 1})]
    assert total_score(one_head, 64, MeasuredScoring(kappa=0, kv_loss=0.002)) == (
        pytest.approx(weights * math.exp(-3 * 0.002 / CONSTANTS["alpha"].value))
    )


def law_scores(weights, layers, scoring):
    """`law_score` of arrays."""
    aspect = 0.5 * np.log(weights / (LAYER_WEIGHTS * layers)) - np.log(layers)
    return weights * np.exp(-scoring.kappa / scoring.alpha * (aspect - scoring.aspect) ** 2)


def best_of_all(program):
    """The best score of all decoders within the budgets. The smallest counts though its layers be uneven."""
    choice = np.indices([len(program.options)] * program.blocks).reshape(program.blocks, -1)
    widths, unit = program.width[choice], program.unit[choice]
    amount, layers = program.score[choice].sum(axis=0), program.layers[choice].sum(axis=0)
    share = program.use[:, choice].sum(axis=1) + program.peak[:, choice].max(axis=1)
    share = share + program.ends[:, widths[0], widths[-1]]
    mean = amount / layers * (1 + 1e-12)
    fits = (share <= 1 + 1e-12).all(axis=0) & program.allowed[widths[0], widths].all(axis=0)
    near = (EVEN * unit.max(axis=0) <= mean) & (EVEN * mean <= unit.min(axis=0) * (1 + 1e-12))
    smallest = (choice == np.array(smallest_choice(program))[:, None]).all(axis=0)
    return law_scores(amount, layers, program.law)[fits & (near | smallest)].max()


@st.composite
def problems(draw):
    def some(values, least, most):
        return tuple(sorted(draw(st.lists(st.sampled_from(values), min_size=least, max_size=most, unique=True))))

    space = Space(
        widths=some([64, 128, 192, 256, 320], 2, 3),
        ffn_ratios=some([0.5, 1.0, 2.0, 4.0], 1, 2),
        depths=draw(st.sampled_from([(1, 2), (1, 2, 3), (2,), (1, 3)])),
        growth=draw(st.sampled_from([1.5, 2.0, 8.0])),
        blocks=draw(st.sampled_from([1, 2, 3, 4])),
        vocab=draw(st.sampled_from([257, 8000])),
        head_size=64,
        kv_heads=draw(st.sampled_from([FULL, GROUPED, (1, None)])),
        padded=True,
    )
    assume(len(space.options()) ** space.blocks <= 150_000)
    names = some(["decode_ms", "prefill_ms", "memory_mb", "params_m", "flops_g"], 1, 5)
    wide = dict.fromkeys(names, 1e9)
    program = tabulate(space, wide, MODEL, MEASURED, REGIME)
    small = least(program)
    low = {each.budget.name: amount for each, amount in zip(program.constraints, small, strict=True) if each.budget}
    share = {name: draw(st.floats(1.001, 12.0)) for name in names}
    return space, {name: low[name] * share[name] for name in names}


@pytest.mark.slow
@examples(60, by_day=25)
@given(problems())
def test_the_exact_solver_finds_what_enumeration_finds(problem):
    space, limits = problem
    program = encode(space, limits, MODEL, MEASURED, REGIME)
    best = best_of_all(program)
    answer = exact.improve(program)
    assert answer.proved
    assert answer.solution.score == pytest.approx(best, rel=1e-8)
    assert program.fits(answer.solution.choice)
    assert exact.outlook(program).promise <= best * (1 + 1e-9)
    assert exact.improve(program, best * 1.001).solution is None


@pytest.mark.slow
@given(problems(), st.integers(0, 3))
@settings(max_examples=20)
def test_evolution_keeps_the_same_rules(problem, seed):
    space, limits = problem
    program = encode(space, limits, MODEL, MEASURED, REGIME)
    result = evolve(program, seed=seed, effort=Effort(3000, 64, 8))
    assert result.score <= exact.improve(program).solution.score * (1 + 1e-9)
    assert program.fits(result.choice)


@given(problems())
@settings(max_examples=20)
def test_the_best_uniform_decoder_is_the_best_of_its_number_of_layers(problem):
    space, limits = problem
    program = encode(space, limits, MODEL, MEASURED, REGIME)
    best = {}
    for choice in itertools.product(range(len(program.options)), repeat=program.blocks):
        blocks = [program.options[index] for index in choice]
        depths = [block.depth for block in blocks]
        alike = len({(block.width, block.ffn_ratio, block.kv_heads, block.shared) for block in blocks}) == 1
        if alike and not blocks[0].shared and max(depths) - min(depths) <= 1 and program.fits(choice):
            best[sum(depths)] = max(best.get(sum(depths), 0.0), program.evaluate(choice)[0])
    results = [solution.score for solution in uniform(program)]
    assert results == pytest.approx([best[layers] for layers in sorted(best)])


def test_no_layer_is_far_from_the_mean():
    assert even(100.0, 10, [10.0] * 10)
    assert even(100.0, 10, [10 * EVEN, 10 / EVEN])
    assert not even(100.0, 10, [9.99 * EVEN, 10.0])
    assert not even(100.0, 10, [10.0, 10.01 / EVEN])


@pytest.mark.slow
@pytest.mark.parametrize("board", [
    each if each in ("raspberry-pi-zero-2w", "jetson-nano") else pytest.param(each, marks=pytest.mark.nightly)
    for each in profile_ids()
])  # fmt: skip
def test_a_boards_own_budgets_give_a_proved_decoder_of_near_equal_layers(board):
    profile = load_profile(board)
    space = Space(padded=True)
    result = design(profile, with_board_defaults({}, profile), space=space, context=1024, prompt=256, scoring=MEASURED)
    assert result.solver.gap == 0
    assert result.architecture.width_change == "padding"
    arch = result.architecture
    assert result.entropy == pytest.approx(total_score(arch.blocks, arch.head_size, MEASURED))
    assert result.predicted.decode_ms <= profile.budget.decode_ms



@pytest.mark.slow
@pytest.mark.parametrize(("board", "limits", "vocab", "context"), [
    ("raspberry-pi-zero-2w", {"memory_mb": 200.0}, 768, 128),  # memory alone: thousands of decoders are as heavy
    ("jetson-orin-nano", {"decode_ms": 5.0, "memory_mb": 4096.0}, 150_000, 64),  # the head is most of a step
])  # fmt: skip
def test_a_very_small_and_a_very_large_vocabulary_are_proved_too(board, limits, vocab, context):
    profile, space = load_profile(board).with_backend("onnxruntime"), spaced(64, 4, vocab, padded=True)
    designed = design(
        profile, limits, space=space, context=context, prompt=32, precision="int4", scoring=MEASURED
    )  # fmt: skip
    assert designed.solver.gap == 0


def test_the_best_uniform_decoder_in_a_boards_whole_space():
    profile = load_profile("raspberry-pi-4")
    model = cost_model(profile, InferenceShape("int8", 1024, 256))
    limits = with_board_defaults({}, profile)
    program = encode(Space(padded=True), limits, model, MEASURED, regimes(model, limits)[-1])
    (one,) = [result for result in uniform(program) if program.layers[list(result.choice)].sum() == 4]
    single = np.flatnonzero((program.layers == 1) & ~program.shared)
    assert one.score == max(program.evaluate([x] * 4)[0] for x in single.tolist() if program.fits([x] * 4))
    deep = [result for result in uniform(program) if program.layers[list(result.choice)].sum() == 40]
    tens = np.flatnonzero((program.layers == 10) & ~program.shared)
    assert [result.score for result in deep] == [
        max(program.evaluate([x] * 4)[0] for x in tens.tolist() if program.fits([x] * 4))
    ]
