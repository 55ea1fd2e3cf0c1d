"""From a board and budgets to design.json and back; the search's answers against decoders predicted one by one."""

import itertools
import json
import math

import numpy as np
import pytest
from few_examples import ALL, examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_models import of_two_cores
from sample_probe import with_errors

from merino_edge.calibration.probe import read_probe
from merino_edge.cli.design_tables import solver_line
from merino_edge.design import enumeration
from merino_edge.design.axes import attention, vocabulary
from merino_edge.design.budgets import BUDGETS_BY_NAME, amount, with_board_defaults
from merino_edge.design.costs import AtThreads
from merino_edge.design.design_file import load_design, read_plan
from merino_edge.design.designer import TrainingText, caches_of, design, design_by_paper
from merino_edge.design.paper.space import PaperSpace
from merino_edge.design.score import CONSTANTS, MEASURED, existing_score, loss_of
from merino_edge.design.space import SPACE, Layer, Space, architecture
from merino_edge.families.operators import params
from merino_edge.families.zoo import model
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.formats import fast_formats, formats_of
from merino_edge.prediction.limits import most_within
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.reading import load_profile, profile_ids
from merino_runtime.errors import MerinoError

BOARD = load_profile("raspberry-pi-zero-2w")
SMALL = Space(widths=tuple(range(64, 321, 64)), depths=(3, 6, 9), ffn_ratios=(1.0, 2.0))
PAPERS = PaperSpace(widths=tuple(range(64, 321, 64)), depths=(1, 2, 3), ffn_ratios=(1.0, 2.0), blocks=3, vocab=2000)
LIMITS = {"decode_ms": 8, "memory_mb": 90}


def small_design(**keys):
    return design(BOARD, LIMITS, **{"space": SMALL, "context": 256, "prompt": 128, "vocabs": [2000], **keys})


def paper_design():
    return design_by_paper(BOARD, LIMITS, space=PAPERS, context=256, prompt=128)


def test_design_json_is_read_as_it_was_written(tmp_path):
    for result in (small_design(), small_design(text=TrainingText(1e9)), paper_design()):
        path = tmp_path / "design.json"
        path.write_text(result.to_json())
        assert load_design(path) == result
        content = json.loads(result.to_json())
        assert content["schema"] == 6
        assert set(content) == {
            "schema", "device", "backend", "architecture", "precision", "dialect", "kv", "prompt", "budget",
            "predicted", "loss_ratio", "entropy", "scoring", "training", "considered", "solver",
        }
        assert set(content["solver"]) == {"name", "gap", "bound", "seconds", "seed", "members"}


@pytest.mark.parametrize(("read", "name", "content", "command"), [
    (read_plan, "my design.json", {"schema": 3, "device": "raspberry-pi-4"},
     "merino-edge design --board raspberry-pi-4 -o 'PATH'"),
    (read_probe, "probe.json", {"schema": 5}, "python3 merino.pyz probe -o probe.json"),
    (load_profile, "mine.toml", {"schema": 1}, "merino-edge calibrate --probe probe.json --board ID -o PATH"),
])  # fmt: skip
def test_another_schema_is_refused_with_the_command_that_makes_the_file_again(read, name, content, command, tmp_path):
    path = tmp_path / name
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in content.items()]
    path.write_text("".join(lines) if path.suffix == ".toml" else json.dumps(content))
    with pytest.raises(MerinoError) as caught:
        read(path)
    again = command.replace("PATH", str(path))
    assert str(caught.value).startswith(f"{path} has schema {content['schema']}, this version reads schema ")
    assert str(caught.value).endswith(f": make it again, `{again}`")


def test_all_faults_of_a_design_come_in_one_message(tmp_path):
    content = json.loads(small_design().to_json())
    del content["device"]
    content["color"] = "red"
    content["solver"]["name"] = "guess"
    content["architecture"]["blocks"][0]["width"] = 33
    content["predicted"]["params"] = "many"
    path = tmp_path / "design.json"
    path.write_text(json.dumps(content))
    with pytest.raises(MerinoError) as caught:
        load_design(path)
    message = str(caught.value)
    assert "design.json" in message
    for key in ("device: missing", "color: unknown key", "solver.name is ", "blocks[0].width is 33", "params is "):
        assert key in message, key


def test_a_loss_ratio_is_of_the_scores_and_its_interval_of_the_constants():
    result, reference = small_design(), model("opt-350m").geometry

    def ratio(constants):
        own = loss_of(result.architecture, constants, result.precision, result.kv)
        return math.exp(own - loss_of(reference, constants))

    loss = result.loss_ratio
    assert loss.value == pytest.approx(ratio(MEASURED.constants))
    assert loss.low < loss.value < loss.high
    for name, constant in CONSTANTS.items():
        for end in (constant.low, constant.high):
            if end is not None:
                assert loss.low <= ratio({**MEASURED.constants, name: end}) * (1 + 1e-12)
                assert ratio({**MEASURED.constants, name: end}) <= loss.high * (1 + 1e-12)
    low, high = (ratio({**MEASURED.constants, "alpha": alpha}) for alpha in (0.016, 0.073))
    assert loss.low <= low < high <= loss.high, "the range of alpha over the tokens is inside"


