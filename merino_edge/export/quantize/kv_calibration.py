"""Scales for a quantized KV cache, fitted to what torch's cache holds after the model has prefilled a text."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from merino_edge.export.quantize.kv_cache import BITS, CacheScales, largest_code, scales_of
from merino_edge.export.source import Source
from merino_runtime.errors import MerinoError

LONGEST_JUDGED = 1024  # tokens whose loss is computed at once
MOST_RISE = 0.02


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


def calibrated_cache(
    source: Source, kv: str, rows: np.ndarray, text: Path | None = None
) -> tuple[CacheScales, float | None]:
    """Fit the scales of a cache in `kv`, int8 or int4, to ids [rows, T] of `text`, or of text that the model generated.

    Return the scales, in the order of torch's model, and the relative rise of the perplexity of these rows over a
    float32 cache; None for random weights. Raises MerinoError if it rises by more than MOST_RISE.
    """
    scales = scales_of(filled_layers(source.model, rows), BITS[kv])
    if source.weights == "random":
        return scales, None
    rise = rise_of(source.model, rows, scales)
    if rise > MOST_RISE:
        raise MerinoError(
            f"--kv {kv} raises the perplexity of {source.name} by {rise:.1%} on {text or 'text that it generates'},"
            f" allowed is {MOST_RISE:.0%}: give {'--kv int8 or ' if kv == 'int4' else ''}--kv fp32"
            f"{'' if text else ', or fit the scales to a text of yours with --calibrate TEXT'}"
        )
    return scales, rise


@torch.no_grad()
def filled_layers(model: PreTrainedModel, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (keys, values) of each layer, float32 [heads, all tokens of the rows, head_size]. Each row is prefilled
    into its own cache."""
    kept: list[list[list[np.ndarray]]] = []  # of each row, of each layer
    for row in rows:
        output = model(input_ids=torch.from_numpy(row)[None].long(), use_cache=True, logits_to_keep=1)
        kept.append([[part[0].float().numpy() for part in (one.keys, one.values)] for one in output.cache.layers])
    return [
        (np.concatenate([keys for keys, _ in layer], axis=1), np.concatenate([values for _, values in layer], axis=1))
        for layer in zip(*kept, strict=True)
    ]


@torch.no_grad()
def rise_of(model: PreTrainedModel, rows: np.ndarray, scales: CacheScales) -> float:
    """Return the relative rise of the rows' perplexity by a quantized cache. Long rows are cut, because a row's logits
    take memory."""
    differences = []
    length = min(rows.shape[1], LONGEST_JUDGED)
    parts = rows[:, : rows.shape[1] // length * length].reshape(-1, length)
    for row in torch.from_numpy(parts).long():
        losses = [
            torch.nn.functional.cross_entropy(
                model(input_ids=row[None], cache=cache, use_cache=True).logits[0, :-1].float(), row[1:]
            ).item()
            for cache in (None, RoundedCache(scales))
        ]
        differences.append(losses[1] - losses[0])
    return math.exp(sum(differences) / len(differences)) - 1
