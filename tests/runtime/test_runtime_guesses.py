"""Guesses from repetitions in the text: the answer is the same with and without them, it takes fewer runs, and texts
that do not repeat lose little."""
import json

import numpy as np
import pytest
from few_examples import examples
from hypothesis import given
from hypothesis import strategies as st
from test_runtime_generate import TOKENIZER

from merino_runtime.backends.backend import Backend
from merino_runtime.errors import MerinoError
from merino_runtime.generation.constraints import compile_schema
from merino_runtime.generation.generate import Done, Generation, Token
from merino_runtime.generation.guesses import CREDIT_PER_TOKEN, FIRST_CREDIT, MOST, ROW_COST, Guesses
from merino_runtime.generation.text import TextStream
from merino_runtime.sampling import GREEDY, GenerateOptions, Sampling


class Chain(Backend):
    """Logits depend on the last `order` ids alone, so texts repeat themselves; with a large `order` they do not."""
    vocab = 257
    verifies = True

    def __init__(self, seed=0, order=2, context=96, peak=6.0):
        self.context, self.heard, self.order, self.peak = context, [], order, peak
        self.seed, self.steps, self.rows = seed, 0, []

    @property
    def ids(self):
        return self.heard

    def _after(self):
        ids = self.heard[-self.order:] if self.order else [len(self.heard), *self.heard]
        logits = np.random.RandomState(hash((self.seed, *ids)) % 2 ** 32).randn(self.vocab)
        return (logits * self.peak).astype(np.float32)

    def prefill(self, ids):
        self.heard += list(ids)
        self.changes += 1
        assert len(self.heard) <= self.context
        return self._after()

    def step(self, token_id):
        self.steps += 1
        return self.prefill([token_id])

    def verify(self, ids):
        assert 2 <= len(ids) <= 1 + MOST
        self.rows.append(len(ids) - 1)
        return np.array([self.prefill([token_id]) for token_id in ids])

    def truncate(self, length):
        assert length <= len(self.heard)
        self.changes += 1
        del self.heard[length:]


def both(make, prompt_ids, stops=(), constraint=None, **options):
    """(backend, tokens, done) without and with guesses."""
    results = []
    for lookup in (False, True):
        backend = make()
        events = list(Generation(backend, prompt_ids, GenerateOptions(lookup=lookup, **options), stop_ids=[0],
                                 stream=TextStream(TOKENIZER, stops), constraint=constraint))
        results.append((backend, [event for event in events if isinstance(event, Token)], events[-1]))
        assert isinstance(events[-1], Done)
    return results


def assert_same(results):
    (plain, tokens, done), (guessing, same_tokens, same_done) = results
    assert tokens == same_tokens and plain.heard == guessing.heard
    assert (done.stop_reason, done.tokens, done.shifts) == (same_done.stop_reason, same_done.tokens, same_done.shifts)
    assert not plain.rows and done.guessed == 0


PROMPTS = st.lists(st.integers(1, 6), min_size=1, max_size=40)


@examples(200)
@given(PROMPTS, st.integers(0, 99), st.integers(0, 3), st.sampled_from([0.0, 0.3, 0.9]),
       st.sampled_from(["stop", "shift"]), st.integers(1, 90))
def test_the_answer_is_the_same_with_and_without_guesses(prompt_ids, seed, order, temperature, overflow, count):
    sampling = Sampling(temperature=temperature, seed=seed, repetition_penalty=1.0 + (seed % 3) / 5)
    assert_same(both(lambda: Chain(seed, order), prompt_ids, sampling=sampling, max_new_tokens=count,
                     overflow=overflow, top=None if seed % 4 else 2))


@examples(60)
@given(PROMPTS, st.integers(0, 99))
def test_stop_strings_end_it_at_the_same_place(prompt_ids, seed):
    stops = [TOKENIZER.bytes_of(seed + 20).decode("latin-1"), "ab"]
    assert_same(both(lambda: Chain(seed, 1), prompt_ids, stops=stops, sampling=GREEDY, max_new_tokens=60))


