"""From a board and limits to a design: score every decoder of the default space, or run the paper's search."""

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from merino_edge.design import enumeration
from merino_edge.design.axes import training_text, vocabulary
from merino_edge.design.budgets import predictable
from merino_edge.design.design_file import Considered, Design, Ratio, Solver, Training
from merino_edge.design.law import Constants, effective_weights
from merino_edge.design.paper.score import MERINO, MerinoScoring
from merino_edge.design.paper.search import solve
from merino_edge.design.paper.space import PAPER_SPACE, PaperSpace
from merino_edge.design.score import CONSTANTS, MEASURED, MeasuredScoring, Scoring, loss_of
from merino_edge.design.space import SPACE, Space
from merino_edge.families.designed import Architecture
from merino_edge.families.operators import params
from merino_edge.families.zoo import model
from merino_edge.prediction.cost_model import CostModel, cost_model
from merino_edge.prediction.formats import check_cache, check_format, dialect_on, fast_formats, formats_of, has_cache
from merino_edge.prediction.intervals import DEFAULT_CONFIDENCE
from merino_edge.prediction.shape import InferenceShape, check_lengths
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.bundle import QUANTIZED_CACHES
from merino_runtime.errors import MerinoError


class TrainingText(NamedTuple):
    """`most_vocab`: entries that a tokenizer of the text can have. `hours` of training: this machine does `flops`
    floating-point operations in them."""

    tokens: float
    most_vocab: int | None = None
    hours: float | None = None
    flops: float | None = None


MOST_COMBINATIONS = 128  # of vocabulary and formats: each scores the whole space


def design(
    profile: DeviceProfile, limits: Mapping[str, float], *, context: int, prompt: int, space: Space = SPACE,
    vocabs: Sequence[int] = (), precisions: Sequence[str] = (), kvs: Sequence[str | None] | None = None,
    text: TrainingText | None = None, scoring: MeasuredScoring = MEASURED, confidence: float = DEFAULT_CONFIDENCE,
) -> Design:  # fmt: skip
    """Return the decoder of highest score in `space` within `limits` (`budgets`), by the costs of the board's backend.

    On a calibrated board, the upper bound of each latency's prediction interval at `confidence` must meet its limit.
    `vocabs`, `precisions`, `kvs`: vocabularies and formats of weights and cache to choose from; by default VOCABS and
    the formats that the board is fast at. In `kvs` None is the format of the activations. Raises MerinoError if no
    decoder fits, with the smallest limits that one needs.
    """
    started = time.perf_counter()
    most_weights = None
    if text:
        training_text.check(text.tokens)
        most_weights = training_text.most_weights(text.tokens, text.flops)
        scoring = scoring.having(alpha=training_text.alpha(text.tokens))
    vocabs = sorted(set(vocabs or vocabularies(most_weights, text and text.most_vocab)))
    wanted = precisions or fast_formats(profile)  # in the backend's order, because the first of equal decoders wins
    precisions = [name for name in dict.fromkeys([*formats_of(profile), *wanted]) if name in wanted]
    models = cost_models(profile, precisions, kvs, context, prompt, vocabs, confidence)
    if len(vocabs) * len(models) > MOST_COMBINATIONS:
        raise MerinoError(
            f"{len(vocabs)} vocabularies x {len(models)} pairs of formats: give at most {MOST_COMBINATIONS} in all"
        )
    limits = predictable(limits, profile)
    choice = enumeration.best(space, models, vocabs, limits, scoring.constants, most_weights)
    score, seconds = float(effective_weights(choice.ln_loss, scoring.constants)), time.perf_counter() - started
    return design_of(
        choice.architecture, choice.model, limits, score, scoring=scoring, text=text,
        considered=Considered(
            vocab=vocabs, precision=precisions, kv=list(dict.fromkeys(costs.shape.kv for costs in models))
        ),
        solver=Solver(
            name="enumeration", gap=0.0, bound=score, seconds=round(seconds, 3), seed=0, members=choice.members
        ),
    )  # fmt: skip


