"""From a board and budgets to design.json and back."""

import itertools
import json
import subprocess
import sys

import pytest

from merino_edge.calibration.probe import read_probe
from merino_edge.design.budgets import with_board_defaults
from merino_edge.design.design_file import load_design, read_plan
from merino_edge.design.designer import design
from merino_edge.design.evolution import Effort
from merino_edge.design.existing import existing_score
from merino_edge.design.law import CONSTANTS
from merino_edge.design.score import MEASURED, MERINO, SCORES
from merino_edge.design.space import Space
from merino_edge.design.variants import NARROW
from merino_edge.families.zoo import model
from merino_edge.profiles.reading import load_profile, profile_ids
from merino_runtime.errors import MerinoError

BOARD = load_profile("raspberry-pi-zero-2w")
SMALL = Space(widths=tuple(range(64, 321, 64)), depths=(1, 2, 3), ffn_ratios=(1.0, 2.0), blocks=3, vocab=2000)


def small_design(**keys):
    request = {"space": SMALL, "context": 256, "prompt": 128}
    return design(BOARD, {"decode_ms": 8, "memory_mb": 90}, **{**request, **keys})


@pytest.mark.parametrize("board", [  # the whole space
    each if each in ("raspberry-pi-4", "jetson-nano") else pytest.param(each, marks=pytest.mark.nightly)
    for each in profile_ids()
])  # fmt: skip
def test_a_boards_own_budgets_give_the_optimum_within_them(board):
    profile = load_profile(board)
    budgets = with_board_defaults({}, profile)
    designed = design(profile, budgets, space=Space(), context=profile.budget.context, prompt=256)
    predicted = designed.predicted
    assert designed.device == board
    assert designed.budget == budgets
    assert predicted.decode_ms <= profile.budget.decode_ms
    assert predicted.memory_mb <= profile.budget.memory_mb
    assert designed.solver.bound >= designed.entropy
    assert 0 <= designed.solver.gap < 1e-6
    nothing_wasted = max(predicted.decode_ms / profile.budget.decode_ms, predicted.memory_mb / profile.budget.memory_mb)
    assert nothing_wasted > 0.97
    arch = designed.architecture
    assert arch.context == profile.budget.context
    assert arch.vocab == Space().vocab
    assert arch.blocks[-1].width <= Space().growth * arch.blocks[0].width
    assert arch.head_size == (32 if arch.blocks[0].width < NARROW else 64)


def test_a_larger_budget_never_gives_a_worse_decoder():
    entropies = [
        design(BOARD, {"decode_ms": ms}, space=SMALL, context=64, prompt=64).entropy for ms in (2.5, 4, 8, 16)
    ]
    assert entropies == sorted(entropies)
    assert entropies[0] < entropies[-1]


def test_design_json_is_read_as_it_was_written(tmp_path):
    result = small_design()
    path = tmp_path / "design.json"
    path.write_text(result.to_json())
    assert load_design(path) == result
    content = json.loads(result.to_json())
    assert content["schema"] == 4
    assert set(content) == {
        "schema", "device", "backend", "architecture", "precision", "kv", "prompt", "budget", "searched",
        "predicted", "measured", "loss_ratio", "entropy", "scoring", "considered", "solver",
    }
    assert set(content["architecture"]) == {
        "blocks", "vocab", "head_size", "context", "rope_theta", "rms_norm_eps", "width_change",
    }
    assert set(content["architecture"]["blocks"][0]) == {"width", "ffn_ratio", "depth", "shared", "kv_heads"}
    assert set(content["predicted"]) == {
        "decode_ms", "decode_ms_interval", "prefill_ms", "prefill_ms_interval", "memory_mb", "flops_g", "params",
        "weight_bytes", "kv_bytes", "file_mb", "j_per_token", "j_per_token_interval", "confidence", "provenance",
        "decode_threads", "prefill_threads",
    }
    assert set(content["solver"]) == {"name", "gap", "bound", "seconds", "seed"}


