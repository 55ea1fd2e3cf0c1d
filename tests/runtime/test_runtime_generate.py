"""Generation over a scripted model: when it stops, what it counts, what it leaves behind. The sampler against a naive
reference that sorts everything."""
import json
import math

import numpy as np
import pytest
from few_examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st

from merino_runtime.backends.backend import Backend
from merino_runtime.errors import MerinoError
from merino_runtime.generation.generate import Done, Generation, Prefilled, PromptCut, Token
from merino_runtime.generation.sampler import Repetitions, Sampler, _drawn, candidates, penalize
from merino_runtime.generation.text import TextStream, Tokenizer, byte_table
from merino_runtime.sampling import GREEDY, OVERFLOWS, GenerateOptions, Sampling, check_sampling

EOS = 256
TOKENIZER = Tokenizer(json.dumps({
    "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
    "added_tokens": [],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
    "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
              "end_of_word_suffix": None, "fuse_unk": False, "vocab": byte_table(), "merges": []}}))


class Script(Backend):
    """Says its lines whatever it hears, and keeps what it heard as a cache would."""
    vocab = 257

    def __init__(self, lines, context=64):
        self.context, self.lines, self.heard = context, lines, []
        self.logits = np.zeros(self.vocab)

    @property
    def ids(self):
        return self.heard

    def prefill(self, ids):
        self.prompt_length = len(self.heard) + len(ids)
        self.heard += list(ids)
        return self._say()

    def step(self, token_id):
        self.heard.append(token_id)
        return self._say()

    def truncate(self, length):
        del self.heard[length:]

    def _say(self):
        assert len(self.heard) <= self.context
        self.logits[:] = 0
        self.logits[self.lines[(len(self.heard) - self.prompt_length) % len(self.lines)]] = 9
        return self.logits


def run(backend, prompt_ids=(1, 2), stops=(), **options):
    options.setdefault("sampling", GREEDY)
    asked = GenerateOptions(**{name: value for name, value in options.items() if name in GenerateOptions._fields})
    others = {name: value for name, value in options.items() if name not in GenerateOptions._fields}
    *tokens, last = Generation(backend, list(prompt_ids), asked, stream=TextStream(TOKENIZER, stops), **others)
    assert isinstance(last, Done) and all(isinstance(token, Token) for token in tokens)
    assert last.tokens == len(tokens)
    return tokens, last


def spelled(text):
    return TOKENIZER.encode(text)


@pytest.mark.parametrize("last", [EOS, *spelled("!?")])
def test_it_stops_at_any_of_several_ids(last):
    tokens, done_ = run(Script([*spelled("hi"), last]), stop_ids=[EOS, *spelled("!?")])
    assert "".join(token.text for token in tokens) == "hi" and done_.stop_reason == "eos" and done_.tokens == 3


def test_an_eos_gives_out_what_a_stop_string_held_back():
    tokens, _ = run(Script([*spelled("so"), EOS]), stop_ids=[EOS], stops=["oh"])
    assert [token.text for token in tokens] == ["s", "", "o"]


def test_without_an_eos_it_goes_on():
    tokens, last = run(Script([*spelled("hi"), EOS]), stop_ids=(), max_new_tokens=6)
    assert [token.id for token in tokens] == [*spelled("hi"), EOS] * 2 and last.stop_reason == "length"


def test_it_stops_before_a_stop_string_that_spans_tokens():
    tokens, last = run(Script(spelled("one, two, three")), stops=["wo,", "xyz"])
    assert "".join(token.text for token in tokens) == "one, t" and last.stop_reason == "stop"


@pytest.mark.parametrize("prompt_length", [1, 5, 7])
def test_it_stops_when_prompt_and_tokens_fill_the_context(prompt_length):
    backend = Script(spelled("abc"), context=8)
    tokens, last = run(backend, prompt_ids=[1] * prompt_length)
    assert prompt_length + last.tokens == 8 and last.stop_reason == "context" and tokens


@pytest.mark.parametrize("overflow", OVERFLOWS)
def test_what_fits_the_context_is_the_same_whatever_its_end_would_do(overflow):
    backend = Script(spelled("abc"), context=8)
    tokens, last = run(backend, prompt_ids=[1] * 3, max_new_tokens=5, overflow=overflow)
    assert len(tokens) == 5 and (last.stop_reason, last.shifts) == ("length", 0)


