"""The golden continuation is the one that following every prompt to its end would choose."""

import numpy as np
import pytest

from merino_edge.export import golden
from merino_edge.export.golden import GOLDEN_PROMPTS, GOLDEN_STEPS, decode_golden, golden_prompt, lead
from merino_edge.export.parity import torch_greedy
from tests.sample_models import small


def followed(model, vocab, context, attempt):
    """(its least lead, the continuation of this prompt)"""
    prompt = golden_prompt(vocab, context, attempt)
    result = torch_greedy(model, prompt, min(32, context - len(prompt)))
    return min(map(lead, result.logits[:GOLDEN_STEPS])), result


@pytest.mark.parametrize("seed, context", [(1, 48), (2, 48), (3, 12)])
def test_the_first_clear_one_is_taken_or_the_clearest(seed, context, decoder, monkeypatch):
    model = decoder(small("llama", vocab=300, context=context), seed)
    all_of_them = [followed(model, 300, context, attempt) for attempt in range(GOLDEN_PROMPTS)]
    leads = sorted(least for least, _ in all_of_them)
    for enough in (leads[0], leads[4], 1.01 * leads[-1]):
        monkeypatch.setattr(golden, "CLEAR_LEAD", enough)
        clear = [each for each in all_of_them if each[0] >= enough]
        _, expected = clear[0] if clear else max(all_of_them, key=lambda each: each[0])
        result = decode_golden(model, 300, context)
        assert (result.prompt_ids, result.greedy_ids) == (expected.prompt_ids, expected.greedy_ids)
        assert np.array_equal(result.logits, expected.logits)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_logits_that_lead_nowhere_are_given_back_as_they_are(value, decoder):
    """All the same, or none a number: the export decides."""
    model = decoder(small("llama", vocab=300, context=48), 1)
    model.get_output_embeddings().weight.data.fill_(value)
    result = decode_golden(model, 300, 48)
    assert result.prompt_ids == golden_prompt(300, 48, 0) and len(result.greedy_ids) == 32
    assert np.array_equal(result.logits, np.full_like(result.logits, value), equal_nan=True)
