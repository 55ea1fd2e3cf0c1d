"""Both solvers against the enumeration of small spaces, and the program they share against the true costs."""

import itertools
import math
from dataclasses import replace
from operator import ne

import numpy as np
import pytest
from few_examples import examples
from hypothesis import example, given
from hypothesis import strategies as st
from sample_boards import of_two_cores
from sample_probe import with_errors
from scipy.optimize import OptimizeResult

from merino_edge.cli.design_tables import solver_line
from merino_edge.design import exact
from merino_edge.design.budgets import BUDGETS_BY_NAME
from merino_edge.design.constraints import regimes
from merino_edge.design.designer import design
from merino_edge.design.encode import architecture, encode
from merino_edge.design.evolution import Effort, evolve
from merino_edge.design.exact import undominated
from merino_edge.design.score import MERINO
from merino_edge.design.space import FULL, GROUPED, Space, size
from merino_edge.design.variants import comparison_factor
from merino_edge.families.designed import block_operators
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.formats import formats_of
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.reading import load_profile
from merino_runtime.errors import MerinoError

FORMATS = ("fp32", "int8", "int4")

NAMES = tuple(BUDGETS_BY_NAME)
BOARD = load_profile("raspberry-pi-zero-2w")
TWO_CORES = of_two_cores(BOARD)
MODEL = cost_model(BOARD, InferenceShape("fp32", 128, 64))
CONTEXT, PROMPT = MODEL.shape.context, MODEL.shape.prompt
WIDE = dict.fromkeys(NAMES, 1e9)  # budgets that bind nothing


def predicted(arch, space, model=MODEL):
    """The costs of a built decoder under the default regime, by the names of the budgets.

    Latencies as the search counts them: of what the last layer does for one position it sees the narrowest FFN.
    """
    cost = model.predict(arch.operators).model_dump()
    regime = model.default_regime()

    def spared(latency, ratio):
        block = arch.blocks[-1].model_copy(update={"ffn_ratio": ratio, "depth": 1})
        ops = list(block_operators(block, arch.head_size, last=True))
        return latency([replace(op, final=False) for op in ops]) - latency(ops)

    for name, latency in {
        "decode_ms": lambda ops: model.decode_ms(ops, regime.decode_threads, regime.residency),
        "prefill_ms": lambda ops: model.prefill_ms(ops, regime.prefill_threads, regime.residency),
    }.items():
        unseen = spared(latency, arch.blocks[-1].ffn_ratio) - spared(latency, min(space.ffn_ratios))
        cost[name] = latency(arch.operators) + unseen
    in_use_mb = model.in_use_mb(arch.operators, regime.sessions)
    cost["memory_mb"] = in_use_mb + model.activation_mb(arch.operators) + model.runtime_mb
    cost["opening_memory_mb"] = model.opening_mb(arch.operators, regime.sessions) + model.runtime_mb
    cost["j_per_token"] = model.joules(cost["decode_ms"])
    cost["params_m"] = cost["params"] / 1e6
    return {name: cost[name] for name in (*NAMES, "opening_memory_mb")}


def between(space, share, names):
    """Budgets at a share of the way from the space's smallest to its largest decoder."""
    program = encode(space, WIDE, MODEL, MERINO)
    sizes = [size(block) for block in program.options]
    ends = (sizes.index(min(sizes)), sizes.index(max(sizes)))
    built = (architecture(space, program, (end,) * space.blocks, CONTEXT) for end in ends)
    least, most = (predicted(arch, space) for arch in built)
    return {name: least[name] + share[name] * (most[name] - least[name]) for name in names}


def optimum(program):
    answer = exact.improve(program)
    assert answer.proved
    return answer.solution


def enumerated(program):
    """The highest score within the budgets, of every decoder of the space."""
    choices = np.array(list(itertools.product(range(len(program.options)), repeat=program.blocks)))
    widths = program.width[choices]  # [decoders, blocks]
    first, last = widths[:, 0], widths[:, -1]
    share = program.use[:, choices].sum(axis=2) + program.peak[:, choices].max(axis=2) + program.ends[:, first, last]
    share += program.step[:, widths[:, :-1], widths[:, 1:]].sum(axis=2)
    fits = (share <= 1 + 1e-12).all(axis=0) & (np.diff(widths, axis=1) >= 0).all(axis=1) & program.allowed[first, last]
    return float(program.score[choices[fits]].sum(axis=1).max())