class Remembering(Script):
    """Its next id depends on all that it holds, and it keeps what each prefill left in the cache."""

    def __init__(self, context):
        super().__init__([0], context)
        self.prefilled = []

    def prefill(self, ids):
        logits = super().prefill(ids)
        self.prefilled.append(list(self.heard))
        return logits

    def _say(self):
        assert len(self.heard) <= self.context
        self.logits[:] = 0
        self.logits[sum(place * id for place, id in enumerate(self.heard, 1)) % 251] = 9
        return self.logits


@given(st.integers(1, 12), st.lists(st.integers(0, 250), min_size=1, max_size=30), st.integers(1, 60))
def test_shift_gives_as_many_tokens_as_asked_for_over_the_newest_ids(context, prompt_ids, count):
    prompt, half = len(prompt_ids), (context + 1) // 2
    backend = Remembering(context)
    first, *events = Generation(backend, prompt_ids,
                                GenerateOptions(max_new_tokens=count, sampling=GREEDY, overflow="shift"))
    kept = prompt_ids if prompt < context else prompt_ids[-half:]
    if prompt >= context and prompt > half:
        assert first == PromptCut(prompt - len(kept), len(kept))
    else:
        events.insert(0, first)
    *tokens, last = events
    assert last.tokens == len(tokens) == count and last.stop_reason == "length"
    history = kept + [token.id for token in tokens]
    held, shifts = len(kept), []
    for end in range(len(kept) + 1, len(history)):  # the ids that were fed, one by one; the last one is not
        held += 1
        if held > context:
            shifts.append(history[end - half:end])
            held = half
    assert backend.prefilled == [kept, *shifts] and last.shifts == len(shifts)
    assert backend.heard == history[-1 - held:-1]


@pytest.mark.parametrize("prompt, prefilled", [
    ([7, 8], 1), ([7, 8, 9], 1), ([7], 1), ([7, 8, *spelled("abc"), 5, 6], 2), ([7, 8, *spelled("abx")], 1),
    ([8, 7], 2), ([7, 9, 9, 9], 3)])
def test_a_prompt_pays_for_what_the_cache_does_not_hold_yet(prompt, prefilled):
    backend = Script(spelled("abcd"))
    _, last = run(backend, prompt_ids=[7, 8], max_new_tokens=4)
    assert last.prefill_tokens == 2 and backend.heard == [7, 8, *spelled("abc")]
    tokens, last = run(backend, prompt_ids=prompt, max_new_tokens=4)
    assert last.prefill_tokens == prefilled
    assert tokens == run(Script(spelled("abcd")), prompt_ids=prompt, max_new_tokens=4)[0]
    assert backend.heard == [*prompt, *spelled("abc")]


def test_a_prefill_in_pieces_tells_how_far_it_is_and_can_be_left_between_them():
    backend = Script(spelled("hi"))
    backend.prefill(list(range(4)))
    prompt = [*range(4), *range(10, 20)]
    calls = []
    events = Generation(backend, prompt, GenerateOptions(max_new_tokens=2, sampling=GREEDY),
                        chunk_size=lambda at: calls.append(at) or 4)
    assert [next(events) for _ in range(3)] == [Prefilled(4, 14), Prefilled(8, 14), Prefilled(12, 14)]
    *tokens, last = events
    assert [token.id for token in tokens] == spelled("hi") and backend.ids == [*prompt, *spelled("h")]
    assert last.prefill_tokens == 10 and calls == [4, 8, 12]
    left = Generation(backend, [*range(30, 40)], chunk_size=lambda _: 4)
    assert [next(left), next(left)] == [Prefilled(0, 10), Prefilled(4, 10)]
    left.close()
    assert backend.ids == [*range(30, 34)]
    disturbed = Generation(backend, [*range(40, 50)], chunk_size=lambda _: 4)
    next(disturbed)
    backend.changes += 1
    with pytest.raises(MerinoError, match="changed by something else"):
        next(disturbed)


def test_log_probabilities_are_the_models_own_whatever_the_sampler_does_to_them():
    backend = Script(spelled("hi"))
    biased = Sampling(temperature=0, logit_bias=((65, 20.0),))
    events = list(Generation(backend, [1, 2], GenerateOptions(max_new_tokens=1, top=2, sampling=biased)))
    assert events[0].id == 65
    sure = 9 - np.log(np.exp(9) + backend.vocab - 1)
    assert events[1].logprob == pytest.approx(sure - 9) and events[1].top[0] == (spelled("h")[0], pytest.approx(sure))
    assert len(events[1].top) == 2 and isinstance(events[2], Done)
    with pytest.raises(MerinoError, match="id 257, the model has 0 to 256"):
        Generation(backend, [1], GenerateOptions(sampling=Sampling(logit_bias=((257, 1.0),))))