@examples(40)
@given(st.integers(0, 999), st.sampled_from([0.0, 1.0]))
def test_a_constraint_holds_with_guesses(seed, temperature):
    """The tokens that it forces may be guessed too."""
    schema = {"type": "array", "minItems": 3, "maxItems": 6, "items": {
        "type": "object", "properties": {"name": {"enum": ["on", "off", "dim"]}, "level": {"type": "integer"}},
        "required": ["name", "level"], "additionalProperties": False}}
    constraint = compile_schema(schema, TOKENIZER, [256])
    results = []
    for lookup in (False, True):
        options = GenerateOptions(180, Sampling(temperature=temperature, seed=seed), lookup=lookup)
        backend = Chain(seed, 1, context=256)
        *tokens, done = Generation(backend, TOKENIZER.encode('[{"name":"on"'), options, stop_ids=[256],
                                   stream=TextStream(TOKENIZER), constraint=constraint)
        results.append(("".join(token.text for token in tokens), done.stop_reason))
        assert done.tokens == len(tokens) >= done.forced + done.guessed
    assert results[0] == results[1]
    if results[0][1] == "eos":
        assert json.loads(results[0][0])


def test_a_text_that_repeats_takes_fewer_runs():
    (_, _, _), (backend, tokens, done) = both(lambda: Chain(3, 1, context=400), [1, 2], sampling=GREEDY,
                                              max_new_tokens=300)
    runs = backend.steps + len(backend.rows)
    if done.stop_reason == "length":
        assert runs < 0.3 * len(tokens)
    assert done.guessed == done.tokens - 1 - runs


@examples(50)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=200), st.integers(0, 999), st.integers(0, 2))
def test_guesses_cost_at_most_their_credit(prompt_ids, seed, order):
    """Rows times their cost stay below what right guesses saved, the first credit and a share of the tokens."""
    sampling = Sampling(temperature=1.0, top_k=3, seed=seed)
    backend = Chain(seed, order, context=512, peak=0.1)
    *_, done = Generation(backend, prompt_ids, GenerateOptions(300, sampling), stream=TextStream(TOKENIZER))
    assert ROW_COST * sum(backend.rows) <= FIRST_CREDIT + CREDIT_PER_TOKEN * done.tokens + done.guessed + 1e-9


def test_sampled_tokens_keep_their_distribution():
    """Of tokens that a verified run returned: chi-square against the softmax of their logits."""
    counts, verified = {}, 0
    for seed in range(3000):
        backend = Chain(5, 1, peak=0.5)
        backend.vocab = 4
        events = Generation(backend, [1, 2, 3, 1, 2, 3, 1, 2], GenerateOptions(
            6, Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed)))
        ids = [event.id for event in events if isinstance(event, Token)]
        for before, after in zip(ids, ids[1:]):  # noqa: B905
            counts[before, after] = counts.get((before, after), 0) + 1
        verified += len(backend.rows)
    assert verified > 1000
    for before in range(4):
        backend = Chain(5, 1, peak=0.5)
        backend.vocab, backend.heard = 4, [before]
        weights = np.exp(backend._after())
        observed = np.array([counts[before, after] for after in range(4)])
        expected = weights / weights.sum() * observed.sum()
        assert ((observed - expected) ** 2 / expected).sum() < 21.1, before  # 0.01 % of fair samples exceed it


def test_nothing_is_guessed_where_the_step_was_computed_ahead():
    backend = Chain(3, 1)
    generation = Generation(backend, [1, 2], GenerateOptions(40, GREEDY))
    while True:
        if generation.next_id is not None:
            generation.computed_ahead(1.0)
        if isinstance(next(generation), Done):
            break
    assert not backend.rows


def test_a_change_of_the_cache_between_guessed_tokens_is_noticed():
    backend = Chain(3, 1, context=400)
    generation = Generation(backend, [1, 2], GenerateOptions(300, GREEDY))
    for _ in generation:
        if backend.rows and generation.next_id is None and backend.length > 20:
            break
    backend.truncate(3)
    with pytest.raises(MerinoError, match="changed by something else"):
        list(generation)


def test_a_closed_generation_leaves_a_cache_that_the_next_one_can_use():
    backend = Chain(3, 1, context=400)
    generation = Generation(backend, [1, 2], GenerateOptions(300, GREEDY))
    ids = [next(generation).id for _ in range(30)]
    generation.close()
    again = [event.id for event in Generation(backend, [1, 2], GenerateOptions(30, GREEDY)) if isinstance(event, Token)]
    assert again == ids


def test_a_guess_continues_its_longest_match():
    guesses = Guesses([1, 2, 3, 4, 9, 3, 4, 8, 1, 2, 3, 4])
    assert guesses.next(8) == [9, 3]
    assert Guesses([5, 5, 5]).next(8) == [5, 5]
    assert Guesses([1, 2, 3]).next(8) == [] and Guesses([]).next(8) == [] and guesses.next(0) == []
