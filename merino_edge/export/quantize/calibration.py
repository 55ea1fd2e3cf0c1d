"""Statistics while a model prefills a text: Hessians of the inputs of its matrices for GPTQ, the sizes of channels for
SmoothQuant and outliers, and the scales of a quantized KV cache.

A Hessian weighs the errors of weights: an error e of a row adds e' H e to the mean square of the output, with H the
mean of x x' [in, in] over the inputs x of the matrix.

The text is the user's, or one that the model generates from its own first token, which needs neither a corpus nor a
network. Why that serves: docs/decisions/quantization.md.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from merino_edge.export.parity import RoundedCache
from merino_edge.export.quantize.gptq import Hessians
from merino_edge.export.quantize.kv_cache import BITS, CacheScales, scales_of
from merino_edge.export.source import Source, not_finite, text_rows, tokenizer_of
from merino_edge.families.operators import params
from merino_runtime.errors import MerinoError

SEED = 0
LEAST_TOKENS, MOST_TOKENS = 16_384, 131_072  # of the text for Hessians, sampled evenly
WORK = LEAST_TOKENS * 135_000_000  # tokens times weights; it sets the number of tokens between these limits
TOKENS = 4096  # of the text for sizes of channels, and for the scales of a KV cache
ROW = 512  # tokens in a sequence of the text
LONGEST_ROW = 2048  # tokens in a sequence that the model generates, or that fills a KV cache; at most the context
TEXTS, TEXT_TOKENS = 16, 128  # that the model generates, as one batch: each step reads the weights once
LONGEST_JUDGED = 1024  # tokens whose loss over a KV cache is computed at once
MOST_RISE = 0.02  # of the perplexity by a quantized KV cache
HEAD_EVERY = 8  # the head's input is measured at every eighth token, because logits take memory


def hessians_on(source: Source, text: Path) -> Callable[[], Hessians]:
    """Return a function that computes the Hessians on a text, once. Raises MerinoError at once if the text cannot be
    read."""
    tokens = min(max(WORK // params(source.arch.operators), LEAST_TOKENS), MOST_TOKENS)
    rows = text_rows(source, text, min(ROW, source.arch.context), tokens)
    return cache(lambda: input_hessians(source.model, rows.numpy()))


@torch.no_grad()
def input_hessians(model: PreTrainedModel, rows: np.ndarray) -> Hessians:
    """Return by matrix the Hessian of its input, except for the head; rows: ids [n, T]. Matrices with the same input
    share one array."""
    sums: dict[str, torch.Tensor] = {}
    owners: dict[str, str] = {}  # by the name of a matrix, the one whose Hessian it shares
    seen: list[tuple[torch.Tensor, str]] = []  # the input of the matrix before, and that matrix's owner

    def add(name: str, x: torch.Tensor) -> None:
        if seen and seen[0][0] is x:
            owners[name] = seen[0][1]
            return
        seen[:] = [(x, name)]
        x = x.reshape(-1, x.shape[-1]).float()
        owners[name] = name
        sums[name] = sums[name].addmm_(x.T, x) if name in sums else x.T @ x

    head = model.get_output_embeddings()
    names = [
        f"{name}.weight" for name, module in model.named_modules()
        if module is not head and not isinstance(module, torch.nn.Embedding)
        and getattr(getattr(module, "weight", None), "ndim", 0) == 2
    ]  # fmt: skip
    with observed_inputs(model, names, add):
        for row in rows:
            model.base_model(input_ids=torch.from_numpy(row)[None].long())
            seen.clear()
    means = {name: (total / rows.size).numpy() for name, total in sums.items()}
    return {name: means[owner] for name, owner in owners.items()}


@torch.no_grad()
def input_sizes(model: PreTrainedModel, names: Sequence[str], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return by matrix the size of each channel of its input, [in]. The size is the geometric mean of maximum and RMS
    over tokens, each token normalized to RMS 1."""
    squares: dict[str, list[torch.Tensor]] = {name: [] for name in names}  # of each row the mean
    largest: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    def add(name: str, x: torch.Tensor) -> None:
        x = x.reshape(-1, x.shape[-1]).float().square()
        x = x / x.mean(-1, keepdim=True).clamp(min=1e-30)
        squares[name].append(x.mean(0))
        largest[name].append(x.amax(0))

    with observed_inputs(model, names, add):
        for row in torch.from_numpy(rows).long():
            model(input_ids=row[None], logits_to_keep=torch.arange(0, len(row), HEAD_EVERY))
    return {
        name: (torch.stack(squares[name]).mean(0) * torch.stack(largest[name]).amax(0)).pow(0.25).numpy()
        for name in names
    }


def norm_input_sizes(source: Source, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return the sizes of the input's channels for each matrix after a norm."""
    decoder = source.arch.decoder()
    linears = [linear for layer in decoder.layers for linear in (layer.qkv, layer.up)] if decoder else []
    sizes = input_sizes(source.model, [linear.weights[0] for linear in linears], rows)
    return {name: sizes[linear.weights[0]] for linear in linears for name in linear.weights}


@contextmanager
def observed_inputs(
    model: PreTrainedModel, names: Sequence[str], observe: Callable[[str, torch.Tensor], None]
) -> Iterator[None]:
    """Call `observe(name, input)` whenever the model multiplies by one of these matrices."""
    hooks = [
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
            lambda _module, given, name=name: observe(name, given[0])
        )
        for name in names
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def rows_to_read(source: Source, context: int, text: Path | None, row: int = ROW) -> np.ndarray:
    """Return ids [rows, T] of the text, in rows of at most `row` tokens, or of text that the model generates.

    Raises MerinoError if the text cannot be read.
    """
    if text:
        return text_rows(source, text, min(row, context), TOKENS).numpy()
    return own_rows(source, min(context, LONGEST_ROW))


def own_rows(source: Source, length: int) -> np.ndarray:
    """Return text that a trained model generates, in rows of ids [rows, length]. For random weights, whose text means
    nothing, the ids are random."""
    vocab = source.arch.vocab
    if source.weights == "random":
        shape = max(1, TEXTS * TEXT_TOKENS // length), length
        return np.random.default_rng(SEED).integers(0, vocab, shape)
    # The first id of a text: the tokenizer's BOS, else a stop id, else 0.
    ids = tokenizer_of(source).encode("").ids if source.tokenizer else []
    first = int([*ids, *source.stop_ids, 0][0])
    texts = written_by(source.model, [first] * TEXTS, min(TEXT_TOKENS, source.arch.context)).reshape(-1)
    length = min(length, len(texts))
    return texts[: len(texts) // length * length].reshape(-1, length)


@torch.no_grad()
def written_by(model: PreTrainedModel, starts: Sequence[int], length: int) -> np.ndarray:
    """Sample continuations [len(starts), length] of these ids from the model's distribution."""
    random = torch.Generator().manual_seed(SEED)
    ids = given = torch.tensor(starts)[:, None]
    cache = None
    while ids.shape[1] < length:
        output = model(input_ids=given, cache=cache, use_cache=True)
        cache = output.cache
        chances = output.logits[:, -1].float().softmax(dim=-1)
        if not chances.isfinite().all():
            raise not_finite(model, "the model")
        given = torch.multinomial(chances, 1, generator=random)
        ids = torch.cat((ids, given), dim=1)
    return ids.numpy()


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
            f"{'' if text else ', or fit the scales to a text of yours with --text TEXT'}"
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