@pytest.mark.parametrize(("read", "name", "content", "command"), [
    (read_plan, "my design.json", {"schema": 3, "device": "raspberry-pi-4"},
     "merino-edge design --device raspberry-pi-4 -o 'PATH'"),
    (read_probe, "probe.json", {"schema": 5}, "python3 merino.pyz probe -o probe.json"),
    (load_profile, "mine.toml", {"schema": 1}, "merino-edge calibrate --probe probe.json --device ID -o PATH"),
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


@pytest.mark.slow
def test_evolution_reports_its_steps_repeats_for_a_seed_and_is_measured_against_the_bound():
    steps, effort = [], Effort(25_000)
    result = small_design(solver="evolution", seed=5, effort=effort, progress=steps.append)
    again = small_design(solver="evolution", seed=5, effort=effort)
    reports = [0, *steps, effort.steps]  # each sixth of the effort at least, to its end
    assert all(0 <= later - sooner <= effort.steps / 6 for sooner, later in itertools.pairwise(reports)), steps
    assert len(steps) >= 10, steps
    exact = small_design()
    assert result.architecture == again.architecture
    assert (result.solver.name, result.solver.seed) == ("evolution", 5)
    rounding = 1 + 1e-12  # the same decoder's blocks may be added up in another order
    assert result.entropy <= exact.entropy * rounding and exact.entropy <= result.solver.bound * rounding
    assert result.solver.gap == pytest.approx(result.solver.bound / result.entropy - 1, abs=1e-12)
    assert result.solver.bound == pytest.approx(exact.solver.bound, rel=1e-9)
    assert exact.architecture == small_design().architecture


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


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"eps": 0}, "scoring.merino.eps is "),
        ({"attention_weight": 0, "ffn_weight": 0}, "scoring.merino: .*make every score 0"),
        ({"gamma": "none"}, "scoring.merino.gamma is "),
        ({"color": 1}, "scoring.merino.color: unknown key"),
    ],
)
def test_a_bad_scoring_block_is_told_with_the_file(wrong, expected, tmp_path):
    content = json.loads(small_design(scoring=MERINO).to_json())
    content["scoring"].update(wrong)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    with pytest.raises(MerinoError, match=rf"mine\.json is not a design\.json: .*{expected}"):
        load_design(path)


def test_a_design_is_read_without_torch_and_scipy():
    code = "import sys, merino_edge.design.design_file as _; print({'torch', 'scipy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


@pytest.mark.parametrize("name", SCORES)
def test_a_design_keeps_the_named_parameters_of_its_score(name):
    result = small_design(scoring=SCORES[name])
    assert json.loads(result.to_json())["scoring"] == SCORES[name].model_dump()
    assert (result.loss_ratio is None) == (name != "measured")


def test_a_loss_ratio_is_of_the_scores_and_its_interval_of_the_laws_constants():
    result = small_design(scoring=MEASURED)
    opt = result.loss_ratio.opt_350m
    other = existing_score(model("opt-350m").geometry, 4, MEASURED)
    assert opt.value == pytest.approx((result.entropy / other) ** -MEASURED.alpha)
    assert opt.low < opt.value < opt.high and result.loss_ratio.uniform.value < 1
    steep = MEASURED.model_copy(update={"alpha": CONSTANTS["alpha"].high})
    ratio = existing_score(result.architecture, 4, steep) / existing_score(model("opt-350m").geometry, 4, steep)
    assert opt.low <= ratio**-steep.alpha <= opt.high


@pytest.mark.parametrize("text", ["", "{", "[]", "\udc00", "[" * 100000, '{"a": 1, "a": 1}'])
def test_what_is_no_design_is_refused(tmp_path, text):
    path = tmp_path / "design.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(MerinoError, match=r"design\.json is not (a design\.json|JSON that can be read)"):
        load_design(path)


def test_an_absent_design_is_refused(tmp_path):
    with pytest.raises(MerinoError, match=r"cannot read .*absent\.json"):
        load_design(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"precision": "int3"}, "--precision int3"),
        ({"context": 1, "prompt": 1}, "--context 1 "),
        ({"context": 131_073}, "--context 131073 "),
        ({"prompt": 257}, "--prompt 257 "),
        ({"prompt": 0}, "--prompt 0 "),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(request_, expected):
    with pytest.raises(MerinoError, match=expected):
        small_design(**request_)