def design_by_paper(
    profile: DeviceProfile, limits: Mapping[str, float], *, context: int, prompt: int,
    space: PaperSpace = PAPER_SPACE, precision: str | None = None, kv: str | None = None,
    scoring: MerinoScoring = MERINO, confidence: float = DEFAULT_CONFIDENCE,
) -> Design:  # fmt: skip
    """Return the decoder of highest score in the paper's space. The paper's score ignores vocabulary and formats, so
    one of each is given. `precision`: by default the backend's preferred one."""
    started = time.perf_counter()
    precision = precision or formats_of(profile)[0]
    (costs,) = cost_models(profile, [precision], [kv], context, prompt, [space.vocab], confidence)
    limits = predictable(limits, profile)
    best = solve(space, costs, limits, scoring)
    gap = best.bound / best.score - 1 if best.score else float(best.bound > 0)
    proof = {"gap": gap, "bound": best.bound} if math.isfinite(gap) else {"gap": None, "bound": None}
    seconds = round(time.perf_counter() - started, 3)
    return design_of(
        best.architecture, costs, limits, best.score, scoring=scoring,
        considered=Considered(vocab=[space.vocab], precision=[precision], kv=[kv]),
        solver=Solver(name="integer program", **proof, seconds=seconds, seed=0),
    )  # fmt: skip


def design_of(
    arch: Architecture, costs: CostModel, limits: Mapping[str, float], score: float, *, scoring: Scoring,
    solver: Solver, considered: Considered, text: TrainingText | None = None,
) -> Design:  # fmt: skip
    shape, profile = costs.shape, costs.profile
    training = Training(
        tokens=text and text.tokens, right_tokens=params(arch.operators) * training_text.TOKENS_PER_WEIGHT.value,
        bytes_per_token=vocabulary.bytes_per_token(arch.vocab),
        most_weights=text and training_text.most_weights(text.tokens, text.flops),
        most_weights_interval=text and training_text.size_interval(text.tokens), hours=text and text.hours,
    )  # fmt: skip
    return Design(
        device=profile.id, backend=profile.backend, dialect=dialect_on(profile), architecture=arch,
        precision=shape.precision, kv=shape.kv, prompt=shape.prompt, budget=dict(limits), entropy=score,
        scoring=scoring, predicted=costs.predict(arch.operators, limits), training=training, considered=considered,
        solver=solver, loss_ratio=loss_ratio(arch, costs, scoring) if isinstance(scoring, MeasuredScoring) else None,
    )  # fmt: skip


def loss_ratio(arch: Architecture, costs: CostModel, scoring: MeasuredScoring) -> Ratio:
    """Return the predicted loss relative to OPT-350M's geometry in float32, if both train alike. Its bounds are the
    extremes over the interval ends of all constants that change it."""
    reference, shape = model("opt-350m").geometry, costs.shape

    def ratio(constants: Constants) -> float:
        return math.exp(loss_of(arch, constants, shape.precision, shape.kv) - loss_of(reference, constants))

    value = ratio(scoring.constants)
    known = [(name, one.low, one.high) for name, one in CONSTANTS.items()]
    ends = {name: (low, high) for name, low, high in known if low is not None and high is not None}
    varied = [name for name in ends if len({ratio({**scoring.constants, name: end}) for end in ends[name]}) == 2]
    corners = [
        ratio({**scoring.constants, **dict(zip(varied, corner, strict=True))})
        for corner in itertools.product(*(ends[name] for name in varied))
    ]
    return Ratio(value=value, low=min(value, *corners), high=max(value, *corners))


def cost_models(
    profile: DeviceProfile, precisions: Sequence[str], kvs: Sequence[str | None] | None, context: int, prompt: int,
    vocabs: Sequence[int], confidence: float,
) -> list[CostModel]:  # fmt: skip
    """Return a cost model for each pair of formats of weights and cache. `kvs`: None: all that the board's runtime has.
    Raise MerinoError for a request that cannot be met."""
    for precision in precisions:
        check_format(profile, precision)
        for kv in kvs or ():
            check_cache(profile, kv, precision)
    for vocab in vocabs:
        vocabulary.check(vocab)
    check_lengths(context, prompt)
    return [
        cost_model(profile, InferenceShape(precision, context, prompt, kv), confidence)
        for precision in precisions for kv in (caches_of(profile, precision) if kvs is None else kvs)
    ]  # fmt: skip


def caches_of(profile: DeviceProfile, precision: str) -> list[str | None]:
    """Return the KV cache formats that the board's runtime supports beside weights in `precision`; None is the format
    of the activations."""
    return [None, *(kv for kv in QUANTIZED_CACHES if has_cache(profile, kv, precision))]


def vocabularies(most_weights: float | None, most_vocab: int | None = None) -> tuple[int, ...]:
    """Return the vocabularies to choose from, with small ones for a text that trains few weights; none above
    `most_vocab`, the entries that the text can fill."""
    few = most_weights is not None and most_weights < vocabulary.LAYERS
    usual = (*vocabulary.SMALL_VOCABS, *vocabulary.VOCABS) if few or most_vocab else vocabulary.VOCABS
    return tuple(vocab for vocab in usual if vocab <= (most_vocab or vocab)) or (most_vocab or usual[0],)
