"""The measured score: its law, and the term of each axis against the records that the constants come from."""

import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merino_edge.design.axes import attention, ffn, tokens, vocabulary, weight_format
from merino_edge.design.designer import design
from merino_edge.design.existing import existing_score, geometry_loss
from merino_edge.design.law import effective_weights, ln_loss
from merino_edge.design.score import CONSTANTS, MEASURED, MERINO, MeasuredScoring
from merino_edge.families.designed import Architecture, Block
from merino_edge.families.operators import CPU_FORMATS
from merino_edge.families.zoo import model
from merino_edge.profiles.reading import load_profile
from merino_runtime.errors import MerinoError

ROOT = Path(__file__).resolve().parents[2]
VALUES = MEASURED.constants


def score(weights, layers, terms=0.0, constants=VALUES):
    return effective_weights(ln_loss(weights, layers, terms, constants), constants)


def test_the_best_aspect_ratio_is_the_constants():
    """Decoders of 100 M weights: the best width over depth is e^a*, but for whole layers."""
    best = max(range(2, 49), key=lambda layers: score(1e8, layers))
    width_over_depth = math.sqrt(1e8 / 12 / best) / best
    assert abs(math.log(width_over_depth) - VALUES["aspect"]) < 1.5 * math.log((best + 1) / best)


@given(st.floats(1e4, 1e10), st.floats(1.01, 3), st.integers(1, 64))
def test_more_weights_in_as_many_layers_score_more(weights, more, layers):
    assert score(weights * more, layers) > score(weights, layers)


def test_twice_the_score_is_two_to_the_minus_alpha_of_the_loss():
    one, other = ln_loss(1e6, 8, 0.01, VALUES), ln_loss(5e6, 12, -0.02, VALUES)
    ratio = effective_weights(other, VALUES) / effective_weights(one, VALUES)
    assert math.exp(other - one) == pytest.approx(ratio ** -VALUES["alpha"])


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


def test_layers_count_the_same_in_one_block_or_in_two():
    two = Architecture(blocks=(decoder(depth=2).blocks[0], decoder(depth=4).blocks[0]), vocab=4096, context=64)
    assert geometry_loss(two, VALUES) == pytest.approx(geometry_loss(decoder(), VALUES), rel=1e-12)


def test_a_published_gated_ffn_is_seen():
    gated = model("smollm2-135m").geometry
    plain = geometry_loss(gated, {**VALUES, "gate": 0.0})
    assert geometry_loss(gated, VALUES) == pytest.approx(plain + VALUES["gate"])
    opt = model("opt-350m").geometry
    assert geometry_loss(opt, VALUES) == geometry_loss(opt, {**VALUES, "gate": 0.0})


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


def test_fewer_bits_cost_loss():
    assert weight_format.term("fp32", VALUES) == weight_format.term("fp16", VALUES) == 0
    assert weight_format.term("int8", VALUES) == pytest.approx(0.00018, abs=2e-5)
    assert weight_format.term("int4", VALUES) == pytest.approx(0.0088, abs=2e-4)
    assert set(weight_format.PERPLEXITY) == set(CPU_FORMATS)
    assert attention.cache_term(None, VALUES) == attention.cache_term("int8", VALUES) == 0
    assert attention.cache_term("int4", VALUES) > weight_format.term("int4", VALUES)


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


def test_an_ffn_whose_rows_are_no_groups_is_left_out():
    assert ffn.fits(32, 1.0) and not ffn.fits(32, 1.5) and ffn.fits(64, 1.5)


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
