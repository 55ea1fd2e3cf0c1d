"""Budgets: a row of the table reaches help, refusals and searches; an error names a value that a decoder keeps."""

import math
import re

import numpy as np
import pytest
from few_examples import examples
from hypothesis import assume, example, given
from hypothesis import strategies as st
from sample_models import of_two_cores

from merino_edge.bundles.board_app import write_board_app
from merino_edge.bundles.files import bundle_bytes
from merino_edge.design.budgets import BUDGETS_BY_NAME, refusal, shares_over, with_board_defaults
from merino_edge.design.designer import design
from merino_edge.design.recommend import recommend
from merino_edge.design.space import Space
from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source, random_source
from merino_edge.prediction.cost_model import ENTRY_FILE_BYTES, cost_model, file_mb
from merino_edge.prediction.limits import TOLERANCE
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.reading import load_profile
from merino_runtime.errors import MerinoError
from merino_runtime.io.board import MB

NAMES = tuple(BUDGETS_BY_NAME)
BOARD = load_profile("raspberry-pi-zero-2w")
TWO_CORES = of_two_cores(BOARD)
SPACE = Space(widths=(64, 128, 256), depths=(4, 8, 16))
TINY = Space(widths=(64, 128), ffn_ratios=(1.0, 2.0), depths=(1, 2, 4))


def option(name):
    return BUDGETS_BY_NAME[name].option


def solved(budgets, *, board=BOARD, space=SPACE, vocabs=(2000,), precisions=("fp32",), kvs=(None,)):
    """As the command does it: the budgets as given, the board's own beside them, the design."""
    limits = with_board_defaults(budgets, board)
    return design(
        board, limits, space=space, context=512, prompt=512, vocabs=vocabs, precisions=precisions, kvs=kvs
    )


def named(message):
    """Option -> the smallest value that would do, as an error tells it."""
    found = re.findall(r"(--(?:budget )?[a-z-]+)[ =]\S+ is [^;]*?below (\S+),", message)
    return {name: float(value) for name, value in found}


def spent(designed, board=BOARD):
    """What a design takes of each budget, counted and predicted anew."""
    arch = designed.architecture
    model = cost_model(board, InferenceShape(designed.precision, arch.context, designed.prompt))
    cost = model.predict(arch.operators, designed.budget).model_dump()
    return {**{name: cost.get(name) for name in NAMES}, "params_m": cost["params"] / 1e6}


@pytest.mark.parametrize("name", NAMES)
def test_an_impossible_budget_is_named_with_a_value_that_does(name):
    plenty = {other: 250 for other in NAMES if other != name} | {"prefill_ms": 1e5, "decode_ms": 1e3}
    plenty.pop(name, None)
    with pytest.raises(MerinoError) as caught:
        solved({**plenty, name: 1e-3})
    (least,) = named(str(caught.value)).items()
    assert least[0] == option(name)
    assert spent(solved({**plenty, name: least[1]}))[name] <= least[1]
    with pytest.raises(MerinoError, match=option(name)):
        solved({**plenty, name: least[1] * 0.99})


def test_all_impossible_budgets_are_named_at_once():
    with pytest.raises(MerinoError, match="--vocab") as caught:
        solved(dict.fromkeys(NAMES, 1e-3))
    least = named(str(caught.value))
    assert set(least) == {option(name) for name in NAMES}
    assert solved({name: least[option(name)] for name in NAMES}).entropy > 0


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_a_budget_that_is_no_positive_number_is_refused_with_one_that_does(name, value):
    with pytest.raises(MerinoError, match=re.escape(BUDGETS_BY_NAME[name].given(value))):
        recommend(BOARD, {name: value}, context=64, prompt=32)
    with pytest.raises(MerinoError, match="is not a positive, finite number") as caught:
        solved({name: value})
    assert spent(solved({name: named(str(caught.value))[option(name)]}))[name] > 0


def test_a_boards_own_budgets_fill_what_was_not_named():
    own = {"decode_ms": BOARD.budget.decode_ms, "memory_mb": BOARD.budget.memory_mb}
    assert with_board_defaults({}, BOARD) == own
    assert with_board_defaults({"flops_g": 5}, BOARD) == {"memory_mb": own["memory_mb"], "flops_g": 5}
    assert with_board_defaults({"memory_mb": 90}, BOARD) == {"memory_mb": 90}


MAGNITUDES = st.one_of(
    st.floats(-3, 4).map(lambda exponent: 10.0**exponent),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -0.0, 5e-324, 1e-300, 1.7e308, -1.0]),
)
OPEN = st.tuples(
    st.sampled_from([(2000,), (257, 2000), (50257, 300)]),
    st.sampled_from([("fp32",), ("int8", "fp32"), ("int4", "int8", "fp32")]),
)


