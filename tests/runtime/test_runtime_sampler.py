"""The sampler against a naive reference that sorts everything."""
import math

import numpy as np
import pytest
from few_examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st

from merino_runtime.errors import MerinoError
from merino_runtime.generation.sampler import Sampler, _drawn, candidates, penalize
from merino_runtime.sampling import Sampling, check_sampling

FLAT = Sampling(1.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)
LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40)
WIDE_LOGITS = st.integers(0, 2 ** 32 - 1).map(lambda seed: (np.random.RandomState(seed).randn(3000) * 2).tolist())
SAMPLINGS = st.builds(
    Sampling, temperature=st.floats(0.05, 5), top_k=st.integers(0, 50), top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1), repetition_penalty=st.just(1.0), seed=st.integers(0, 2 ** 32 - 1),
    presence_penalty=st.just(0.0), frequency_penalty=st.just(0.0), logit_bias=st.just(()))


def reference_count(logits, sampling, top_p):
    """How many of the likeliest tokens survive top-k, top-p and min-p, in that order."""
    best = max(logits)
    weights = sorted((math.exp((logit - best) / sampling.temperature) for logit in logits), reverse=True)
    if sampling.top_k:
        weights = weights[:sampling.top_k]
    total, mass, kept = sum(weights), 0.0, []
    for weight in weights:
        kept.append(weight)
        mass += weight
        if top_p < 1 and mass >= top_p * total:
            break
    return len([weight for weight in kept if weight >= sampling.min_p])


@examples(100)
@given(st.one_of(LOGITS, WIDE_LOGITS), SAMPLINGS)
def test_the_kept_tokens_are_those_of_the_naive_reference(logits, sampling):
    ids, probabilities = candidates(np.array(logits), sampling)
    fewest = reference_count(logits, sampling, sampling.top_p - 1e-9)
    most = reference_count(logits, sampling, min(1, sampling.top_p + 1e-9))
    best = max(logits)
    weights = [math.exp((logit - best) / sampling.temperature) for logit in logits]
    assume(not any(abs(weight - sampling.min_p) < 1e-12 for weight in weights))  # rounding decides those
    assert fewest <= len(ids) <= most
    kept = [logits[token_id] for token_id in ids]
    assert kept == sorted(logits, reverse=True)[:len(ids)]
    assert len(set(ids.tolist())) == len(ids)
    assert probabilities.sum() == pytest.approx(1)
    expected = np.exp((np.array(kept) - max(kept)) / sampling.temperature)
    np.testing.assert_allclose(probabilities, expected / expected.sum(), rtol=1e-9)


@given(LOGITS, st.lists(st.integers(0, 39)))
def test_greedy_is_argmax_whatever_the_other_values(logits, prompt_ids):
    prompt_ids = [token_id for token_id in prompt_ids if token_id < len(logits)]
    sampler = Sampler(Sampling(temperature=0, top_k=3, top_p=0.5, seed=1), prompt_ids)
    assert sampler.sample(np.array(logits, dtype=np.float32)) == int(np.argmax(np.float32(logits)))


@given(LOGITS, SAMPLINGS)
def test_the_same_seed_draws_the_same(logits, sampling):
    one, other = Sampler(sampling), Sampler(sampling)
    array = np.array(logits)
    assert [one.sample(array) for _ in range(20)] == [other.sample(array) for _ in range(20)]


def test_the_frequencies_are_the_softmax_at_the_temperature():
    logits, temperature, draws = np.log([0.5, 0.3, 0.15, 0.05]), 0.7, 20000
    sampler = Sampler(Sampling(temperature, top_k=0, top_p=1.0, min_p=0.0, seed=7))
    result = np.bincount([sampler.sample(logits) for _ in range(draws)], minlength=4) / draws
    expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    np.testing.assert_allclose(result, expected, atol=0.015)  # four standard deviations


def test_a_draw_is_in_proportion_to_the_weights_and_never_past_the_last_one():
    assert [_drawn(np.array([1.0, 0.0, 3.0, 0.0]), uniform) for uniform in (0, 0.2, 0.25, 0.9, 1 - 2 ** -53, 1.0)] == [
        0, 0, 2, 2, 2, 2]


@pytest.mark.parametrize("temperature", [1e-300, 5e-324, 1e-30])
def test_a_tiny_temperature_is_greedy_and_warns_of_nothing(temperature, recwarn):
    sampler = Sampler(Sampling(temperature=temperature, seed=0))
    assert sampler.sample(np.array([1.0, 2.0, -1e30], dtype=np.float32)) == 1
    assert not recwarn.list


@given(LOGITS, st.floats(1, 10), st.data())
def test_the_penalty_divides_positive_and_multiplies_negative_logits_of_seen_ids(logits, penalty, data):
    seen = data.draw(st.sets(st.integers(0, len(logits) - 1)))
    before = np.array(logits)
    after = penalize(before, np.array(sorted(seen), dtype=np.int64), penalty)
    for token_id, (old, new) in enumerate(zip(logits, after)):  # noqa: B905, not in 3.6
        expected = old if token_id not in seen else (old / penalty if old > 0 else old * penalty)
        assert new == pytest.approx(expected)
    assert before.tolist() == logits  # the backend's view is left alone


def test_the_penalty_counts_prompt_and_output():
    greedy = Sampling(temperature=0, repetition_penalty=2.0)
    sampler = Sampler(greedy, prompt_ids=[0])
    logits = np.array([3.0, 2.5, 2.0])
    assert [sampler.sample(logits) for _ in range(2)] == [1, 2]  # 1.5 2.5 2.0, then 1.5 1.25 2.0


def test_presence_and_frequency_count_what_was_generated_and_the_bias_is_added():
    greedy = Sampling(temperature=0, presence_penalty=0.5, frequency_penalty=0.25)
    sampler = Sampler(greedy, prompt_ids=[0])  # which the prompt has, and which no penalty touches
    logits = np.array([3.0, 2.5, 2.0])
    assert [sampler.sample(logits) for _ in range(5)] == [0, 1, 0, 0, 2]  # of 0: 3, 2.25, 2, 1.75
    assert logits.tolist() == [3.0, 2.5, 2.0]
    assert Sampler(Sampling(temperature=0, logit_bias=((2, 1.5), (0, -100)))).sample(logits) == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_an_error(bad):
    with pytest.raises(MerinoError, match="id 1"):
        Sampler(Sampling(temperature=0)).sample(np.array([0.0, bad, 1.0]))


def test_every_value_out_of_range_is_named_in_one_error():
    with pytest.raises(MerinoError) as caught:
        check_sampling(Sampling(-1, -2, 0, 1.5, 0, -1, 3, -3, ((0, 101),)))
    for name in Sampling._fields:
        assert name in str(caught.value)


@pytest.mark.parametrize("field, value", [
    ("temperature", float("nan")), ("temperature", float("inf")), ("temperature", "hot"), ("top_k", 1.5),
    ("top_k", True), ("top_p", float("nan")), ("seed", 2 ** 32), ("seed", 1.0)])
def test_a_value_out_of_range_is_refused(field, value):
    with pytest.raises(MerinoError, match=field):
        check_sampling(Sampling()._replace(**{field: value}))
