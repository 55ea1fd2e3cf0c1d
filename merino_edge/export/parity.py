"""Proof of a bundle: torch decodes golden ids, and the bundle's logits in the board's runtime are compared with torch's
at the prefill and at each decode step.

Each argmax of the golden ids leads clearly if possible. CPUs round differently, above all if activations are quantized
to int8, so the argmax of nearly equal logits differs between them.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from merino_edge.bundles.description import write_description
from merino_edge.export.dialects.float_activations import float_activations
from merino_edge.export.quantize.kv_cache import CacheScales, largest_code
from merino_edge.export.quantize.matrix import QuantizedMatrix, dequantize
from merino_edge.families.weights import Layout, model_weights
from merino_runtime.backends import open_backend
from merino_runtime.bundle import Bundle
from merino_runtime.errors import MerinoError

# Maximum logit error, relative to the step's largest logit: in float32, and in int8 and int4 with float activations.
MOST_LOGIT_ERROR = 1e-3
# RMS error, relative to the RMS of the step's logits. int8 and int4 quantize activations too, which torch does not:
# small random models lose 0.01 to 0.03, real ones up to 0.3.
MOST_RMS_ERROR = {"fp16": 0.01, "int8": 0.5, "int4": 0.5}
# As MOST_LOGIT_ERROR, over a quantized KV cache: a value midway between two codes rounds to either.
MOST_LOGIT_ERROR_BY_CACHE = {"fp32": MOST_LOGIT_ERROR, "fp16": MOST_LOGIT_ERROR, "int8": 0.03, "int4": 0.3}
GOLDEN_STEPS = 16  # their ids are stored in the bundle
PARITY_STEPS = 32
GOLDEN_PROMPTS = 8  # maximum number of prompts to try
CLEAR_LEAD = 0.15  # three times the error that quantized formats are allowed


class Decoded(NamedTuple):
    """Greedy decoding by torch: the ids, and the logits that each was the largest of."""

    prompt_ids: list[int]
    greedy_ids: list[int]  # [steps]
    logits: np.ndarray  # float32 [steps, vocab]


class RoundedCache(DynamicCache):
    """torch's cache, with keys and values rounded as a quantized cache rounds them. `scales` are in the order of
    torch's model."""

    def __init__(self, scales: CacheScales):
        super().__init__()
        self._most = largest_code(scales.bits)
        self._steps = [[torch.from_numpy(one)[:, None] for one in layer] for layer in scales.layers]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Round keys and values [1, heads, T, head_size], and add them to the cache."""
        kept = [
            torch.clamp(torch.round(part / step), -self._most - 1, self._most) * step
            for part, step in zip((key_states, value_states), self._steps[layer_idx], strict=True)
        ]
        return super().update(kept[0], kept[1], layer_idx, *args, **kwargs)


def torch_greedy(model: PreTrainedModel, prompt_ids: Sequence[int], steps: int) -> Decoded:
    """Decode `steps` greedy ids after the prompt, with torch's own KV cache."""
    return decoded_of(prompt_ids, list(islice(greedy_rows(model, prompt_ids), steps)))


def greedy_rows(
    model: PreTrainedModel, prompt_ids: Sequence[int], cache: DynamicCache | None = None
) -> Iterator[np.ndarray]:
    """Decode greedily without end: yield logits [vocab] of the prefill, then of each decode step.

    `cache`: an empty cache to use instead of the model's own.
    """
    inputs = torch.tensor([list(prompt_ids)])
    while True:
        with torch.no_grad():
            output = model(input_ids=inputs, cache=cache, use_cache=True)
        cache = output.cache
        row = output.logits[0, -1].float().numpy()
        yield row
        inputs = torch.tensor([[int(row.argmax())]])


def decoded_of(prompt_ids: Sequence[int], rows: Sequence[np.ndarray]) -> Decoded:
    return Decoded(list(prompt_ids), [int(row.argmax()) for row in rows], np.stack(rows))


def decode_golden(model: PreTrainedModel, vocab: int, context: int, scales: CacheScales | None = None) -> Decoded:
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
    return decoded_of(best, [*rows, *islice(rest, steps - len(rows))])