@pytest.mark.parametrize("text", ["", "{", "[]", "\udc00", "[" * 100000, '{"a": 1, "a": 1}'])
def test_what_is_no_design_is_refused(tmp_path, text):
    path = tmp_path / "design.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(MerinoError, match=r"design\.json is not (a design\.json|JSON that can be read)"):
        load_design(path)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"precisions": ["int3"]}, "--precision int3"),
        ({"context": 1, "prompt": 1}, "--context 1 "),
        ({"context": 131_073}, "--context 131073 "),
        ({"prompt": 257}, "--prompt 257 "),
        ({"prompt": 0}, "--prompt 0 "),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(request_, expected):
    with pytest.raises(MerinoError, match=expected):
        small_design(**request_)


ZERO = load_profile("raspberry-pi-zero-2w")
BOARDS = {
    **{name: load_profile(name) for name in profile_ids()}, "two cores": of_two_cores(ZERO),
    "calibrated": of_two_cores(with_errors(ZERO, 0.02, 0.1)),
    "nano's cpu": load_profile("jetson-nano").with_backend("onnxruntime"),
}  # fmt: skip
NAMES = tuple(BUDGETS_BY_NAME)
PROFILE = settings.default.max_examples
SPACES = 2000 if PROFILE >= ALL else 2 * PROFILE


@given(st.data())
@examples(60, by_day=10)
def test_the_totals_of_arrays_are_the_predictions(data):
    """40 decoders of the whole space at each pair of thread counts, on any board in any format."""
    board = BOARDS[data.draw(st.sampled_from(sorted(BOARDS)))]
    precision = data.draw(st.sampled_from(formats_of(board)))
    shape = InferenceShape(
        precision, data.draw(st.sampled_from([32, 1024])), data.draw(st.sampled_from([1, 16])),
        data.draw(st.sampled_from(caches_of(board, precision))),
    )  # fmt: skip
    model, vocab = cost_model(board, shape), data.draw(st.sampled_from([512, 50257]))
    kinds = enumeration.kinds_of(SPACE)
    costs = enumeration.costs_of(SPACE, model, vocab, np.array(SPACE.depths), True)
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    for kind, depth in zip(random.integers(0, len(kinds.weights), 40), random.integers(0, 62, 40), strict=True):
        arch = architecture(kinds.layers[kind], SPACE.depths[depth], vocab, shape.context)
        counts = range(len(model.thread_counts))
        pairs = [(decode, prefill) for decode in counts for prefill in counts]
        for pair, predicted in zip(pairs, model.predict_each(arch.operators), strict=True):
            for name, budget in BUDGETS_BY_NAME.items():
                if budget.of(predicted) is not None:
                    total = np.broadcast_to(budget.of(AtThreads(costs, *pair)), costs.peak.shape)[kind, depth]
                    assert total == pytest.approx(amount(budget, predicted), rel=1e-11), (name, arch.shape())


class Member:
    """A decoder of a small space, predicted by itself."""

    def __init__(self, layer, depth, vocab, model):
        self.arch = architecture(layer, depth, vocab, model.shape.context)
        self.predicted = model.predict_each(self.arch.operators)
        self.score = existing_score(self.arch, MEASURED, model.shape.precision, model.shape.kv)

    def fits(self, limits):
        return any(
            all(amount(BUDGETS_BY_NAME[name], one) <= most_within(limit) for name, limit in limits.items())
            for one in self.predicted
        )


