"""The golden ids of a bundle: a greedy continuation by torch in which each argmax leads clearly.

CPUs round differently, above all if activations are quantized to int8, so the argmax of nearly equal logits differs
between them.
"""

import math
from itertools import islice

import numpy as np
from transformers import PreTrainedModel

from merino_edge.export.parity import Golden, golden_of, greedy_rows
from merino_edge.export.quantize.kv_cache import CacheScales
from merino_edge.export.quantize.kv_calibration import RoundedCache

GOLDEN_STEPS = 16  # their ids are stored in the bundle
PARITY_STEPS = 32
GOLDEN_PROMPTS = 8  # maximum number of prompts to try
CLEAR_LEAD = 0.15  # three times the error that quantized formats are allowed


def decode_golden(model: PreTrainedModel, vocab: int, context: int, scales: CacheScales | None = None) -> Golden:
    """Return the first greedy continuation in which every argmax leads by CLEAR_LEAD; of GOLDEN_PROMPTS without one,
    the best.

    A continuation is given up at the first lead that is no larger than the best one's least lead: most are, in a few
    steps. Its least lead is NaN if the logits are not finite or all equal.
    """
    best, best_lead = golden_prompt(vocab, context, 0), -math.inf
    for attempt in range(GOLDEN_PROMPTS):
        prompt_ids = golden_prompt(vocab, context, attempt)
        logits = greedy_rows(model, prompt_ids, RoundedCache(scales) if scales else None)
        followed, least = [], math.inf  # rows of logits [vocab]
        for row in islice(logits, min(GOLDEN_STEPS, context - len(prompt_ids))):
            followed.append(row)
            least = min(lead(row), least)
            if not least > best_lead:
                break
        if not least <= best_lead:
            best, best_lead, rows, rest = prompt_ids, least, followed, logits
        if not best_lead < CLEAR_LEAD:
            break
    steps = min(PARITY_STEPS, context - len(best))
    return golden_of(best, [*rows, *islice(rest, steps - len(rows))])


def golden_prompt(vocab: int, context: int, attempt: int) -> list[int]:
    """Return ids spread over the vocabulary, so that the self-test needs no tokenizer."""
    return [(37 + 7919 * index + 104729 * attempt) % vocab for index in range(min(8, context // 2))]


def lead(logits: np.ndarray) -> float:
    """Return the difference of the two largest of one step's logits [vocab], relative to their RMS; NaN if that is
    0."""
    second, first = np.sort(logits)[-2:]
    with np.errstate(invalid="ignore"):
        return float((first - second) / np.sqrt(np.square(logits).mean()))
