"""The comparison score across vocabularies and formats: the numbers of the records, and no others."""

import json
import math
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merino_edge.design.presets import PRESETS, table
from merino_edge.design.score import MEASURED, SCORES, MeasuredScoring, MerinoScoring
from merino_edge.design.space import Space
from merino_edge.design.variants import (
    BYTES_PER_TOKEN,
    PERPLEXITY,
    Variant,
    bytes_per_token,
    comparison_factor,
    embedding_share,
    equivalent_parameters,
)
from merino_edge.families.operators import CPU_FORMATS
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.formats import fast_formats
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.reading import load_profile

BOARD_MODEL = cost_model(load_profile("raspberry-pi-4"), InferenceShape("int8", 128, 64))
ROOT = Path(__file__).resolve().parents[2]


def test_bytes_per_token_are_the_measured_ones():
    record = json.loads((ROOT / "bench/results/fertility.json").read_text())
    measured = {row["vocab"]: row["bytes_per_token"] for row in record["trained"]}
    assert {257: 1.0, **measured} == BYTES_PER_TOKEN
    for vocab, value in measured.items():
        assert bytes_per_token(vocab) == pytest.approx(value, rel=1e-12)


@given(st.integers(2, 1_000_000), st.integers(1, 1000))
def test_a_larger_vocabulary_never_lowers_the_comparison_score(vocab, more):
    assert 1 <= bytes_per_token(vocab) <= bytes_per_token(vocab + more) <= BYTES_PER_TOKEN[50257]


@given(st.floats(1e5, 1e9), st.integers(257, 200_000))
def test_the_comparison_score_of_the_measured_law_rises_with_the_score_and_is_inverted(score, vocab):
    variant = Variant(Space(vocab=vocab), BOARD_MODEL, law=MEASURED)
    assert variant.score_of(variant.compared(score)) == pytest.approx(score, rel=1e-9)
    assert variant.compared(1.01 * score) > variant.compared(score)


@pytest.mark.parametrize(("weights", "best"), [(1e6, 170e3), (10e6, 1.16e6), (100e6, 7.95e6)])
def test_an_embedding_of_fewer_weights_than_published_as_best_loses_and_of_more_gains_nothing(weights, best):
    width = (weights * math.exp(MEASURED.aspect) / 12) ** (1 / 3)  # of a plain decoder of the best depth
    around = [embedding_share(round(share * best / width), weights, MEASURED) for share in (0.5, 0.9, 1.1, 4)]
    assert around[0] < around[1] < 1 and around[2:] == [1, 1]
    # and what it gives up for more layers is not worth it
    assert (weights + 0.1 * best) * around[1] == pytest.approx(weights, rel=2e-3)
    assert (weights + 0.5 * best) * around[0] < weights


def test_fewer_bits_lower_the_comparison_score():
    assert equivalent_parameters("fp32") == 1
    assert equivalent_parameters("int8") == pytest.approx(0.9975, abs=2e-4)
    assert equivalent_parameters("int4") == pytest.approx(0.890, abs=5e-4)
    assert comparison_factor(4096, "int4") == bytes_per_token(4096) * equivalent_parameters("int4")
    assert set(PERPLEXITY) == set(CPU_FORMATS)


def test_any_format_means_those_that_the_board_is_fast_at():
    assert fast_formats(load_profile("jetson-nano").with_backend("onnxruntime")) == ["fp32", "int8", "int4"]
    assert fast_formats(load_profile("raspberry-pi-4")) == ["fp32", "int8", "int4"]


@pytest.mark.slow
def test_the_table_of_presets_is_what_the_search_finds():
    text = (ROOT / "docs/search.md").read_text()
    assert table() in text
    assert [preset.flops_g for preset in PRESETS.values()] == [60, 110, 160]


def test_every_parameter_of_the_score_is_documented_with_its_mark():
    text = (ROOT / "docs/search.md").read_text()
    parameters = {*MeasuredScoring.model_fields, *MerinoScoring.model_fields} - {"name", "gamma"}
    for name in (*parameters, *SCORES, "--steps", "--population", "--parents"):
        assert re.search(rf"\| `{name}`.*\| (known|recalled|ours|this project's|the same)", text), name
    for name in parameters:
        values = {getattr(scoring, name) for scoring in SCORES.values() if hasattr(scoring, name)}
        shown = re.search(rf"\| `{name}` \| (\S+) ", text)[1]
        assert values == {float(Fraction(shown))}, name