def golden_prompt(vocab: int, context: int, attempt: int) -> list[int]:
    """Return ids spread over the vocabulary, so that the self-test needs no tokenizer."""
    return [(37 + 7919 * index + 104729 * attempt) % vocab for index in range(min(8, context // 2))]


def lead(logits: np.ndarray) -> float:
    """Return the difference of the two largest of one step's logits [vocab], relative to their RMS; NaN if that is
    0."""
    second, first = np.sort(logits)[-2:]
    with np.errstate(invalid="ignore"):
        return float((first - second) / np.sqrt(np.square(logits).mean()))


def dequantized_model(
    model: PreTrainedModel, matrices: Mapping[str, QuantizedMatrix],
    layout: Callable[[str], Layout | None] = lambda _: None, *, in_place: bool = False,
) -> PreTrainedModel:  # fmt: skip
    """Return a copy of the model with dequantized weights; the model itself if `in_place`, or if nothing is quantized.

    `layout`: returns the layout in the graph of a weight of the state dict.
    """
    if not matrices:
        return model
    twin = model if in_place else copy.deepcopy(model)
    weights = model_weights(twin, layout)
    for joined, matrix in matrices.items():
        first = 0  # of the joined matrices' rows
        for name in joined.split("+"):
            count = len(weights[name])
            weights.fill(name, partial(dequantized_rows, matrix, first))
            first += count
    return twin


def dequantized_rows(matrix: QuantizedMatrix, first: int, rows: slice) -> np.ndarray:
    return dequantize(matrix, slice(first + rows.start, first + rows.stop))


def check_parity(
    bundle: Bundle, golden: Decoded, quantized: bool, kv: str | None
) -> tuple[Bundle, float, float | None]:
    """Return the bundle, its error, and its error with float activations (None if not `quantized`).

    Raises MerinoError if the graph differs from torch. A bundle with quantized weights, or with the quantized cache
    `kv`, gets its own greedy ids: after rounding, the argmax may differ from torch's.
    """

    def check(error: float, allowed: float, how: str = "") -> None:
        if not error <= allowed:  # or NaN
            raise MerinoError(
                f"the {bundle.dialect} graph{how} differs from torch by {error:.1e}, relative, allowed is"
                f" {allowed:.0e}: a defect of the exporter or of this onnxruntime; nothing was written"
            )

    by_cache = max((MOST_LOGIT_ERROR_BY_CACHE[layer.format] for layer in bundle.kv_layers), default=MOST_LOGIT_ERROR)
    unrounded = unrounded_error(bundle, golden) if quantized else None
    if unrounded is not None:
        check(unrounded, by_cache, " with float activations")
    error = bundle_error(bundle, golden)
    check(error, by_cache if bundle.precision == "fp32" else MOST_RMS_ERROR[bundle.precision])
    chosen = greedy_ids(bundle, golden.prompt_ids, len(bundle.golden.greedy_ids)) if quantized or kv else ()
    if chosen and chosen != bundle.golden.greedy_ids:
        bundle = bundle._replace(golden=bundle.golden._replace(greedy_ids=chosen))
        write_description(bundle)
    return bundle, error, unrounded


def unrounded_error(bundle: Bundle, golden: Decoded) -> float:
    """Return the maximum logit error of a quantized graph with float activations, which replaces the one in the
    bundle's folder during the measurement.

    Each run of that graph dequantizes all weights, so that a run computes several positions if the graph returns these.
    """
    ids, first = [*golden.prompt_ids, *golden.greedy_ids[:-1]], len(golden.prompt_ids) - 1
    with float_activations(Path(bundle.folder)), closing(open_backend(bundle)) as backend:
        rows = chain.from_iterable(backend.logits_from(first, ids))
        return float(np.max([max_logit_error(*pair) for pair in zip(rows, golden.logits, strict=True)]))


def bundle_error(bundle: Bundle, golden: Decoded) -> float:
    """Return the largest error of the prefill's logits and of each decode step's: the maximum logit error in fp32, the
    RMS error in other formats; NaN if any is."""
    error_of = max_logit_error if bundle.precision == "fp32" else rms_error
    with closing(open_backend(bundle)) as backend:
        errors = [error_of(backend.prefill(golden.prompt_ids), golden.logits[0])]
        for token_id, expected in zip(golden.greedy_ids, golden.logits[1:], strict=False):
            errors.append(error_of(backend.step(token_id), expected))
    return float(np.max(errors))


def greedy_ids(bundle: Bundle, prompt_ids: Sequence[int], steps: int) -> tuple[int, ...]:
    """Return `steps` greedy ids after the prompt, decoded by the bundle in the board's runtime."""
    with closing(open_backend(bundle)) as backend:
        ids = [int(backend.prefill(list(prompt_ids)).argmax())] if steps else []
        while len(ids) < steps:
            ids.append(int(backend.step(ids[-1]).argmax()))
    return tuple(ids)


def rms_error(logits: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.square(logits - expected).mean() / np.square(expected).mean()))


def max_logit_error(logits: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(logits - expected).max() / np.abs(expected).max())
