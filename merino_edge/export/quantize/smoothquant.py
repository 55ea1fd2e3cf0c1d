"""SmoothQuant (arXiv 2211.10438) for groups of int8: outlier channels of activations are scaled down.

An integer matmul rounds its input in groups of the weights' group_size, by the largest value of each, so that a much
larger channel costs the others of its group their precision. Such a channel is divided by a factor in the norm or
matrix that computes it, and the columns of the matrices that read it are multiplied by the factor. Only weights change:
the model computes the same up to float32 rounding, at the same latency. Figures: docs/decisions/quantization.md.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from merino_edge.export.dialects.graph import Factors
from merino_edge.export.quantize.calibration import input_sizes
from merino_edge.export.quantize.weights import fits
from merino_edge.export.source import Source
from merino_edge.families.graph_ops import Norm
from merino_edge.families.pre_norm import Decoder, Linear
from merino_edge.families.weights import GraphWeights, model_weights

BITS = 8
NOTE = "activation channels rescaled by SmoothQuant"  # doc_string of the model's file
LEAST = 1e-3  # smallest size of a channel, relative to the mean


class Site(NamedTuple):
    """An activation: `before` computes its channels, the matrices `after` read it.

    `before`: a norm, or joined matrices whose last rows are the channels.
    """

    before: Norm | Linear
    after: Linear


def smoothed(
    source: Source, rows: Callable[[], np.ndarray], adapters: Mapping[str, Factors], *, in_place: bool = False
) -> Source:
    """Return the source with channels rescaled by their sizes on `rows()`, ids [rows, T].

    A copy of the model is changed, or the model itself if `in_place`; and the adapters' factors with it. Returns the
    source unchanged if the graph takes over all of its blocks, or if its family has no `Decoder`.
    """
    decoder, blocks = source.arch.decoder(), source.blocks

    def is_taken_over(name: str) -> bool:
        stored = blocks.blocks(name) if blocks else None
        return stored is not None and fits(stored, BITS)

    sites = [
        site for site in (sites_of(decoder) if decoder else ())
        if not any(map(is_taken_over, (*site.after.weights, *getattr(site.before, "weights", ()))))
    ]  # fmt: skip
    if not sites:
        return source
    model = source.model if in_place else copy.deepcopy(source.model)
    weights = model_weights(model, source.arch.layout)
    sizes = input_sizes(model, [site.after.weights[0] for site in sites], rows())
    for site in sites:
        columns = np.concatenate([weights[name] for name in site.after.weights])
        factors = factors_of(sizes[site.after.weights[0]], np.sqrt(np.square(columns).mean(0)))
        move(weights, site, factors)
        for name in adapters.keys() & site.after.weights:
            adapters[name].down[:] *= factors[:, None]
        if isinstance(site.before, Linear) and (adapter := adapters.get(site.before.weights[-1])):
            adapter.up[..., -len(factors) :] /= factors
    return source._replace(model=model)


def sites_of(decoder: Decoder) -> Iterator[Site]:
    """Yield the activations at which factors help at no cost: after norms, and after a gated FFN's elementwise product,
    whose other half absorbs them.

    The norm before the head counts only if the head is not tied to the embedding. After attention, factors did not
    help.
    """
    for layer in decoder.layers:
        shared = decoder.parallel and not layer.ffn_norm  # the FFN reads the attention's input
        if layer.attention_norm:
            yield Site(layer.attention_norm, Linear(layer.qkv.weights + layer.up.weights) if shared else layer.qkv)
        if layer.ffn_norm:
            yield Site(layer.ffn_norm, layer.up)
        if layer.gated:
            yield Site(layer.up, layer.down)
    if decoder.head != decoder.embedding:
        yield Site(decoder.final_norm, Linear((decoder.head,)))


def move(weights: GraphWeights, site: Site, factors: np.ndarray) -> None:
    """Divide the channels by `factors` in `site.before`, and multiply the columns of `site.after` by them."""
    if isinstance(site.before, Norm):
        for name in (site.before.weight, site.before.bias):
            if name:
                weights[name] = weights[name] / factors
    else:
        for names in (site.before.weights, site.before.biases):
            if names:
                rows = weights[names[-1]].copy()
                rows[-len(factors) :] /= factors.reshape(-1, *[1] * (rows.ndim - 1))
                weights[names[-1]] = rows
    for name in site.after.weights:
        weights[name] = weights[name] * factors


def factors_of(inputs: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return factors that make an input's channels and the matrix's columns equally uneven, from their sizes [in]. Both
    are rounded in groups, and the error of the matmul grows with the unevenness of either."""
    inputs, columns = (np.maximum(sizes, LEAST * sizes.mean() or 1) for sizes in (inputs, columns))
    factors = np.sqrt(inputs / columns)
    normalized: np.ndarray = (factors / np.exp(np.log(factors).mean())).astype(np.float32)
    return normalized
