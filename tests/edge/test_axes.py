"""The measured score: its law, each axis's term against the records of its constants, and `merino-edge score`."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from merino_edge.cli.app import app
from merino_edge.design.axes import tokens, vocabulary
from merino_edge.design.designer import design
from merino_edge.design.existing import existing_score
from merino_edge.design.law import effective_weights, ln_loss
from merino_edge.design.score import CONSTANTS, MEASURED, MERINO, SCORES, MeasuredScoring
from merino_edge.families.designed import Architecture, Block
from merino_edge.families.hugging_face import build_model, save_model
from merino_edge.families.zoo import model
from merino_edge.profiles.reading import load_profile
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
    record = json.loads((ROOT / "bench/results/fertility.json").read_text())
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
    record = json.loads((ROOT / "bench/results/vocabulary.json").read_text())["summary"]
    curve = record["curve"], *record["curve_interval"]
    assert vocabulary.CONSTANTS["vocab_curve"][:3] == pytest.approx(curve, abs=1e-4)
    assert vocabulary.CONSTANTS["vocab_best"][1:3] == pytest.approx(record["best_interval"], rel=5e-3)
    assert vocabulary.CONSTANTS["vocab_exponent"][1:3] == pytest.approx(record["exponent_interval"], abs=5e-3)


def test_alpha_and_the_best_size_follow_from_the_tokens():
    published = [tokens.alpha(count) for count in tokens.ALPHA_BY_TOKENS]
    assert published == pytest.approx(list(tokens.ALPHA_BY_TOKENS.values())) == sorted(published)
    assert tokens.alpha(1) == 0.016 and tokens.alpha(1e15) == 0.068
    assert all(CONSTANTS["alpha"].low <= value <= CONSTANTS["alpha"].high for value in published)
    assert tokens.worth(1e9, 1) == 1e9 and 3.7e9 < tokens.worth(1e9, 4) < 3.8e9 and tokens.worth(1e9, 1e9) < 16.4e9
    assert tokens.most_weights(20e9) == pytest.approx(tokens.worth(20e9) / 20)


def test_the_tokens_of_a_text_are_counted_by_its_bytes(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"x" * 37294)
    assert tokens.count([path], 8192) == 10000 and tokens.count([path, path], 8192) == 20000
    for wrong, message in ((tmp_path / "none", "is no file"), (tmp_path, "is no file")):
        with pytest.raises(MerinoError, match=message):
            tokens.count([wrong], 8192)
    path.write_bytes(b"")
    with pytest.raises(MerinoError, match="is empty"):
        tokens.count([path], 8192)


@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf])
def test_a_number_of_tokens_that_no_text_has_is_refused(wrong):
    with pytest.raises(MerinoError, match="--tokens .* is not allowed"):
        design(load_profile("raspberry-pi-4"), {"decode_ms": 50}, context=64, prompt=32, tokens=wrong)


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


def test_every_constant_is_in_the_docs_with_its_value_and_interval():
    text = (ROOT / "docs/search.md").read_text()
    for name, constant in CONSTANTS.items():
        found = re.search(rf"\| `{name}` \| (\S+)(?: M)? \|([^|]*)\|", text)
        assert found, name
        scale = 1e6 if constant.value > 1e5 else 1
        assert float(found[1]) == pytest.approx(constant.value / scale, rel=0.03), name
        shown = [float(word) for word in re.findall(r"-?[\d.]+", found[2])]
        known = [bound / scale for bound in (constant.low, constant.high) if bound is not None]
        assert shown == pytest.approx(known, rel=0.05), name
    for name in set(type(MERINO).model_fields) - {"name"}:
        assert f"`{name}`" in text, name


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


@pytest.mark.parametrize(("arguments", "message"), [
    (("nothing-here",), "'nothing-here' names no model"),
    (("someone/something",), "not in the hub's cache here, so its config.json with the geometry is missing"),
    (("opt-125m", "--device", "raspberry-pi-4", "--context", "4096"), "takes 2 to 2048 tokens"),
])  # fmt: skip
def test_what_cannot_be_scored_says_why(arguments, message):
    with pytest.raises(MerinoError) as refused:
        scored(*arguments)
    assert message in str(refused.value)
