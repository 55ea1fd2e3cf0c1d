"""The board's sampler against transformers' own warpers: the same tokens are kept, with the same probabilities."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from merino_runtime.generation.sampler import Sampler, candidates
from merino_runtime.sampling import Sampling

LOGITS = st.one_of(
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=40, unique=True),
    st.integers(0, 2**32 - 1).map(lambda seed: (np.random.RandomState(seed).randn(3000) * 2).tolist()),
)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.floats(0.1, 5),
    top_k=st.one_of(st.just(0), st.integers(1, 60)),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 1)),
    min_p=st.one_of(st.just(0.0), st.floats(0, 1)),
)
UNCUT = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)


def warped(logits, sampling, order=("temperature", "top_k", "top_p", "min_p")):
    """Probabilities [vocab] after transformers' warpers, by default in the order of its `generate`."""
    warpers = {
        "temperature": TemperatureLogitsWarper(sampling.temperature),
        "top_k": TopKLogitsWarper(sampling.top_k) if sampling.top_k else None,
        "top_p": TopPLogitsWarper(sampling.top_p) if sampling.top_p < 1 else None,
        "min_p": MinPLogitsWarper(sampling.min_p),
    }
    scores = torch.tensor([logits], dtype=torch.float64)
    for name in order:
        scores = warpers[name](None, scores) if warpers[name] else scores
    return scores.softmax(-1)[0].numpy()


def sampled(logits, sampling):
    ids, kept = candidates(np.array(logits), sampling)
    probabilities = np.zeros(len(logits))
    probabilities[ids] = kept
    return probabilities


@pytest.mark.parametrize(("sampling", "other_order", "kept", "kept_otherwise"), [
    (Sampling(2.0, 0, 0.65, 0.0), ("top_k", "top_p", "min_p", "temperature"), 3, 2),  # llama.cpp's, as documented
    (Sampling(2.0, 0, 1.0, 0.5), ("top_k", "top_p", "min_p", "temperature"), 4, 2),
    (Sampling(2.0, 2, 0.5, 0.0), ("temperature", "top_p", "top_k", "min_p"), 1, 2),
])  # fmt: skip
def test_the_order_is_that_of_transformers_generate(sampling, other_order, kept, kept_otherwise):
    logits = np.log([0.4, 0.3, 0.15, 0.102, 0.048]).tolist()
    np.testing.assert_allclose(sampled(logits, sampling), warped(logits, sampling))
    assert (sampled(logits, sampling) > 0).sum() == kept
    assert (warped(logits, sampling, other_order) > 0).sum() == kept_otherwise


@given(LOGITS, SAMPLINGS)
def test_the_kept_tokens_and_their_probabilities_are_those_of_transformers(logits, sampling):
    expected = warped(logits, sampling)
    shares = [warped(logits, sampling._replace(top_p=sampling.top_p + off)) for off in (-1e-9, 1e-9)
              if 0 < sampling.top_p + off < 1]  # fmt: skip
    assume(all(((share > 0) == (expected > 0)).all() for share in shares))  # rounding decides at the very boundary
    relative = np.exp((np.array(logits) - max(logits)) / sampling.temperature)
    assume(not (np.abs(relative - sampling.min_p) < 1e-12).any())
    np.testing.assert_allclose(sampled(logits, sampling), expected, rtol=1e-9, atol=1e-15)


def test_equal_logits_differ_as_documented():
    """transformers keeps all tokens that equal the k-th, we keep k."""
    logits, sampling = [1.0, 1.0, 1.0, 0.0], UNCUT._replace(top_k=2)
    assert (warped(logits, sampling) > 0).sum() == 3 and (sampled(logits, sampling) > 0).sum() == 2


def test_draws_have_the_frequencies_of_transformers_probabilities():
    logits, draws = np.log([0.5, 0.3, 0.15, 0.05]).tolist(), 20000
    for sampling in (UNCUT._replace(temperature=0.7, seed=7), Sampling(top_k=3, seed=7)):
        sampler = Sampler(sampling)
        result = np.bincount([sampler.sample(np.array(logits)) for _ in range(draws)], minlength=4) / draws
        np.testing.assert_allclose(result, warped(logits, sampling), atol=0.015)  # four standard deviations
