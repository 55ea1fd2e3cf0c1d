"""`--precision mixed`: which matrices of a 4-bit export get 8 bits, so that the bundle diverges least from float32
within a budget of bytes and decode time.

To second order an error e of the weights raises the KL divergence of the model's distribution by e'Fe / 2, with F the
Fisher information. Only the diagonal of F is used (as in FIT, arXiv 2210.08502, recalled), so the rise is a sum over
weights, and each matrix has its own term. The diagonal is measured on the answers that the model itself writes: mean
squares of the gradients of the log-likelihood of tokens that are sampled from the model's distribution.

The choice is a knapsack: integer linear programming (scipy's HiGHS) solves it exactly. Rounding of activations is the
same for both formats and is not counted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from merino_edge.bundles.description import GraphFormat
from merino_edge.export.divergence import Answer
from merino_edge.export.graphs import build_graph
from merino_edge.export.onnx.graph import Graph
from merino_edge.export.quantize.groups import dequantize
from merino_edge.export.quantize.outliers import Names
from merino_edge.export.source import Source
from merino_edge.families.registry import layout_of
from merino_edge.families.weights import Layout
from merino_runtime.errors import MerinoError
from merino_runtime.io.board import MB

SEED = 0


class Promotion(NamedTuple):
    """8 bits in place of 4 for the matrices of one matmul: saves `kl` nats per token, costs `nbytes` and `ms` of a
    decode step."""

    names: Names
    kl: float
    nbytes: int
    ms: float


def promotions(
    source: Source, form: GraphFormat, answers: Sequence[Answer], ms: tuple[float, float]
) -> tuple[list[Promotion], int]:
    """All possible promotions in an int4 export of this form, and the bytes of its weights without any.

    `ms`: predicted decode latency in int4 and in int8. The difference is spread over the weights.
    """
    four, eight = (build_graph(source, form._replace(precision=each)) for each in ("int4", "int8"))
    possible = [names for names, matrix in four.quantized.items() if matrix.bits == 4 and names in eight.quantized]
    saved = divergence_saved(source, answers, squared_errors(four, eight, possible))
    weights = {names: four.quantized[names].scales.size * four.quantized[names].group_size for names in possible}
    ms_per_weight = (ms[1] - ms[0]) / max(1, sum(weights.values()))
    possibilities = [
        Promotion(
            names, sum(saved[name] for name in names), eight.quantized[names].nbytes - four.quantized[names].nbytes,
            ms_per_weight * weights[names],
        )
        for names in possible
    ]  # fmt: skip
    return possibilities, four.weight_bytes


def squared_errors(four: Graph, eight: Graph, possible: Sequence[Names]) -> dict[str, np.ndarray]:
    """By matrix [out, in], as the graph has it: squared error of its weights in 4 bits, minus the one in 8 bits."""
    differences: dict[str, np.ndarray] = {}
    for names in possible:
        exact = four.joined(names)
        errors = [np.square(dequantize(graph.quantized[names]) - exact) for graph in (four, eight)]
        ends = np.cumsum([len(four.weights[name]) for name in names])[:-1]
        differences |= dict(zip(names, np.split(errors[0] - errors[1], ends), strict=True))
    return differences


def divergence_saved(
    source: Source, answers: Sequence[Answer], differences: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """KL divergence in nats per token of the answers, by matrix: half the Fisher information times the squared errors,
    summed over weights."""
    layout = layout_of(source.arch)
    totals = dict.fromkeys(differences, 0.0)
    for gradients in sampled_gradients(source, answers, list(differences)):
        for name, gradient in gradients.items():
            totals[name] += float(np.vdot(np.square(in_graph(layout(name), gradient)), differences[name]))
    tokens = sum(len(answer.ids) for answer in answers)
    return {name: total / 2 / tokens for name, total in totals.items()}


def in_graph(layout: Layout | None, weight: np.ndarray) -> np.ndarray:
    return layout.to_graph(weight) if layout else weight


def sampled_gradients(
    source: Source, answers: Sequence[Answer], names: Sequence[str]
) -> Iterator[dict[str, np.ndarray]]:
    """Per answer the gradients of the log-likelihood of sampled tokens. Tokens are sampled independently, so that the
    expected square of the sum is the sum of the expected squares."""
    generator = torch.Generator().manual_seed(SEED)
    model = source.model
    parameters = dict(model.named_parameters(remove_duplicate=False))
    matrices = [parameters[name] for name in names]
    for answer in answers:
        ids = torch.tensor([[*answer.prompt, *answer.ids]])
        logits = model(input_ids=ids, use_cache=False).logits[0, len(answer.prompt) - 1 : -1].float()
        sampled = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        loss = torch.nn.functional.cross_entropy(logits, sampled, reduction="sum")
        gradients = torch.autograd.grad(loss, matrices)
        yield {name: each.numpy() for name, each in zip(names, gradients, strict=True)}


def chosen(candidates: Sequence[Promotion], most_bytes: float | None, most_ms: float | None) -> frozenset[str]:
    """The matrices whose promotion saves most divergence within `most_bytes` and `most_ms` in all; None: no limit."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    useful = [each for each in candidates if each.kl > 0]
    if not useful:
        return frozenset()
    kl, nbytes, ms = (np.array(column, float) for column in list(zip(*useful, strict=True))[1:])
    limits = [LinearConstraint(row[None], ub=most) for row, most in ((nbytes, most_bytes), (ms, most_ms))
              if most is not None]  # fmt: skip
    scale = kl.max()
    solved = milp(-kl / scale, integrality=np.ones(len(kl)), bounds=Bounds(0, 1), constraints=limits)
    if solved.x is None:
        raise RuntimeError(f"the choice of matrices was not solved: {solved.message}")
    return frozenset(name for each, taken in zip(useful, solved.x, strict=True) if taken > 0.5 for name in each.names)