@pytest.mark.slow
@example({"params_m": 0.0}, ((257, 2000), ("fp32",)))  # the final norm was not counted
@given(st.dictionaries(st.sampled_from(NAMES), MAGNITUDES, max_size=5), OPEN)
@examples(100, by_day=12)
def test_whatever_is_asked_gives_a_design_within_it_or_names_what_would(budgets, opened):
    vocabs, precisions = opened
    for _ in range(3):  # first more memory than there is, then what is below the smallest
        try:
            result = solved(budgets, board=TWO_CORES, space=TINY, vocabs=vocabs, precisions=precisions)
            break
        except MerinoError as error:
            message = str(error)
        more = re.search(r"--memory-mb \S+ is more than .* has free, (\S+):", message)
        printed = {"--memory-mb": float(more[1])} if more else named(message)
        assert printed, message
        raised = {name: printed[option(name)] for name in NAMES if option(name) in printed}
        assert len(raised) == len(printed), message
        budgets = {**budgets, **raised}
    else:
        pytest.fail(f"{budgets}: {message}")
    used = spent(result, TWO_CORES)
    for name, limit in result.budget.items():
        assert used[name] <= limit * (1 + 1e-12), name
    assert {name: result.budget[name] for name in budgets} == budgets
    assert result.architecture.vocab in vocabs
    assert result.precision in precisions


@given(st.data())
def test_the_values_told_for_any_needs_do(data):
    names = data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    number = st.floats(1e-6, 1e9)
    given_ = {name: data.draw(number) for name in names}
    needs = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(names, number)), min_size=1, max_size=4))

    def fits(limits):
        return any(all(need[name] <= limits[name] * (1 + TOLERANCE) for name in names) for need in needs)

    assume(not fits(given_))
    message = str(refusal(given_, np.array([[need[name] for need in needs] for name in names]), str))
    printed = {name: named(message)[option(name)] for name in names if option(name) in named(message)}
    assert printed, message
    if "together" in message and "; or " not in message:
        assert fits({**given_, **printed})
        assert not any(fits({**given_, name: math.inf}) for name in names)
    for name in printed if "; or " in message or len(printed) == 1 else ():
        assert fits({**given_, name: printed[name]})
        assert not fits({**given_, name: printed[name] * 0.998})


def test_energy_is_refused_where_the_profile_knows_no_watts():
    nano = load_profile("jetson-nano").with_backend("onnxruntime")
    with pytest.raises(MerinoError, match="--budget j-per-token needs power.stress_w"):
        with_board_defaults({"j_per_token": 1}, nano)
    with pytest.raises(MerinoError, match="--budget j-per-token needs power.stress_w"):
        design(nano, {"j_per_token": 1}, context=64, prompt=32)
    assert design(nano, {"decode_ms": 20}, context=64, prompt=32).predicted.j_per_token is None
    gpu = load_profile("jetson-nano")  # its power mode's limit is known
    designed = design(gpu, with_board_defaults({"j_per_token": 0.05}, gpu), context=64, prompt=32)
    assert 0 < designed.predicted.j_per_token <= 0.05


def test_energy_is_watts_times_the_time_of_a_step():
    result = solved({"j_per_token": 0.01})
    assert result.predicted.j_per_token == pytest.approx(
        BOARD.power.stress_w.value * result.predicted.decode_ms / 1e3, rel=1e-12
    )
    assert 0.8 * 0.01 < result.predicted.j_per_token <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dialect", "precision"),
    [("fused", "fp32"), ("fused", "int4"), ("portable", "int8"),
     *(pytest.param(*each, marks=pytest.mark.nightly) for each in (("fused", "int8"), ("portable", "fp32")))],
)  # fmt: skip
def test_a_bundles_folder_is_about_as_large_as_predicted_and_no_larger(dialect, precision, tmp_path):
    arch = solved({"params_m": 4, "decode_ms": 50}).architecture
    source = random_source(arch, "sized")
    export(source, tmp_path / "bundle", ExportRequest(dialect=dialect, precision=precision))
    entries = ENTRY_FILE_BYTES * arch.vocab  # random weights have no tokenizer
    predicted = file_mb(arch.operators, precision, arch.context) * MB - entries
    assert 0.8 * predicted < bundle_bytes(tmp_path / "bundle") <= predicted


def test_the_embedded_bundle_is_as_large_as_predicted(tmp_path):
    """With the application that an export writes beside it."""
    from merino_edge.embedded import FOLDER

    write_board_app(tmp_path / "merino.pyz")
    arch = load_source(str(FOLDER)).arch
    result = bundle_bytes(tmp_path) + sum(path.stat().st_size for path in FOLDER.iterdir() if path.suffix != ".pyz")
    assert 0.95 < result / (file_mb(arch.operators, "fp32", arch.context) * MB) <= 1


def test_a_verdict_has_the_tolerance_of_the_search():
    """An optimum fills its limit up to the rounding of sums; it must not be told that it breaks it."""
    result = design(BOARD, {"decode_ms": 4}, space=SPACE, context=64, prompt=32).predicted
    used = result.upper("decode_ms")
    assert shares_over({"decode_ms": used * (1 - 1e-14)}, result) == {}
    over = shares_over({"decode_ms": used / 1.5, "memory_mb": 1e6}, result)
    assert over == {"decode_ms": pytest.approx(1.5)}
