"""`merino-edge score`: of any source, without reading weights; every score, and costs where a board is named."""

import json
import math

import pytest
import torch
from typer.testing import CliRunner

from merino_edge.cli.app import app
from merino_edge.design.axes import vocabulary
from merino_edge.design.existing import existing_score
from merino_edge.design.law import CONSTANTS
from merino_edge.design.score import MEASURED, MERINO, SCORES
from merino_edge.families.designed import Architecture
from merino_edge.families.hugging_face import build_model, save_model
from merino_edge.families.zoo import model
from merino_runtime.errors import MerinoError

BLOCKS = [{"width": 64, "ffn_ratio": 1.0, "depth": 2, "shared": True}, {"width": 128, "ffn_ratio": 2.0, "depth": 1}]
ARCH = Architecture(blocks=BLOCKS, vocab=300, head_size=32, context=64)


def scored(*arguments):
    result = CliRunner().invoke(app, ["score", "--json", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return json.loads(result.output)


def test_a_source_scores_the_same_in_each_form_and_no_weights_are_read(tmp_path):
    plan, folder = tmp_path / "arch.json", tmp_path / "checkpoint"
    plan.write_text(ARCH.model_dump_json())
    torch.manual_seed(0)
    save_model(build_model(ARCH), folder)
    (folder / "model.safetensors").write_bytes(b"damaged")
    result = scored(plan, folder, "--device", "raspberry-pi-4")
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


def test_opt_350m_has_nearly_the_best_aspect_ratio():
    """1,024 channels over 24 layers: ln 42.7 beside a* of 3.76. What is left is its vocabulary."""
    [row] = scored("opt-350m")["sources"]
    of_vocab = vocabulary.term(50272, 512, row["weights"], MEASURED.constants)
    score = row["weights"] * math.exp(-of_vocab / MEASURED.constants["alpha"])
    assert row["scores"]["measured"]["value"] == pytest.approx(score, rel=1e-3)
    assert CONSTANTS["aspect"].low < 3.754 < CONSTANTS["aspect"].high


@pytest.mark.parametrize(("arguments", "message"), [
    (("nothing-here",), "'nothing-here' names no model"),
    (("someone/something",), "not in the hub's cache here, so its config.json with the geometry is missing"),
    (("opt-125m", "--device", "raspberry-pi-4", "--context", "4096"), "takes 2 to 2048 tokens"),
])  # fmt: skip
def test_what_cannot_be_scored_says_why(arguments, message):
    with pytest.raises(MerinoError) as refused:
        scored(*arguments)
    assert message in str(refused.value)
