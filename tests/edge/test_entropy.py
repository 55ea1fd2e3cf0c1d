"""Entropy of random matrices: the formula against sampling, and the paper's score made of it."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from merino_edge.design.paper.entropy import linear_entropy
from merino_edge.design.paper.score import MERINO, block_score
from merino_edge.design.paper.space import PAPER_SPACE
from merino_edge.design.score import SCORES, score_named
from merino_edge.families.designed import Block
from merino_runtime.errors import MerinoError

SIDES = st.sampled_from(range(32, 2049, 16))


def sampled_entropy(inputs, outputs, eps=1.0):
    """The mean over drawn matrices of log det(I + W W^T / eps^2), the same sum without an SVD. A log determinant varies
    by about 1 whatever the size, so a small matrix is drawn more often."""
    small, large = sorted((inputs, outputs))
    rng = np.random.default_rng([small, large])
    draws = [rng.standard_normal((small, large)) for _ in range(8 * max(1, 512 // small) ** 2)]
    return np.mean([np.linalg.slogdet(np.eye(small) + draw @ draw.T / eps**2)[1] for draw in draws])


@pytest.mark.parametrize("sides", [(64, 64), (96, 240), (128, 320), (256, 256), (512, 1024), (64, 512)])
def test_the_formula_agrees_with_sampled_matrices(sides):
    """Within 0.1 %: it is exact for infinite matrices."""
    assert linear_entropy(*sides) == pytest.approx(sampled_entropy(*sides), rel=1e-3)


@pytest.mark.parametrize("eps", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 16), (24, 60), (40, 20), (48, 48)])
def test_sampling_gives_the_sum_over_singular_values(inputs, outputs, eps):
    """E[sum log(1 + s^2 / eps^2)] by SVD of other draws, within four standard errors."""
    draws = np.random.default_rng(1234).standard_normal((3000, inputs, outputs))
    sums = np.log1p(np.linalg.svd(draws, compute_uv=False) ** 2 / eps**2).sum(axis=1)
    samples = 8 * (512 // min(inputs, outputs)) ** 2
    error = sums.std() * (1 / len(sums) + 1 / samples) ** 0.5
    assert sampled_entropy(inputs, outputs, eps) == pytest.approx(sums.mean(), abs=4 * error)


@given(SIDES, SIDES, st.sampled_from([16, 32, 160]), st.sampled_from([0.25, 1.0, 4.0]))
def test_entropy_grows_with_either_side_and_falls_with_noise(inputs, outputs, more, eps):
    here = linear_entropy(inputs, outputs, eps)
    assert here == linear_entropy(outputs, inputs, eps) > 0
    assert linear_entropy(inputs + more, outputs, eps) > here < linear_entropy(inputs, outputs + more, eps)
    assert linear_entropy(inputs, outputs, 2 * eps) < here


def test_the_score_of_a_block():
    width, ffn_width, depth = 256, 384, 3
    layer = 0.6 * 4 * linear_entropy(width, width) + 0.4 * 2 * linear_entropy(width, ffn_width)

    def score(depth=depth, **keys):
        return block_score(width, ffn_width, depth, False, MERINO.model_copy(update=keys))

    assert score() == pytest.approx((1 - depth * 16 / width) * depth * layer, rel=1e-12)
    assert score(depth=16) == score(depth=20) == 0
    assert score(beta=1 / 8) > score()
    attention_only = score(beta=1e6, attention_weight=1, ffn_weight=0)
    assert attention_only == pytest.approx(12 * linear_entropy(256, 256), rel=1e-6)


@given(st.sampled_from(PAPER_SPACE.widths), st.sampled_from([1, 2, 4, 8]), st.booleans())
def test_fewer_kv_heads_score_less(width, kv_heads, shared):
    def score(kv_width):
        return block_score(width, 2 * width, 2, shared, MERINO, kv_width=kv_width)

    assert score(None) == score(width)
    assume(64 * kv_heads < width and score(width) > 0)
    assert score(32 * kv_heads) < score(64 * kv_heads) < score(width)


def blocks():
    return st.builds(
        lambda width, ratio, depth: Block(width=width, ffn_ratio=ratio, depth=depth),
        st.sampled_from(PAPER_SPACE.widths), st.sampled_from(PAPER_SPACE.ffn_ratios), st.sampled_from(range(2, 11)),
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
    assert list(SCORES) == ["measured", "merino"]
    assert score_named("merino") is MERINO
    with pytest.raises(MerinoError, match="choose one of measured, merino"):
        score_named("merino-off")
