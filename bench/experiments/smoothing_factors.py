"""Scales moved from activations into weights, so that 8 bits round both well (SmoothQuant, arXiv 2211.10438).

An input channel of a matrix is divided by a factor where it arises, in the gain of a norm or in the rows of the matrix
before it, and the matrix's column is multiplied by the same factor. The model computes what it did.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from merino_edge.families.gated import GatedGeometry
from merino_edge.families.graph_ops import Norm
from merino_edge.families.pre_norm import Layer, Linear
from merino_edge.families.registry import layout_of

SAMPLES = 256  # inputs of a matrix that the factors are chosen by
STRENGTHS = (0.0, 0.4, 0.5, 0.6)  # 0: no factors; 1: all channels equally large
LARGE = 0.98  # share of inputs below what a channel's size is: the largest of all are of a few tokens
LEAST = 1e-5  # in place of the size of a channel of zeros


class Site(NamedTuple):
    """An input that is rounded once: where it arises, and the matrices that it goes into.

    `before`: a norm, or matrices of whose joined rows those from `start` on give the channels. `shared`: heads in a
    row, of `head_size` channels, that arise from the same rows; 1 where each channel has a row of its own.
    """

    before: Norm | Linear
    after: Linear
    start: int = 0
    shared: int = 1
    head_size: int = 1


def sites_of(arch: GatedGeometry, layer: Layer) -> Iterator[Site]:
    kept = layer.cache
    values = (arch.heads + kept.heads) * kept.head_size
    yield Site(layer.attention_norm, layer.qkv)
    yield Site(layer.qkv, layer.out, values, arch.heads // kept.heads, kept.head_size)
    yield Site(layer.ffn_norm, layer.up)
    yield Site(layer.up, layer.down, arch.ffn_width)


@torch.no_grad()
def smooth(model: PreTrainedModel, arch: GatedGeometry, rows: torch.Tensor) -> None:
    """Change the weights of `model`, which then computes the same. rows: ids [n, T]."""
    sites = [site for layer in arch.decoder().layers for site in sites_of(arch, layer)]
    inputs = sampled_inputs(model, [site.after.weights[0] for site in sites], rows)
    state, layout = model.state_dict(), layout_of(arch)
    for site in sites:
        weights = np.concatenate([state[name].numpy() for name in site.after.weights])
        factors = chosen_factors(inputs.pop(site.after.weights[0]), weights, site)
        for name in site.after.weights:
            state[name].mul_(torch.from_numpy(of_inputs(factors, site)))
        if isinstance(site.before, Norm):
            gain, there = state[site.before.weight], layout(site.before.weight)
            found = (there.to_graph(gain.numpy()) if there else gain.numpy()) / factors
            gain.copy_(torch.from_numpy(there.to_state(found) if there else found))
        else:
            for names in (site.before.weights, site.before.biases):
                divide_rows([state[name] for name in names], site.start, torch.from_numpy(factors))


def divide_rows(parts: Sequence[torch.Tensor], start: int, factors: torch.Tensor) -> None:
    """Of matrices or vectors joined along their rows, in place, the rows from `start` on."""
    for part in parts:
        if start < len(part):
            part[max(start, 0) :].div_(factors.reshape(-1, *[1] * (part.dim() - 1)))
        start -= len(part)


def sampled_inputs(model: PreTrainedModel, names: Sequence[str], rows: torch.Tensor) -> dict[str, np.ndarray]:
    """By the name of a matrix, about SAMPLES inputs of it [n, in]."""
    kept: dict[str, list[np.ndarray]] = {name: [] for name in names}
    random, each = np.random.default_rng(0), min(rows.shape[1], SAMPLES // len(rows))

    def keep(name: str) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
        def hook(_module: Any, given: tuple[torch.Tensor, ...]) -> None:
            kept[name].append(given[0][0].numpy()[random.choice(rows.shape[1], each, replace=False)])

        return hook

    hooks = [
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(keep(name)) for name in names
    ]
    try:
        for row in rows:
            model.base_model(input_ids=row[None])
    finally:
        for one in hooks:
            one.remove()
    return {name: np.concatenate(parts) for name, parts in kept.items()}


def chosen_factors(x: np.ndarray, weights: np.ndarray, site: Site) -> np.ndarray:
    """Of each channel that arises, those of the strength with the least error of x [n, in] @ weights [out, in]^T, both
    in 8 bits. Each row of x counts alike, however large: some tokens' are a hundred times the others'."""
    x = x / np.maximum(np.sqrt(np.square(x).mean(1, keepdims=True)), LEAST)
    right = x @ weights.T

    def error(factors: np.ndarray) -> float:
        wide = of_inputs(factors, site)
        off = rounded_inputs(x / wide) @ rounded_weights(weights * wide).T - right
        return float((np.square(off).sum(1) / np.maximum(np.square(right).sum(1), LEAST**2)).mean())

    sizes = np.quantile(np.abs(x), LARGE, axis=0).astype(np.float32)
    inputs = np.maximum(of_channels(sizes, site), LEAST)
    columns = np.maximum(of_channels(np.sqrt(np.square(weights).mean(0)), site), LEAST)
    return min((factors_of(inputs, columns, strength) for strength in STRENGTHS), key=error)


def factors_of(inputs: np.ndarray, weights: np.ndarray, strength: float) -> np.ndarray:
    """Of the sizes of each channel's inputs and weights. At least 1: columns of weights grow, and none fades, since a
    channel that is small for most tokens may be the one that is largest of all for a few."""
    if not strength:
        return np.ones_like(inputs)
    factors = inputs**strength / weights ** (1 - strength)
    found: np.ndarray = np.maximum(factors / np.median(factors), 1)
    return found


def rounded_inputs(x: np.ndarray) -> np.ndarray:
    """Each row as DynamicQuantizeLinear rounds it."""
    low, high = np.minimum(x.min(1, keepdims=True), 0), np.maximum(x.max(1, keepdims=True), 0)
    scale = np.maximum((high - low) / 255, 1e-30)
    zero = np.rint(-low / scale)
    rounded: np.ndarray = (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale
    return rounded


def rounded_weights(weights: np.ndarray) -> np.ndarray:
    """Each row in codes of both signs."""
    scale = np.maximum(np.abs(weights).max(1, keepdims=True) / 127, 1e-30)
    rounded: np.ndarray = np.rint(weights / scale) * scale
    return rounded


def of_channels(values: np.ndarray, site: Site) -> np.ndarray:
    """Of the inputs' channels those that arise, the largest where several are one."""
    found: np.ndarray = values.reshape(-1, site.shared, site.head_size).max(1).ravel()
    return found


def of_inputs(values: np.ndarray, site: Site) -> np.ndarray:
    """Of the channels that arise all of the inputs; what `of_channels` undoes."""
    return values.reshape(-1, 1, site.head_size).repeat(site.shared, 1).ravel()
