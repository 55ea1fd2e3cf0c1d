"""The default search: score every decoder of the space.

1. The cost model computes the costs of each operator. Their sums are the costs of each kind of layer (`costs`).
2. A decoder costs the sum of its layers, embedding and head. The loss law and the terms of the axes predict its loss.
3. The result is the decoder of lowest predicted loss within the limits. It is the optimum, because all were compared.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from merino_edge.design.axes import attention, ffn, mixer, ngrams, taps, vocabulary, weight_format
from merino_edge.design.budgets import BUDGETS_BY_NAME, refusal
from merino_edge.design.costs import AtThreads, Costs, table
from merino_edge.design.law import Constants, ln_loss
from merino_edge.design.space import Layer, Space, architecture
from merino_edge.families.designed import Architecture, Ngrams
from merino_edge.families.operators import SLOTS, Operator
from merino_edge.prediction.cost_model import CostModel, cost_model
from merino_edge.prediction.limits import most_within, positive
from merino_runtime.errors import MerinoError


class Kinds(NamedTuple):
    """Every kind of layer of a space, and the attentions and FFNs that layers are made of. K kinds, D depths."""

    layers: list[Layer]  # [K]
    attentions: list[tuple[int, int]]  # (width, KV heads)
    ffns: list[tuple[int, float, bool]]  # (width, FFN ratio, gated)
    attention: np.ndarray  # index into `attentions` [K]
    ffn: np.ndarray  # index into `ffns` [K]
    width: np.ndarray  # index into the space's widths [K]
    every: np.ndarray  # one of this many layers has attention [K, 1]
    caches_inputs: np.ndarray  # whether a cache holds more than keys and values [K]
    weights: np.ndarray  # number of weights in the matrices of all layers [K, D]
    attention_share: np.ndarray  # share of `weights` in layers with attention [K, D]


class Choice(NamedTuple):
    """The best decoder, the cost model of its formats, and `members`, the number of decoders that were compared."""

    architecture: Architecture
    model: CostModel
    ln_loss: float
    members: int


@lru_cache(maxsize=4)
def kinds_of(space: Space) -> Kinds:
    attentions, ffns = space.attentions(), space.ffns()
    pairs = [
        (row, column, space.widths.index(width))
        for row, (width, _) in enumerate(attentions) for column, (other, *_) in enumerate(ffns) if width == other
    ]  # fmt: skip
    axes = list(itertools.product(space.attention_every, space.taps))
    layers = [Layer(*attentions[row], *ffns[column][1:], *more) for row, column, _ in pairs for more in axes]
    of_attention, of_ffn, of_width = np.repeat(np.array(pairs).reshape(-1, 3), len(axes), axis=0).T

    def matrices(groups: list[list[Operator]]) -> np.ndarray:
        return np.array([float(sum(op.matrix for op in group)) for group in groups])

    in_ffn = matrices([ffn.operators(*one) for one in ffns])[of_ffn]
    with_attention = matrices([attention.operators(*one) for one in attentions])[of_attention] + in_ffn
    with_convolution = matrices([mixer.operators(width) for width in space.widths])[of_width] + in_ffn
    every, depths = np.array([layer.attention_every for layer in layers])[:, None], np.array(space.depths)
    count = mixer.attentions(every, depths)
    in_attention = count * with_attention[:, None]
    weights = in_attention + (depths - count) * with_convolution[:, None]
    inputs = np.array([layer.attention_every > 1 or layer.taps for layer in layers])
    return Kinds(
        layers, attentions, ffns, of_attention, of_ffn, of_width, every, inputs, weights, in_attention / weights
    )


def best(
    space: Space, models: Sequence[CostModel], vocabs: Sequence[int], limits: Mapping[str, float],
    constants: Constants, most_weights: float | None = None,
) -> Choice:  # fmt: skip
    """Return the decoder of highest score within `limits`. Raise MerinoError if there is none.

    `models`: one for each pair of weight format and cache format; the first of equal decoders wins. `most_weights`:
    the most stored parameters that the training text can train. If all decoders within `limits` have more, the smallest
    number among them is allowed instead.
    """
    kinds, depths = kinds_of(space), np.array(space.depths)
    terms = [
        (
            attention.heads_term(layer.width // attention.head_size(layer.width), layer.kv_heads, constants),
            ffn.term(layer.gated, constants) + mixer.term(layer.attention_every, constants)
            + taps.term(layer.taps, constants),
        )
        for layer in kinds.layers
    ]  # fmt: skip
    of_heads, of_layers = np.array(terms).T[:, :, None]
    losses = ln_loss(kinds.weights, depths, of_heads * kinds.attention_share + of_layers, constants)
    losses = np.where(kinds.every <= depths, losses, np.inf)
    widths = np.array(space.widths)[kinds.width][:, None]
    chosen, least_loss = None, np.inf
    fewest = np.inf  # parameters of the smallest decoder within the limits
    for vocab, tables in itertools.product(vocabs, space.ngrams):
        of_vocab = losses + vocabulary.term(vocab, widths, kinds.weights, constants) + ngrams.term(tables, constants)
        for model in models:
            term = weight_format.term(model.shape.precision, constants)
            term += attention.cache_term(model.shape.kv, constants)
            costs = costs_of(space, model, vocab, depths, reads_prompts(limits), tables)
            fits = within_limits(costs, limits)
            if model.shape.kv:  # a quantized cache holds keys and values alone
                fits &= ~(kinds.caches_inputs[:, None] | bool(tables))
            if most_weights is not None:
                params = AtThreads(costs, 0, 0).params  # the same at all thread counts
                fewest = min(fewest, float(np.where(fits, params, np.inf).min()))
                fits &= params <= most_weights
            index = int(np.where(fits, of_vocab, np.inf).argmin())
            if fits.flat[index] and of_vocab.flat[index] + term < least_loss:
                chosen, least_loss = (index, vocab, tables, model), float(of_vocab.flat[index] + term)
    if chosen is None and np.isfinite(fewest):
        return best(space, models, vocabs, limits, constants, fewest)
    if chosen is None:
        raise nothing_fits(space, models, vocabs, limits)
    index, vocab, tables, model = chosen
    kind, depth = divmod(index, len(depths))
    arch = architecture(kinds.layers[kind], int(depths[depth]), vocab, model.shape.context, tables)
    return Choice(arch, model, least_loss, losses.size * len(vocabs) * len(space.ngrams) * len(models))


def reads_prompts(limits: Mapping[str, float]) -> bool:
    return any(BUDGETS_BY_NAME[name].phase == "prefill" for name in limits)


def thread_pairs(model: CostModel, limits: Mapping[str, float]) -> list[tuple[int, int]]:
    """Return pairs of indices into the thread counts, for decode and prefill. Equal ones come first, because different
    ones take more memory; these are only tried if a budget depends on the prefill."""
    counts = range(len(model.thread_counts))
    pairs = [(decode, prefill) for decode in counts for prefill in (counts if reads_prompts(limits) else [decode])]
    return sorted(pairs, key=lambda pair: pair[0] != pair[1])


def within_limits(costs: Costs, limits: Mapping[str, float]) -> np.ndarray:
    """Return whether each decoder keeps all limits at one pair of thread counts [K, D]."""
    fits = np.zeros(costs.peak.shape, bool)
    for decode, prefill in thread_pairs(costs.model, limits):
        at = AtThreads(costs, decode, prefill)
        kept = [BUDGETS_BY_NAME[name].of(at) <= most_within(limit) for name, limit in limits.items() if positive(limit)]
        fits |= np.logical_and.reduce(kept) if len(kept) == len(limits) else False
    return fits


def costs_of(
    space: Space, model: CostModel, vocab: int, depths: np.ndarray, prefill: bool, tables: tuple[Ngrams, ...] = ()
) -> Costs:
    """Return the costs of decoders of every kind of layer at every depth [K, D]."""
    kinds, layers = kinds_of(space), layer_tables(space, model, prefill)
    ends, peak = end_tables(space, model, vocab, prefill, tables)
    slots = table(float_cache(model), [SLOTS], prefill)[0] * (kinds.caches_inputs[:, None] | bool(tables))
    before = mixer.attentions(kinds.every, depths - 1)  # attentions before the last layer [K, D]
    last = mixer.attentions(kinds.every, depths) - before  # 1 if the last layer has attention, else 0 [K, D]

    def column(number: int) -> np.ndarray:
        once = layers.last[:, number] + ends[kinds.width, number] + slots[:, number]
        total = once[:, None] + layers.layer[:, number][:, None] * (depths - 1)
        if layers.convolution is None:
            return total
        inner, outer = (part[:, number][:, None] for part in layers.convolution)
        return total + inner * (depths - 1 - before) + outer * (1 - last)

    peaks = np.maximum(layers.peak, peak[kinds.width])
    return Costs(model, column, np.broadcast_to(peaks[:, None], (len(peaks), len(depths))))


class LayerTables(NamedTuple):
    """Costs of one layer of each kind, by one cost model. K kinds, Q columns of `costs.table`."""

    layer: np.ndarray  # [K, Q]
    last: np.ndarray  # costs of the last layer, which computes only one position after its attention [K, Q]
    peak: np.ndarray  # MB of a layer's largest activations [K]
    convolution: tuple[np.ndarray, np.ndarray] | None  # costs to add to `layer` and `last` if it replaces attention


@lru_cache(maxsize=64)
def layer_tables(space: Space, model: CostModel, prefill: bool) -> LayerTables:
    kinds, floats = kinds_of(space), float_cache(model)
    tapped = np.array([layer.taps for layer in kinds.layers])
    tables, convolutions = [], []
    one_tap, taps_peak = sums(floats, [taps.operators(width) for width in space.widths], prefill)
    for final in (False, True):
        mixed, peak = sums(model, [attention.operators(*one, final=final) for one in kinds.attentions], prefill)
        fed, fed_peak = sums(floats, [ffn.operators(*one, final=final) for one in kinds.ffns], prefill)
        places = taps.places(True, 1) if final else 2
        tables.append(mixed[kinds.attention] + fed[kinds.ffn] + (places * tapped)[:, None] * one_tap[kinds.width])
        convolved, other_peak = sums(floats, [mixer.operators(width, final=final) for width in space.widths], prefill)
        convolutions.append(convolved[kinds.width] - mixed[kinds.attention])
    largest = np.maximum(peak[kinds.attention], fed_peak[kinds.ffn])
    largest = np.where(kinds.every[:, 0] > 1, np.maximum(largest, other_peak[kinds.width]), largest)
    largest = np.where(tapped, np.maximum(largest, taps_peak[kinds.width]), largest)
    convolution = (convolutions[0], convolutions[1]) if max(space.attention_every) > 1 else None
    return LayerTables(tables[0], tables[1], largest, convolution)


@lru_cache(maxsize=64)
def end_tables(
    space: Space, model: CostModel, vocab: int, prefill: bool, tables: tuple[Ngrams, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the costs of embedding, tables, final norm and head [W, Q], and MB of their largest activations [W]."""
    ends = [vocabulary.operators(width, vocab) + ngrams.operators(width, tables) for width in space.widths]
    return sums(float_cache(model), ends, prefill)


