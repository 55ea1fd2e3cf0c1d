"""Entropy of random matrices: the table, the law for large ones, the formula, and the score made of them."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from merino_edge.design import entropy
from merino_edge.design.entropy import limit_entropy, linear_entropy, sampled_entropy
from merino_edge.design.score import MERINO, SCORES, block_score, score_named
from merino_edge.design.space import Space
from merino_edge.families.designed import Block
from merino_runtime.errors import MerinoError

PAPERS = {name: scoring for name, scoring in SCORES.items() if name != "measured"}

SIDES = st.sampled_from(range(32, 2049, 16))


def test_the_table_covers_the_space_and_agrees_with_the_law():
    """Within 0.1 % from 64 channels on: the law is exact for infinite matrices, the table for these."""
    table = entropy.table()
    space = Space()
    assert {(width, round(width * ratio)) for width in space.widths for ratio in space.ffn_ratios} <= set(table)
    apart = {sides: value / limit_entropy(*sides) - 1 for sides, value in table.items() if sides[0] >= 64}
    assert len(apart) > 200
    assert {sides: error for sides, error in apart.items() if abs(error) > 1e-3} == {}


@pytest.mark.parametrize("sides", [(64, 64), (96, 240), (128, 320)])
def test_the_table_is_what_sampling_gives(sides):
    assert entropy.table()[sides] == pytest.approx(sampled_entropy(*sides), abs=1e-4)


@pytest.mark.parametrize("eps", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 16), (24, 60), (40, 20), (48, 48)])
def test_sampling_gives_the_sum_over_singular_values(inputs, outputs, eps):
    """E[sum log(1 + s^2 / eps^2)] by SVD of other draws, within four standard errors."""
    draws = np.random.default_rng(1234).standard_normal((3000, inputs, outputs))
    values = np.linalg.svd(draws, compute_uv=False)
    sums = np.log1p(values**2 / eps**2).sum(axis=1)
    samples = entropy.TABLE_SAMPLES * (512 // min(inputs, outputs)) ** 2
    error = sums.std() * (1 / len(sums) + 1 / samples) ** 0.5
    assert sampled_entropy(inputs, outputs, eps=eps) == pytest.approx(sums.mean(), abs=4 * error)


def test_sampling_is_repeatable_and_symmetric():
    assert sampled_entropy(64, 96, seed=3) == sampled_entropy(96, 64, seed=3)
    assert sampled_entropy(64, 96, seed=3) != sampled_entropy(64, 96, seed=4)


@given(SIDES, SIDES, st.sampled_from([16, 32, 160]), st.sampled_from([0.25, 1.0, 4.0]))
def test_entropy_grows_with_either_side_and_falls_with_noise(inputs, outputs, more, eps):
    here = linear_entropy(inputs, outputs, eps)
    assert here == linear_entropy(outputs, inputs, eps) > 0
    assert linear_entropy(inputs + more, outputs, eps) > here < linear_entropy(inputs, outputs + more, eps)
    assert linear_entropy(inputs, outputs, 2 * eps) < here


def test_gamma_off_literal_and_inverse():
    width, ffn_width, depth = 256, 384, 3
    layer = 0.6 * 4 * linear_entropy(width, width) + 0.4 * 2 * linear_entropy(width, ffn_width)

    def score(depth=depth, **keys):
        return block_score(width, ffn_width, depth, False, MERINO.model_copy(update=keys))

    assert score(gamma="off") == pytest.approx(depth * layer, rel=1e-12)
    assert score(gamma="literal") == pytest.approx((1 - depth / 16 / width) * depth * layer, rel=1e-12)
    assert score(gamma="inverse") == pytest.approx((1 - depth * 16 / width) * depth * layer, rel=1e-12)
    assert score() == score(gamma="inverse")
    assert score(gamma="inverse", depth=16) == score(gamma="inverse", depth=20) == 0
    assert score(gamma="inverse", beta=1 / 8) > score(gamma="inverse")
    attention_only = score(gamma="off", attention_weight=1, ffn_weight=0)
    assert attention_only == pytest.approx(12 * linear_entropy(256, 256), rel=1e-12)


@given(st.sampled_from(Space().widths), st.sampled_from([1, 2, 4, 8]), st.booleans(), st.sampled_from(list(PAPERS)))
def test_full_heads_score_as_before_and_fewer_heads_of_keys_less(width, kv_heads, shared, name):
    def score(kv_width):
        return block_score(width, 2 * width, 2, shared, SCORES[name], kv_width=kv_width)

    assert score(None) == score(width)
    assume(64 * kv_heads < width and score(width) > 0)
    assert score(32 * kv_heads) < score(64 * kv_heads) < score(width)
    no_keys = MERINO.model_copy(update={"gamma": "off"})
    lost = block_score(width, width, 1, False, no_keys) - block_score(width, width, 1, False, no_keys, kv_width=64)
    assert lost == pytest.approx(0.6 * 2 * (linear_entropy(width, width) - linear_entropy(width, 64)), rel=1e-9)


@pytest.mark.parametrize("sides", [(64, 512), (128, 1024), (32, 256)])
def test_the_law_gives_the_entropy_of_narrow_projections(sides):
    """Those of grouped heads, which the table does not hold: within 0.1 % of sampling."""
    assert sides not in entropy.table()
    assert linear_entropy(*sides) == pytest.approx(sampled_entropy(*sides), rel=1e-3)


def blocks():
    return st.builds(
        lambda width, ratio, depth: Block(width=width, ffn_ratio=ratio, depth=depth),
        st.sampled_from(Space().widths), st.sampled_from(Space().ffn_ratios), st.sampled_from(range(2, 11)),
    )


@given(blocks(), blocks())
def test_the_discount_on_shared_weights_decides_nothing_but_ties(one, other):
    def score(block, shared):
        return block_score(block.width, block.ffn_width, block.depth, shared, MERINO)

    assume(score(one, False) > 0)
    assert score(one, False) * (1 - 1e-4) <= score(one, True) < score(one, False)
    assume(score(one, False) > score(other, False) * (1 + 1e-4))
    assert score(one, True) > score(other, False)


def test_a_score_that_has_no_name_is_refused():
    assert {name: scoring.gamma for name, scoring in PAPERS.items()} == {
        "merino": "inverse", "merino-literal": "literal", "merino-off": "off",
    }  # fmt: skip
    assert list(SCORES) == ["measured", *PAPERS]
    assert score_named("merino-off") is SCORES["merino-off"]
    with pytest.raises(MerinoError, match="choose one of measured, merino, merino-literal, merino-off"):
        score_named("best")
