"""From a board and budgets to design.json and back."""

import json
import math
import subprocess
import sys

import pytest

from merino_edge.calibration.probe import read_probe
from merino_edge.design.design_file import load_design, read_plan
from merino_edge.design.designer import design, design_by_paper
from merino_edge.design.existing import geometry_loss
from merino_edge.design.paper.space import PaperSpace
from merino_edge.design.score import CONSTANTS, MEASURED, MERINO
from merino_edge.design.space import Space
from merino_edge.families.zoo import model
from merino_edge.profiles.reading import load_profile
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
    for result in (small_design(), small_design(tokens=1e9), paper_design()):
        path = tmp_path / "design.json"
        path.write_text(result.to_json())
        assert load_design(path) == result
        content = json.loads(result.to_json())
        assert content["schema"] == 5
        assert set(content) == {
            "schema", "device", "backend", "architecture", "precision", "kv", "prompt", "budget", "searched",
            "predicted", "measured", "loss_ratio", "entropy", "scoring", "training", "considered", "solver",
        }
        assert set(content["architecture"]) == {
            "blocks", "vocab", "head_size", "context", "rope_theta", "rms_norm_eps", "width_change",
        }
        assert set(content["architecture"]["blocks"][0]) == {
            "width", "ffn_ratio", "depth", "shared", "kv_heads", "gated",
        }
        assert set(content["predicted"]) == {
            "decode_ms", "decode_ms_interval", "prefill_ms", "prefill_ms_interval", "memory_mb", "flops_g", "params",
            "weight_bytes", "kv_bytes", "file_mb", "j_per_token", "j_per_token_interval", "confidence", "provenance",
            "decode_threads", "prefill_threads",
        }
        assert set(content["solver"]) == {"name", "gap", "bound", "seconds", "seed", "members"}


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
        ({"color": 1}, "scoring.merino.color: unknown key"),
    ],
)
def test_a_bad_scoring_block_is_told_with_the_file(wrong, expected, tmp_path):
    content = json.loads(paper_design().to_json())
    content["scoring"].update(wrong)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    with pytest.raises(MerinoError, match=rf"mine\.json is not a design\.json: .*{expected}"):
        load_design(path)


def test_a_design_is_read_without_torch_and_scipy():
    code = "import sys, merino_edge.design.design_file as _; print({'torch', 'scipy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_a_design_keeps_the_constants_of_its_score():
    assert json.loads(small_design().to_json())["scoring"] == {"name": "measured", "constants": MEASURED.constants}
    assert small_design(tokens=1e9).scoring.constants == {**MEASURED.constants, "alpha": 0.035}
    assert json.loads(paper_design().to_json())["scoring"] == MERINO.model_dump()
    assert paper_design().loss_ratio is None


def test_a_loss_ratio_is_of_the_scores_and_its_interval_of_the_constants():
    result, reference = small_design(), model("opt-350m").geometry

    def ratio(constants):
        own = geometry_loss(result.architecture, constants, result.precision, result.kv)
        return math.exp(own - geometry_loss(reference, constants))

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


def test_an_absent_design_is_refused(tmp_path):
    with pytest.raises(MerinoError, match=r"cannot read .*absent\.json"):
        load_design(tmp_path / "absent.json")


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