def float_cache(model: CostModel) -> CostModel:
    """Return the cost model with a float cache, so that all cache formats share tables without attention."""
    return cost_model(model.profile, replace(model.shape, kv=None), model.confidence)


def sums(model: CostModel, groups: Sequence[list[Operator]], prefill: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the costs of groups [groups, Q], and MB of their largest activations [groups]. All groups have as many
    operators; one that occurs in several is computed once."""
    index: dict[Operator, int] = {}
    rows = np.array([[index.setdefault(op, len(index)) for op in group] for group in groups])
    amounts, peaks = table(model, list(index), prefill), np.array([model.on.activation_mb([op]) for op in index])
    return amounts[rows].sum(axis=1), peaks[rows].max(axis=1)


def nothing_fits(
    space: Space, models: Sequence[CostModel], vocabs: Sequence[int], limits: Mapping[str, float]
) -> MerinoError:
    """Return the error that names the decoders that need least. Decoders of the fewest layers are the candidates."""
    needs, combinations = [], []  # needs of K candidates by limit [limits, K]; vocabulary and cost model of the K
    for vocab, model in itertools.product(vocabs, models):
        costs = costs_of(space, model, vocab, np.array([min(space.depths)]), reads_prompts(limits))
        for pair in thread_pairs(model, limits):
            at = AtThreads(costs, *pair)
            needs.append([np.broadcast_to(BUDGETS_BY_NAME[name].of(at), costs.peak.shape)[:, 0] for name in limits])
            combinations.append((vocab, model))
    layers = kinds_of(space).layers

    def name_of(candidate: int) -> str:
        vocab, model = combinations[candidate // len(layers)]
        layer = layers[candidate % len(layers)]
        shape = architecture(layer, min(space.depths), vocab, model.shape.context).shape()
        cache = f", a cache of {model.shape.kv}" if model.shape.kv else ""
        return f"{shape}, vocabulary {vocab}, {model.shape.precision}{cache}"

    return refusal(limits, np.concatenate(needs, axis=1), name_of, models[0].profile)