@st.composite
def problems(draw, blocks=(2, 3), width=(64, 96, 128, 192, 256, 384), growth=(1.5, 2.0, 8.0)):
    """A small space and a random subset of the budgets, each somewhere between too little and plenty."""

    def some(values, least, most):
        return tuple(sorted(draw(st.lists(st.sampled_from(values), min_size=least, max_size=most, unique=True))))

    widths = some(width, 2, 3)
    space = Space(
        widths=widths,
        ffn_ratios=some([1.0, 1.5, 3.0], 1, 2),
        depths=(1, *some([2, 3, 6], 0, 1)),
        growth=draw(st.sampled_from(growth)),
        blocks=draw(st.sampled_from(blocks)),
        vocab=draw(st.sampled_from([257, 8000])),
        head_size=32 if 96 in widths else draw(st.sampled_from([32, 64])),
        kv_heads=FULL,
    )
    if space.blocks < 3:  # else there are too many decoders to enumerate
        space = replace(space, kv_heads=draw(st.sampled_from([FULL, GROUPED, (1, None), (1, 2)])))
    names = some(NAMES, 1, len(NAMES))
    share = {name: draw(st.floats(0.02, 1.0)) for name in names}
    return space, between(space, share, names)


def assert_within(space, program, budgets, choice):
    arch = architecture(space, program, choice, CONTEXT)  # raises where widths shrink
    assert program.allowed[program.width[choice[0]], program.width[choice[-1]]]
    for name, value in predicted(arch, space).items():
        assert value <= budgets.get(name, math.inf) * (1 + 1e-12), name


# HiGHS's presolve calls the program of this space's best sequence of widths infeasible (scipy 1.17.1).
PRESOLVED_AWAY = Space(
    widths=(96, 384), ffn_ratios=(1.0, 1.5), depths=(1, 2), growth=1.5, blocks=3, vocab=8000, head_size=32,
    narrow_head_size=32, kv_heads=FULL,
)  # fmt: skip


@pytest.mark.slow
@given(problems())
@example((PRESOLVED_AWAY, {"prefill_ms": 81.83367697614317}))
@examples(200, by_day=30)
def test_the_exact_solver_finds_the_best_of_all_decoders(problem):
    space, budgets = problem
    program = encode(space, budgets, MODEL, MERINO)
    result, bound = exact.improve(program)
    best = enumerated(program)
    assert result.score == pytest.approx(best, rel=1e-9)
    assert result.score == pytest.approx(program.evaluate(result.choice)[0], rel=1e-12)
    assert bound >= result.score
    assert bound == pytest.approx(best, rel=1e-6)
    assert_within(space, program, budgets, result.choice)
    spent = predicted(architecture(space, program, result.choice, CONTEXT), space)
    just = {name: spent[name] * (1 + 1e-9) for name in budgets}
    again = optimum(encode(space, just, MODEL, MERINO))
    assert again.score == pytest.approx(best, rel=1e-9)  # asked for no more than it takes


@pytest.mark.slow
@given(problems(), st.floats(-0.1, 0.1), st.floats(0.01, 0.3), st.sampled_from([0.5, 0.9, 0.99]))
@examples(60, by_day=20)
def test_under_an_interval_the_exact_solver_finds_the_best_of_all_decoders(problem, center, scale, confidence):
    """Latencies held against a limit are the point predictions times one factor: as if the limit were divided by it."""
    space, budgets = problem
    model = cost_model(with_errors(BOARD, center, scale), MODEL.shape, confidence)
    point = cost_model(with_errors(BOARD, forms=()), MODEL.shape)
    upper = {"decode_ms": model.upper_decode, "prefill_ms": model.upper_prefill, "j_per_token": model.upper_decode}
    program = encode(space, {name: limit * upper.get(name, 1) for name, limit in budgets.items()}, model, MERINO)
    answer = exact.improve(program)
    assert answer.proved
    assert answer.solution.score == pytest.approx(enumerated(program), rel=1e-9)
    assert answer.solution.score == pytest.approx(enumerated(encode(space, budgets, point, MERINO)), rel=1e-9)
    assert_within(space, program, budgets, answer.solution.choice)