def eight_bits(
    source: Source, form: GraphFormat, answers: Sequence[Answer], most_bytes: float | None, most_ms: float | None,
    ms: tuple[float, float], say: Callable[[str], None],
) -> frozenset[str]:  # fmt: skip
    """Names of the matrices of an int4 export that get 8 bits. `most_bytes`: of all weights; without any limit the
    bytes half way between int4 and int8.

    Raises MerinoError where int4 alone exceeds a limit, or the model writes no answers to measure on.
    """
    if not answers:
        raise MerinoError(
            f"--precision mixed measures which matrices matter on what the model writes, and {source.name} has"
            f" {source.weights} weights or no tokenizer: choose int4 or int8"
        )
    candidates, least = promotions(source, form, answers, ms)
    whole = sum(each.nbytes for each in candidates)
    if most_bytes is None and most_ms is None:
        most_bytes = least + whole / 2
    if most_bytes is not None and most_bytes < least:
        raise MerinoError(
            f"--file-mb {most_bytes / MB:g} is less than the {least / MB:.1f} MB that the weights of {source.name} take"
            " in int4: give more, or take int4 alone"
        )
    if most_ms is not None and most_ms < ms[0]:
        raise MerinoError(f"--decode-ms {most_ms:g} is less than the {ms[0]:.2f} ms predicted in int4: give more, or"
                          " take int4 alone")  # fmt: skip
    names = chosen(
        candidates, None if most_bytes is None else most_bytes - least, None if most_ms is None else most_ms - ms[0]
    )
    taken = [each for each in candidates if each.names[0] in names]
    saved, all_saved = (sum(each.kl for each in some) for some in (taken, candidates))
    say(
        f"mixed: 8 bits for {len(names)} of {sum(len(each.names) for each in candidates)} matrices,"
        f" {sum(each.nbytes for each in taken) / MB:.1f} MB more than int4; they hold"
        f" {saved / all_saved if all_saved > 0 else 0:.0%} of the divergence that int4's weights add"
    )
    return names
