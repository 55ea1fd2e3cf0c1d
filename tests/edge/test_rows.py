"""Sequences that are decoded in one run: in each format a row's logits are its own, to the bit, and those of a step
alone but for rounding; what was computed ahead counts for nothing once a cache has changed. Sampling as transformers
does it."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from sample_models import small
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import Source
from merino_edge.families.designed import Architecture
from merino_runtime.backends import open_backend
from merino_runtime.errors import MerinoError
from merino_runtime.generation.sampler import Sampler, candidates
from merino_runtime.sampling import Sampling

VOCAB, CONTEXT, STEPS = 311, 160, 6
BLOCKS = [{"width": 128, "ffn_ratio": 1.0, "depth": 2, "kv_heads": 1}, {"width": 160, "ffn_ratio": 2.0, "depth": 1}]
DESIGNED = Architecture(blocks=BLOCKS, vocab=VOCAB, head_size=32, context=CONTEXT)
NORMED = small("gemma3_text", vocab=VOCAB, context=CONTEXT)  # norms of heads, windows
KINDS = {
    "fp32": (DESIGNED, ExportRequest()),
    "all logits in int8": (DESIGNED, ExportRequest(precision="int8", all_logits=True)),
    "int4 over int8": (DESIGNED, ExportRequest(precision="int4", kv="int8")),
    "normed heads over int4": (NORMED, ExportRequest(precision="int8", kv="int4")),
    "int8": (DESIGNED, ExportRequest(precision="int8")),
    "normed heads over int8": (NORMED, ExportRequest(precision="int4", kv="int8")),
}
NOT_FOR_ROWS = {
    "portable": ExportRequest(dialect="portable"), "all logits in fp32": ExportRequest(all_logits=True),
}  # fmt: skip


@pytest.fixture(scope="module")
def opened(decoder, tmp_path_factory):
    def open_one(arch, request):
        source = Source("rows", arch, decoder(arch, 7), "random", "drawn", (), None)
        return open_backend(export(source, tmp_path_factory.mktemp("rows") / "bundle", request).bundle)

    return open_one


def prompt(seed, count):
    return np.random.default_rng(seed).integers(0, VOCAB, count).tolist()


def stepped(rows, ids, together=True):
    """Logits [rows, vocab] of a step of each."""
    if together:
        assert rows[0].step_ahead(list(zip(rows, ids, strict=True))) == rows
    return np.stack([row.step(token) for row, token in zip(rows, ids, strict=True)])


def filled(rows, seeds, counts):
    for row, seed, count in zip(rows, seeds, counts, strict=True):
        row.truncate(0)
        row.prefill(prompt(seed, count))


@pytest.mark.parametrize("kind", KINDS)
def test_a_rows_logits_are_its_own(opened, kind):
    origin = opened(*KINDS[kind])
    rows = origin.rows(4)
    counts = (1, 130, 40, 7)
    filled(rows, range(4), counts)
    alone = [stepped(rows, prompt(step, 4), together=False) for step in range(STEPS)]
    filled(rows, range(4), counts)
    together = [stepped(rows, prompt(step, 4)) for step in range(STEPS)]
    caches = [row.filled() for row in rows]
    for mine in range(4):
        others = [mine == row for row in range(4)]
        filled(rows, [row if own else 9 for row, own in enumerate(others)],
               [counts[row] if own else 90 - 20 * row for row, own in enumerate(others)])  # fmt: skip
        for step in range(STEPS):
            ids = [token if own else 5 for token, own in zip(prompt(step, 4), others, strict=True)]
            np.testing.assert_array_equal(stepped(rows, ids)[mine], together[step][mine])
        assert rows[mine].ids == caches[mine][0]
        for name, entries in rows[mine].filled()[1].items():
            np.testing.assert_array_equal(entries, caches[mine][1][name])
    error = np.abs(np.stack(together) - alone).max() / np.abs(alone).max()
    assert error < (1e-5 if kind == "fp32" else 0.2)
    assert np.square(np.stack(together) - alone).mean() < (1e-10 if kind == "fp32" else 1e-3) * np.square(alone).mean()


@pytest.mark.parametrize("kind", NOT_FOR_ROWS)
def test_graphs_whose_rows_would_depend_on_each_other_decode_in_turn(opened, kind):
    origin = opened(DESIGNED, NOT_FOR_ROWS[kind])
    rows = origin.rows(2)
    filled(rows, (1, 2), (5, 9))
    assert rows[0].step_ahead([(row, 3) for row in rows]) == []
    expected = stepped(rows, (3, 4), together=False)
    filled(rows, (1, 2), (5, 9))
    np.testing.assert_array_equal(stepped(rows, (3, 4), together=False), expected)


def test_what_was_computed_ahead_counts_for_the_cache_that_it_was_computed_for(opened):
    origin = opened(*KINDS["fp32"])
    rows = origin.rows(6)
    filled(rows, range(6), (5,) * 6)
    alone = stepped(rows, range(6), together=False)
    for row in rows:
        row.truncate(5)
    most = 1e-5 * np.abs(alone).max()
    assert rows[0].step_ahead([(rows[0], 0), (rows[3], 3), (rows[1], 1)]) == [rows[0], rows[1], rows[3]]
    np.testing.assert_allclose(rows[0].step(0), alone[0], atol=most)
    rows[3].truncate(4)
    rows[3].step(7)  # in place of the id behind which it was computed
    origin.prefill([*prompt(3, 5)[:4], 7])
    np.testing.assert_allclose(rows[3].step(3), origin.step(3), atol=most)
    other = rows[1].step(2).copy()  # another id than was expected
    rows[1].truncate(5)
    np.testing.assert_array_equal(rows[1].step(2), other)
    assert rows[2].ids == prompt(2, 5)
    np.testing.assert_array_equal(rows[2].step(2), alone[2])  # it was idle in between
    assert rows[0].step_ahead([(rows[0], 1), (rows[5], 2)]) == []  # too far from each other
    with pytest.raises(MerinoError, match="token id 311"):
        rows[0].step_ahead([(rows[0], 1), (rows[1], VOCAB)])
    rows[1].close()
    rows[0].step_ahead([(rows[0], 1), (rows[2], 2)])
    rows[4].copy_prefix(rows[2], 4)
    assert rows[4].ids == prompt(2, 5)[:4]
    np.testing.assert_allclose(rows[4].prefill([prompt(2, 5)[4], 2]), alone[2], atol=most)


def test_a_row_whose_logits_are_not_finite_fails_alone(opened):
    origin = opened(*KINDS["fp32"])
    rows = origin.rows(3)
    filled(rows, range(3), (5, 6, 7))
    next(iter(rows[1].cache.values()))[:] = np.nan
    rows[0].step_ahead([(row, 1) for row in rows])
    assert np.isfinite(rows[0].step(1)).all() and np.isfinite(rows[2].step(1)).all()
    with pytest.raises(MerinoError, match="not finite"):
        rows[1].step(1)


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