def reachable(program, fits):
    """All decoders that changes of one property of one block lead to from the smallest, each within the budgets."""
    keys = [tuple(block.model_dump().values()) for block in program.options]

    most = {key[0]: max(other[-1] for other in keys if other[0] == key[0]) for key in keys}
    named = [(*key[:-1], None if key[-1] == most[key[0]] else key[-1]) for key in keys]  # all heads stay all heads

    def near(option):
        return [other for other, key in enumerate(named) if sum(map(ne, key, named[option])) == 1]

    start = (keys.index(min(keys)),) * program.blocks
    result, waiting = {start}, [start]
    while waiting:
        at = waiting.pop()
        for block, index in enumerate(at):
            for child in ((*at[:block], other, *at[block + 1 :]) for other in near(index)):
                if child not in result and fits(child):
                    result.add(child)
                    waiting.append(child)
    return result


@given(problems(blocks=(2,)), st.integers(0, 2**32))
@examples(20)
def test_evolution_finds_the_best_of_a_few_decoders(problem, seed):
    """Of those that it can reach by one change at a time, where its population has room for all."""
    space, budgets = problem
    program = encode(space, budgets, MODEL, MERINO)

    def fits(choice):
        widths = [program.width[index] for index in choice]
        allowed = program.allowed[widths[0], widths[-1]]
        return widths == sorted(widths) and allowed and (program.evaluate(choice)[1] <= 1 + 1e-12).all()

    near = reachable(program, fits)
    result = evolve(program, seed=seed, effort=Effort(150 * len(near), 10_000))  # the best may have two parents alone
    best = max(program.evaluate(choice)[0] for choice in near)
    assert result.score == pytest.approx(best, rel=1e-12)
    assert result.score <= enumerated(program) * (1 + 1e-12)
    assert_within(space, program, budgets, result.choice)


@pytest.mark.parametrize("seed", range(3))
def test_evolution_is_repeatable_within_budgets_and_under_the_bound(seed):
    space = Space(vocab=8000)
    share = {"decode_ms": 0.02, "memory_mb": 0.05, "flops_g": 0.02}
    budgets = between(space, share, share)
    program = encode(space, budgets, MODEL, MERINO)
    reported = []
    result = evolve(program, seed=seed, effort=Effort(5000), progress=reported.append)
    assert result == evolve(program, seed=seed, effort=Effort(5000))
    assert reported == sorted(reported)
    assert 0 < reported[0] <= reported[-1] <= 5000
    assert result.score <= exact.improve(program).bound
    assert_within(space, program, budgets, result.choice)
    assert len({evolve(program, seed=other, effort=Effort(300)).choice for other in range(5)}) > 1


@given(problems())
@examples(100)
def test_an_option_left_out_as_dominated_is_never_missed(problem):
    space, budgets = problem
    program = encode(space, budgets, MODEL, MERINO)
    keep = undominated(program)
    assert len(set(keep)) == len(keep) <= len(program.options)
    assert enumerated(program.subset(keep)) == pytest.approx(enumerated(program), rel=1e-12)


def test_a_space_of_shared_blocks_alone_is_not_refused():
    """The smallest decoder is the shared one where every block has several layers."""
    space = Space(widths=(64, 128), depths=(3,), ffn_ratios=(1.0,), blocks=2, vocab=257)
    budgets = between(space, {"memory_mb": 0.01, "params_m": 0.01}, ("memory_mb", "params_m"))
    program = encode(space, budgets, MODEL, MERINO)
    result = optimum(program)
    assert result.score == pytest.approx(enumerated(program), rel=1e-9)
    assert_within(space, program, budgets, result.choice)


def test_a_space_whose_smallest_decoder_is_worth_nothing_is_solved():
    """Blocks of 64 channels and four layers score 0 by the inverse gamma, those of 128 do not."""
    space = Space(widths=(64, 128), depths=(4,), ffn_ratios=(1.0,), blocks=2, vocab=257)
    program = encode(space, WIDE, MODEL, MERINO)
    assert optimum(program).score == pytest.approx(enumerated(program), rel=1e-9)


def test_a_space_in_which_nothing_is_worth_anything_has_a_best_decoder():
    space = Space(widths=(64,), depths=(4, 5), ffn_ratios=(1.0,), blocks=2, vocab=257)
    result, bound = exact.improve(encode(space, WIDE, MODEL, MERINO))
    assert (result.score, bound) == (0, 0)


