"""`--precision mixed`: which matrices of a 4-bit export get 8 bits, so that the bundle diverges least from float32
within a budget of bytes and decode time.

To second order an error e of the weights raises the KL divergence of the model's distribution by e'Fe / 2, with F the
Fisher information. Only the diagonal of F is used (as in FIT, arXiv 2210.08502, recalled), so the rise is a sum over
weights, and each matrix has its own term. The diagonal is measured on the answers that the model itself writes: mean
squares of the gradients of the log-likelihood of tokens that are sampled from the model's distribution.

The choice is a knapsack: integer linear programming (scipy's HiGHS) solves it exactly. Rounding of activations is the
same for both formats and is not counted.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from merino_edge.bundles.description import GraphFormat
from merino_edge.export.dialects import build_graph
from merino_edge.export.divergence import Answer
from merino_edge.export.plan import ExportPlan, predicted_ms
from merino_edge.export.quantize.matrix import dequantize
from merino_edge.export.quantize.weights import Rounding, quantized_matrices
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import Source, graph_weights
from merino_runtime.errors import MerinoError
from merino_runtime.io.board import MB

SEED = 0


class Promotion(NamedTuple):
    """8 bits instead of 4 for one matrix of joined ones: saves `kl` nats per token, costs `nbytes` and `ms` of a decode
    step."""

    name: str
    kl: float
    nbytes: int
    ms: float


def mixed_plan(
    plan: ExportPlan, source: Source, request: ExportRequest, answers: Sequence[Answer], say: Callable[[str], None]
) -> ExportPlan:
    """Return the plan of an int4 export with 8 bits for the matrices that save most divergence within the request's
    limits; without any limit the weights take the bytes half way between int4 and int8.

    Raises MerinoError if int4 alone exceeds a limit, or the model writes no answers to measure on.
    """
    if not answers:
        raise MerinoError(
            f"--precision mixed measures which matrices matter on what the model writes, and {source.name} has"
            f" {source.weights} weights or no tokenizer: choose int4 or int8"
        )
    form, most_ms, ms = plan.form, request.decode_ms, {"int4": 0.0, "int8": 0.0}
    if request.board and most_ms is not None:
        ms = predicted_ms(source.arch, request.board, [form._replace(precision=name) for name in ms])
    candidates, least = promotions(source, form, answers, ms["int8"] - ms["int4"])
    most_bytes = None if request.file_mb is None else request.file_mb * MB
    if most_bytes is None and most_ms is None:
        most_bytes = least + sum(candidate.nbytes for candidate in candidates) / 2
    if most_bytes is not None and most_bytes < least:
        raise MerinoError(
            f"--set file_mb={most_bytes / MB:g} is less than the {least / MB:.1f} MB that the weights of"
            f" {source.name} take in int4: give more, or take int4 alone"
        )
    if most_ms is not None and most_ms < ms["int4"]:
        raise MerinoError(
            f"--set decode_ms={most_ms:g} is less than the {ms['int4']:.2f} ms predicted in int4: give more, or take"
            " int4 alone"
        )
    spare_bytes = None if most_bytes is None else most_bytes - least
    taken = chosen(candidates, spare_bytes, None if most_ms is None else most_ms - ms["int4"])
    names = [name for candidate in taken for name in candidate.name.split("+")]
    more_mb = sum(candidate.nbytes for candidate in taken) / MB
    say(f"mixed: 8 bits for {len(names)} matrices, {more_mb:.1f} MB more than int4")
    return plan._replace(eight_bits=frozenset(names))


def promotions(
    source: Source, form: GraphFormat, answers: Sequence[Answer], more_ms: float
) -> tuple[list[Promotion], int]:
    """Return all possible promotions in an int4 export of this form, and the bytes of its weights without any.
    `more_ms`: predicted decode latency in int8 minus that in int4. It is spread over the weights."""
    weights, how = graph_weights(source), Rounding(source.blocks)
    four, eight = (
        quantized_matrices(source.arch, weights, form._replace(precision=name), how) for name in ("int4", "int8")
    )
    possible = [name for name, matrix in four.items() if matrix.bits == 4 and name in eight]
    differences: dict[str, np.ndarray] = {}  # by matrix [out, in]: squared errors in 4 bits, minus those in 8 bits
    for joined in possible:
        names = joined.split("+")
        exact = np.concatenate([weights[name] for name in names])
        errors = [np.square(dequantize(matrices[joined]) - exact) for matrices in (four, eight)]
        ends = np.cumsum([len(weights[name]) for name in names])[:-1]
        differences |= dict(zip(names, np.split(errors[0] - errors[1], ends), strict=True))
    saved = divergence_saved(source, answers, differences)
    sizes = {name: four[name].scales.size * four[name].group_size for name in possible}
    ms_per_weight = more_ms / max(1, sum(sizes.values()))
    possibilities = [
        Promotion(
            name, sum(saved[one] for one in name.split("+")), eight[name].nbytes - four[name].nbytes,
            ms_per_weight * sizes[name],
        )
        for name in possible
    ]  # fmt: skip
    return possibilities, build_graph(source.arch, weights, four, form).weight_bytes


def divergence_saved(
    source: Source, answers: Sequence[Answer], differences: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Return by matrix the KL divergence in nats per token of the answers: half the Fisher information times the
    squared errors, summed over weights.

    The gradients are those of the log-likelihood of sampled tokens. Tokens are sampled independently, so that the
    expected square of the sum is the sum of the expected squares.
    """
    generator, layout = torch.Generator().manual_seed(SEED), source.arch.layout
    parameters = dict(source.model.named_parameters(remove_duplicate=False))
    totals = dict.fromkeys(differences, 0.0)
    for answer in answers:
        ids = torch.tensor([[*answer.prompt, *answer.ids]])
        logits = source.model(input_ids=ids, use_cache=False).logits[0, len(answer.prompt) - 1 : -1].float()
        sampled = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        loss = torch.nn.functional.cross_entropy(logits, sampled, reduction="sum")
        gradients = torch.autograd.grad(loss, [parameters[name] for name in totals])
        for name, gradient in zip(totals, gradients, strict=True):
            place = layout(name)
            in_graph = place.to_graph(gradient.numpy()) if place else gradient.numpy()
            totals[name] += float(np.vdot(np.square(in_graph), differences[name]))
    tokens = sum(len(answer.ids) for answer in answers)
    return {name: total / 2 / tokens for name, total in totals.items()}


def chosen(candidates: Sequence[Promotion], most_bytes: float | None, most_ms: float | None) -> list[Promotion]:
    """Choose the promotions that save most divergence within `most_bytes` and `most_ms` in total; None: no limit."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    useful = [candidate for candidate in candidates if candidate.kl > 0]
    if not useful:
        return []
    kl, nbytes, ms = (np.array(column, float) for column in list(zip(*useful, strict=True))[1:])
    limits = [
        LinearConstraint(row[None], ub=most) for row, most in ((nbytes, most_bytes), (ms, most_ms)) if most is not None
    ]
    solved = milp(-kl / kl.max(), integrality=np.ones(len(kl)), bounds=Bounds(0, 1), constraints=limits)
    if solved.x is None:
        raise RuntimeError(f"the choice of matrices was not solved: {solved.message}")
    return [candidate for candidate, share in zip(useful, solved.x, strict=True) if share > 0.5]