def test_a_cache_that_is_slow_to_extend_is_kept_only_for_half_of_the_prompt():
    backend = Script(spelled("abcd"))
    backend.extends_fast = False
    run(backend, prompt_ids=[7, 8], max_new_tokens=1)
    assert run(backend, prompt_ids=[7, 8, 1, 2, 3], max_new_tokens=1)[1].prefill_tokens == 5
    assert run(backend, prompt_ids=[7, 8, 1, 4], max_new_tokens=1)[1].prefill_tokens == 1


def test_closing_early_leaves_the_backend_fit():
    backend = Script(spelled("abcd"))
    events = Generation(backend, [1, 2], GenerateOptions(sampling=GREEDY))
    assert [next(events).id for _ in range(2)] == spelled("ab")
    events.close()
    assert len(run(backend, max_new_tokens=3)[0]) == 3


@pytest.mark.parametrize("step, measured", [(0, (0, None, None)), (1, (1, None, None)), (3, (3, 2, 2))])
def test_an_interrupted_generation_knows_what_was_measured(step, measured):
    class Interrupted(Script):
        def _say(self):
            if len(self.heard) == 2 + step:
                raise KeyboardInterrupt
            return super()._say()

    events = Generation(Interrupted(spelled("abcd")), [1, 2], GenerateOptions(sampling=GREEDY))
    tokens = []
    with pytest.raises(KeyboardInterrupt):
        tokens.extend(events)
    last = events.measured()
    assert last.stop_reason == "interrupt" and last.tokens == measured[0] and last.prefill_tokens == 2
    assert (last.prefill_ms is None) == (step == 0) and (last.tok_s is None) == (measured[1] is None)


def test_the_same_seed_gives_the_same_ids():
    class Even(Script):
        def _say(self):
            return np.zeros(self.vocab)

    sampling = Sampling(top_k=0, top_p=1.0, min_p=0.0, seed=5)
    runs = [[token.id for token in run(Even([0]), sampling=sampling, max_new_tokens=30)[0]] for _ in range(2)]
    assert runs[0] == runs[1] and len(set(runs[0])) > 10


@pytest.mark.parametrize("options, message", [
    ({"prompt_ids": []}, "empty"), ({"prompt_ids": [1] * 8}, "8 ids and the context is 8: at most 7"),
    ({"prompt_ids": [1] * 8, "overflow": "error"}, "8 ids and the context is 8: at most 7"),
    ({"prompt_ids": [1] * 3, "overflow": "error", "max_new_tokens": 6},
     "3 ids and 6 new.*together 9, and the context is 8. Request 5 or fewer.*--context.*--set overflow=shift"),
    ({"overflow": "wrap"}, "'wrap', allowed: stop, error, shift"),
    ({"prompt_ids": [], "overflow": "shift"}, "empty"),
    ({"max_new_tokens": 0}, "0 new tokens"), ({"sampling": Sampling(top_p=2.0)}, "top_p is 2.0")])
def test_a_request_that_cannot_be_met_is_refused_before_the_first_token(options, message):
    prompt_ids = options.pop("prompt_ids", [1])
    backend = Script([1], context=8)
    with pytest.raises(MerinoError, match=message):
        Generation(backend, prompt_ids, GenerateOptions(**options))
    assert backend.heard == []


@pytest.mark.parametrize("seconds, figures", [
    ([0.1, 0.01, 0.02, 0.03], (4, 100, 20, 50)), ([0.1], (1, 100, None, None))])
def test_decode_figures_leave_the_first_token_out(monkeypatch, seconds, figures):
    clock = iter([now for took in seconds for now in (0.0, took, 0.0)])
    monkeypatch.setattr("merino_runtime.generation.generate.time.perf_counter", lambda: next(clock))
    last = run(Script(spelled("abcd")), max_new_tokens=len(seconds))[1]
    assert (last.tokens, last.prefill_ms, last.decode_ms_p50, last.tok_s) == pytest.approx(figures)


LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40)
WIDE_LOGITS = st.integers(0, 2 ** 32 - 1).map(lambda seed: (np.random.RandomState(seed).randn(3000) * 2).tolist())
SAMPLINGS = st.builds(
    Sampling, temperature=st.floats(0.05, 5), top_k=st.integers(0, 50), top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1), repetition_penalty=st.just(1.0), seed=st.integers(0, 2 ** 32 - 1),
    presence_penalty=st.just(0.0), frequency_penalty=st.just(0.0), logit_bias=st.just(()), dry_multiplier=st.just(0.0))


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


def test_every_value_out_of_range_is_named_in_one_error():
    with pytest.raises(MerinoError) as caught:
        check_sampling(Sampling(-1, -2, 0, 1.5, 0, -1, 3, -3, ((0, 101),), -1, 0, 0))
    for name in Sampling._fields:
        assert name in str(caught.value)


@pytest.mark.parametrize("field, value", [
    ("temperature", float("nan")), ("temperature", float("inf")), ("temperature", "hot"), ("top_k", 1.5),
    ("top_k", True), ("top_p", float("nan")), ("seed", 2 ** 32), ("seed", 1.0)])
def test_a_value_out_of_range_is_refused(field, value):
    with pytest.raises(MerinoError, match=field):
        check_sampling(Sampling()._replace(**{field: value}))


def reference_lengths(ids, breakers, least):
    """By every suffix of the text, as DRY is defined."""
    found = {}
    for length in range(least, len(ids)):
        suffix = ids[-length:]
        if set(suffix) & breakers:
            break
        for start in range(len(ids) - length):
            if ids[start:start + length] == suffix and ids[start + length] not in breakers:
                found[ids[start + length]] = length
    return found


@examples(200)
@given(st.lists(st.integers(0, 4), max_size=40), st.sets(st.integers(0, 4), max_size=2), st.integers(1, 4))
def test_dry_finds_the_longest_repetition_that_an_id_would_continue(ids, breakers, least):
    assert Repetitions(ids, breakers).lengths(least) == reference_lengths(ids, breakers, least)


def test_dry_lowers_the_logit_by_the_length_of_the_repetition():
    """`1 2 3` came before: 4 would continue it."""
    sampling = Sampling(temperature=0, dry_multiplier=0.5, dry_base=2.0, dry_allowed_length=2)
    logits = np.zeros(8)
    logits[4], logits[5] = 1.0, 0.1
    assert Sampler(sampling, [1, 2, 3, 4, 0, 1, 2, 3]).sample(logits) == 5  # 1 - 0.5 * 2 ** (3 - 2) = 0
    assert Sampler(sampling, [2, 3, 4, 0, 9, 2, 3]).sample(logits) == 4  # 1 - 0.5 = 0.5
    assert Sampler(sampling, [3, 4, 0, 9, 3]).sample(logits) == 4
    assert Sampler(sampling, [1, 2, 3, 4, 0, 1, 2, 3], breakers=[4]).sample(logits) == 4
    assert Sampler(Sampling(temperature=0), [1, 2, 3, 4, 0, 1, 2, 3]).sample(logits) == 4


def test_dry_ends_a_loop():
    class Loop(Script):
        def _say(self):
            super()._say()
            self.logits[ord("z")] = 4
            return self.logits

    lines = spelled("la la la ")
    tokens, _ = run(Loop(lines), max_new_tokens=40)
    assert "z" not in "".join(token.text for token in tokens)
    sampling = Sampling(temperature=0, dry_multiplier=0.8)
    tokens, _ = run(Loop(lines), max_new_tokens=40, sampling=sampling)
    assert "z" in "".join(token.text for token in tokens)


def test_a_breaker_is_a_token_with_a_line_end_a_colon_a_quote_or_a_star():
    assert TOKENIZER.breakers() == {TOKENIZER.encode(mark)[0] for mark in "\n:\"*"}


@pytest.mark.parametrize("wrong, message", [
    ({"dry_multiplier": -1.0}, "dry_multiplier is -1.0, allowed: 0 to 100"), ({"dry_base": 0.5}, "dry_base is 0.5"),
    ({"dry_allowed_length": 0}, "dry_allowed_length is 0"), ({"dry_allowed_length": 1.5}, "an integer, 1 to 1048576")])
def test_dry_out_of_range_is_refused(wrong, message):
    with pytest.raises(MerinoError, match=message):
        check_sampling(Sampling(**wrong))