def test_memory_is_bounded_while_the_backend_opens_too():
    """A table that the heap does not keep takes its most then; a design fills the budget all the same."""
    profile, budgets = load_profile("raspberry-pi-5"), {"memory_mb": 150}
    model = cost_model(profile, InferenceShape("int8", 64, 16))
    space = Space(widths=(704, 768), depths=(1, 2, 3), ffn_ratios=(1.0, 2.0), blocks=2, vocab=50257)
    designed = design(profile, budgets, space=space, context=64, prompt=16, precision="int8")
    ops = designed.architecture.operators
    opens = model.opening_mb(ops) + model.runtime_mb
    assert designed.predicted.memory_mb == pytest.approx(opens)
    assert opens > 10 + model.in_use_mb(ops) + model.runtime_mb
    assert 0.95 * 150 < opens <= 150


@given(st.data())
@examples(60, by_day=20)
def test_a_programs_shares_are_the_costs_of_the_decoder_that_is_built(data):
    space = Space(
        blocks=data.draw(st.integers(1, 4)), head_size=data.draw(st.sampled_from([32, 64])),
        vocab=data.draw(st.sampled_from([8000, 150_000])), widths=(64, 128, 192, 256), depths=(1, 2, 5), growth=8.0,
    )
    board = load_profile(data.draw(st.sampled_from(["raspberry-pi-5", "raspberry-pi-4", "jetson-nano"])))
    precision = data.draw(st.sampled_from(formats_of(board)))
    shape = InferenceShape(precision, data.draw(st.sampled_from([16, 1024])), data.draw(st.sampled_from([1, 16])))
    model = cost_model(board, shape)
    program = encode(space, WIDE, model, MERINO)
    options = st.sampled_from(range(len(program.options)))
    choice = sorted(data.draw(st.lists(options, min_size=space.blocks, max_size=space.blocks)))
    arch = architecture(space, program, choice, shape.context)
    _, share = program.evaluate(choice)
    for constraint, part in zip(program.constraints, share, strict=True):
        name = constraint.budget.name
        if constraint.term is not constraint.budget.terms[0]:
            name = f"opening_{name}"
        expected = predicted(arch, space, model)[name]
        assert part * constraint.room + constraint.fixed == pytest.approx(expected, rel=1e-9), name


@pytest.mark.slow
@given(
    problems(blocks=(1, 2)), st.lists(st.sampled_from([257, 1000, 8000]), min_size=1, max_size=2, unique=True),
    st.lists(st.sampled_from(FORMATS), min_size=1, max_size=2, unique=True),
)
@examples(30, by_day=4)
def test_an_open_vocabulary_and_format_give_the_most_worth_of_all_decoders(problem, vocabs, precisions):
    """Every decoder of every combination, each within the budgets under some regime, by enumeration."""
    space, budgets = problem
    space = replace(space, narrow_head_size=None)
    scores = {}
    for vocab, precision in itertools.product(vocabs, precisions):
        model = cost_model(TWO_CORES, replace(MODEL.shape, precision=precision))
        for regime in regimes(model, budgets):
            try:
                program = encode(replace(space, vocab=vocab), budgets, model, MERINO, regime)
            except MerinoError:
                continue
            scores[vocab, precision, regime] = comparison_factor(vocab, precision) * enumerated(program)
    keys = {"space": space, "context": CONTEXT, "prompt": PROMPT, "vocabs": vocabs, "precisions": precisions}
    keys["scoring"] = MERINO
    if not scores:
        with pytest.raises(MerinoError, match="no decoder of this space fits"):
            design(TWO_CORES, budgets, **keys)
        return
    designed = design(TWO_CORES, budgets, **keys)
    chosen = designed.architecture.vocab, designed.precision
    assert comparison_factor(*chosen) * designed.entropy == pytest.approx(max(scores.values()), rel=1e-8)
    assert designed.entropy == pytest.approx(designed.solver.bound, rel=1e-8)
    assert designed.solver.gap < 1e-8
    spent = {**designed.predicted.model_dump(), "params_m": designed.predicted.params / 1e6}
    assert all(spent[name] <= limit * (1 + 1e-12) for name, limit in budgets.items())
    paper = design(TWO_CORES, budgets, **keys, solver="evolution", effort=Effort(300, 64, 8))
    chosen = paper.architecture.vocab, paper.precision
    assert comparison_factor(*chosen) * paper.entropy <= max(scores.values()) * (1 + 1e-9)
    reached = comparison_factor(*chosen) * paper.entropy * (1 + paper.solver.gap)
    assert reached == pytest.approx(max(scores.values()), rel=1e-8)
    assert paper.considered == designed.considered
    assert designed.considered.vocab == sorted(vocabs)