@st.composite
def problems(draw):
    """A small space, all its decoders, and limits near what one of them takes."""

    def some(values, least, most):
        return tuple(sorted(draw(st.lists(st.sampled_from(values), min_size=least, max_size=most, unique=True))))

    board = BOARDS[draw(st.sampled_from(["two cores", "calibrated", "jetson-nano"]))]
    space = Space(
        widths=some([32, 64, 96, 256, 320, 640], 1, 2), depths=some([1, 2, 3, 7], 1, 2),
        ffn_ratios=some([1.0, 2.0, 4.0], 1, 2), gated=draw(st.sampled_from([(True,), (False,), (True, False)])),
        kv_heads=draw(st.sampled_from([(None,), (1, None)])),
    )  # fmt: skip
    keys = {
        "space": space, "context": 64, "prompt": draw(st.sampled_from([8, 64])),
        "vocabs": some([257, 2000, 50257], 1, 2), "precisions": some(formats_of(board), 1, 2),
        "kvs": draw(st.sampled_from([[None], None])),
    }
    models = [
        cost_model(board, InferenceShape(form, 64, keys["prompt"], kv))
        for form in keys["precisions"] for kv in keys["kvs"] or caches_of(board, form)
    ]
    layers = [
        Layer(width, heads, ratio, gated)
        for width in space.widths for heads in attention.kv_heads_of(width, space.kv_heads)
        for ratio in space.ffn_ratios for gated in space.gated
    ]  # fmt: skip
    choices = list(itertools.product(layers, space.depths, keys["vocabs"], models))
    near = Member(*draw(st.sampled_from(choices)))
    names = some([name for name in NAMES if not BUDGETS_BY_NAME[name].needs or board.id != "jetson-nano"], 1, 4)
    one = draw(st.sampled_from(near.predicted))
    factor = st.sampled_from([0.97, 1.0, 1.0, 1.003, 1.05])
    limits = {name: amount(BUDGETS_BY_NAME[name], one) * draw(factor) for name in names}
    return board, keys, choices, limits


@pytest.mark.slow
@given(problems())
@settings(max_examples=SPACES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_decoder_within_the_limits_is_better(problem):
    """And where none fits, the values that the error names are the smallest that do."""
    board, keys, choices, limits = problem
    members = [Member(*choice) for choice in choices]
    fitting = [member.score for member in members if member.fits(limits)]
    if fitting:
        designed = design(board, limits, **keys)
        assert designed.entropy == pytest.approx(max(fitting), rel=1e-9)
        assert (designed.solver.gap, designed.solver.bound) == (0, designed.entropy)
        assert designed.solver.members == len(members)
        assert all(amount(BUDGETS_BY_NAME[name], designed.predicted) <= most_within(limits[name]) for name in limits)
        return
    with pytest.raises(MerinoError, match="no decoder of this space fits") as refused:
        design(board, limits, **keys)
    alone = {}
    for name in limits:
        others = {other: limit for other, limit in limits.items() if other != name}
        needs = [
            amount(BUDGETS_BY_NAME[name], one) for member in members for one in member.predicted
            if all(amount(BUDGETS_BY_NAME[other], one) <= most_within(limit) for other, limit in others.items())
        ]  # fmt: skip
        if needs:
            alone[name] = min(needs)
    for name, need in alone.items():
        given, words = BUDGETS_BY_NAME[name].given(limits[name]), str(refused.value)
        assert f"{given} is below" in words
        told = float(words.split(f"{given} is below ")[1].split(",")[0])
        assert need <= told * (1 + 1e-9) <= need * 1.002
    assert any(member.arch.shape() in str(refused.value) for member in members)


@pytest.mark.parametrize("board", [
    name if name in ("raspberry-pi-4", "jetson-nano") else pytest.param(name, marks=pytest.mark.nightly)
    for name in profile_ids()
])  # fmt: skip
def test_a_boards_own_budgets(board):
    profile = load_profile(board)
    limits = with_board_defaults({}, profile)
    designed = design(profile, limits, context=profile.budget.context, prompt=256)
    assert designed.considered.vocab == list(vocabulary.VOCABS)
    assert designed.considered.precision == fast_formats(profile)
    assert designed.considered.kv == caches_of(profile, fast_formats(profile)[-1])
    assert "the best of all" in solver_line(designed)
    used = [amount(BUDGETS_BY_NAME[name], designed.predicted) / limit for name, limit in limits.items()]
    assert 0.97 < max(used) <= 1
    score = existing_score(designed.architecture, MEASURED, designed.precision, designed.kv)
    assert designed.entropy == pytest.approx(score)


def test_a_text_of_few_tokens_gives_a_smaller_decoder_that_it_can_train():
    keys = {"context": 512, "prompt": 256}
    free = design(ZERO, {"decode_ms": 100, "memory_mb": 200}, **keys)
    assert free.training.tokens is free.training.most_weights is None
    assert free.training.right_tokens == 20 * params(free.architecture.operators)
    sizes = []
    for tokens in (1e12, 5e7, 5e6):
        designed = design(ZERO, {"decode_ms": 100, "memory_mb": 200}, **keys, text=TrainingText(tokens))
        sizes.append(params(designed.architecture.operators))
        low, high = designed.training.most_weights_interval
        assert sizes[-1] <= designed.training.most_weights and low < designed.training.most_weights < high
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[1] < sizes[0]


def test_a_text_too_small_for_any_decoder_gives_the_smallest():
    designed = design(ZERO, {"decode_ms": 100}, context=64, prompt=32, text=TrainingText(1))
    smallest = architecture(Layer(32, 1, 1.0, False), 3, 512, 64)
    assert params(designed.architecture.operators) == params(smallest.operators)