def test_one_vocabulary_and_format_in_a_list_are_the_same_as_given_alone():
    keys = {"space": Space(widths=(64, 128, 256), vocab=4096), "context": 128, "prompt": 64}
    alone = design(BOARD, {"decode_ms": 4}, **keys, precision="int8")
    listed = design(BOARD, {"decode_ms": 4}, **keys, vocabs=[4096, 4096], precisions=["int8"])
    assert alone.model_copy(update={"solver": listed.solver}) == listed
    assert alone.solver.bound == listed.solver.bound


MILP = exact.milp


def failing_milp(monkeypatch, status, *, without_presolve):
    """HiGHS ends integer programs with `status` and no solution; without presolve too, or not."""
    failed = []

    def milp(*args, integrality=None, options, **keys):
        if integrality is None or not (options["presolve"] or without_presolve):
            return MILP(*args, integrality=integrality, options=options, **keys)
        failed.append(status)
        return OptimizeResult(status=status, x=None)

    monkeypatch.setattr(exact, "milp", milp)
    return failed


def hard_program():
    space = Space(widths=(64, 128, 192), depths=(1, 2, 3), ffn_ratios=(1.0, 2.0), blocks=3, vocab=500)
    budgets = between(space, dict.fromkeys(NAMES, 0.3), ("decode_ms", "memory_mb"))
    return encode(space, budgets, MODEL, MERINO)


@pytest.mark.parametrize("status", [1, 3, 4])
def test_a_failure_of_the_integer_solver_is_no_proof(status, monkeypatch):
    program = hard_program()
    best = optimum(program).score
    failed = failing_milp(monkeypatch, status, without_presolve=True)
    answer = exact.improve(program)
    assert failed and answer.solution.score < best < answer.bound and not answer.proved
    none, bound = exact.improve(program, 0.999 * best)
    assert none is None and bound > best, "nothing better was found, and nothing proved"


@pytest.mark.parametrize("status", [1, 2, 3, 4])
def test_a_failed_integer_program_is_tried_again_without_presolve(status, monkeypatch):
    program = hard_program()
    best = optimum(program)
    failed = failing_milp(monkeypatch, status, without_presolve=False)
    assert optimum(program) == best and failed


def test_a_design_that_is_not_proved_says_so(monkeypatch):
    keys = {"space": Space(widths=(64, 128, 192), vocab=500), "context": 128, "prompt": 64, "vocabs": [500, 300]}
    keys["scoring"] = MERINO
    proved = design(BOARD, {"decode_ms": 4}, **keys)
    assert "proved: no decoder of the space has more" in solver_line(proved)
    failing_milp(monkeypatch, 4, without_presolve=True)
    designed = design(BOARD, {"decode_ms": 4}, **keys)
    factors = [comparison_factor(one.architecture.vocab, one.precision) for one in (designed, proved)]
    assert designed.solver.bound * factors[0] >= proved.entropy * factors[1] > designed.entropy * factors[0]
    assert designed.solver.gap == pytest.approx(designed.solver.bound / designed.entropy - 1)
    assert "not proved" in solver_line(designed) and "HiGHS gave only a bound" in solver_line(designed)


@pytest.mark.slow
@given(problems(), st.floats(0.2, 1.5))
@examples(60, by_day=20)
def test_a_floor_hides_the_best_decoder_only_where_that_does_not_exceed_it(problem, share):
    space, budgets = problem
    program = encode(space, budgets, MODEL, MERINO)
    best = optimum(program)
    result, bound = exact.improve(program, share * best.score)
    assert bound == pytest.approx(max(1, share) * best.score, rel=1e-9)
    assert (result is None) == (share * best.score >= best.score * (1 - 1e-9))
    assert result is None or result.score == pytest.approx(best.score, rel=1e-9)
    assert exact.outlook(program).bound >= best.score * (1 - 1e-9)


@pytest.mark.parametrize("effort", [(0,), (10**9,), (10, 1, 1), (10, 8, 8), (10, 8, 0)])
def test_an_effort_that_makes_no_sense_is_refused(effort):
    with pytest.raises(MerinoError, match="--(steps|population|parents) "):
        Effort(*effort)
