"""From a board and limits to a design: encode the space, solve it, predict the optimum."""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from merino_edge.design import evolution, exact
from merino_edge.design.budgets import known
from merino_edge.design.design_file import Considered, Design, LossRatio, Ratio, Solver, SolverName
from merino_edge.design.encode import architecture
from merino_edge.design.evolution import Effort
from merino_edge.design.exact import Answer
from merino_edge.design.existing import BLOCKS, existing_score
from merino_edge.design.law import CONSTANTS, MeasuredScoring
from merino_edge.design.program import Program, uniform
from merino_edge.design.score import DEFAULT, Scoring
from merino_edge.design.space import Space
from merino_edge.design.variants import Variant, combinations, encode_all, search
from merino_edge.families.designed import Architecture
from merino_edge.families.geometry import Geometry
from merino_edge.families.zoo import model
from merino_edge.prediction.formats import cache_needs, formats_of, has_cache, is_predicted
from merino_edge.prediction.intervals import DEFAULT_CONFIDENCE
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.errors import MerinoError

MEASURED_CONSTANTS = [name for name, each in CONSTANTS.items() if each.low is not None]


def design(
    profile: DeviceProfile,
    limits: Mapping[str, float],
    *,
    space: Space,
    context: int,
    prompt: int,
    precision: str | None = None,
    kv: str | None = None,
    vocabs: Sequence[int] = (),
    precisions: Sequence[str] = (),
    solver: SolverName = "exact",
    effort: Effort = Effort(),  # noqa: B008 - frozen
    seed: int = 0,
    scoring: Scoring = DEFAULT,
    confidence: float = DEFAULT_CONFIDENCE,
    progress: Callable[[int], None] | None = None,
) -> Design:
    """The decoder of highest score in `space` within `limits` (`budgets`) on the board, at the costs of its backend.

    On a calibrated board, the upper bound of each latency's prediction interval at `confidence` must meet its limit.

    `precision`: by default the backend's preferred one. `kv`: the format of the cache, by default that of the
    activations. `vocabs` and `precisions` replace `space.vocab` and `precision` by several; the design of highest
    comparison score wins (`variants`). The exact solver bounds evolution's result too, so that either reports its gap.
    Raises MerinoError where no decoder fits, with the smallest limits that would.
    """
    if isinstance(scoring, MeasuredScoring):  # its programs have no weights between two widths
        space = replace(space, padded=True)
    variants = open_variants(
        profile, space, context, prompt, vocabs or (space.vocab,),
        precisions or (precision or formats_of(profile)[0],), confidence, kv,
        scoring,
    )  # fmt: skip
    limits = known(limits)
    started = time.perf_counter()

    def evolve(program: Program, _: float) -> Answer:
        return Answer(evolution.evolve(program, seed=seed, effort=effort, progress=progress), math.inf)

    optimum = proof = search(variants, limits, scoring, exact.improve)
    if solver == "evolution":  # in the optimum's own vocabulary, format and regime
        started = time.perf_counter()
        optimum = search([proof.variant], limits, scoring, evolve)
    seconds = time.perf_counter() - started
    entropy, variant = optimum.solution.score, optimum.variant
    bound = proof.solution.score if proof.proved and proof.variant == variant else variant.score_of(proof.bound)
    arch = architecture(variant.space, optimum.program, optimum.solution.choice, context)
    return Design(
        device=profile.id,
        backend=profile.backend,
        architecture=arch,
        precision=variant.precision,
        kv=kv,
        prompt=prompt,
        budget=limits,
        searched=limits,
        predicted=variant.model.predict(arch.operators, limits),
        entropy=entropy,
        scoring=scoring,
        loss_ratio=loss_ratio(arch, variant, limits, scoring) if isinstance(scoring, MeasuredScoring) else None,
        considered=Considered(
            vocab=sorted({each.space.vocab for each in variants}),
            precision=sorted({each.precision for each in variants}, key=formats_of(profile).index),
        ),
        solver=Solver(name=solver, gap=relative_gap(entropy, bound), bound=bound, seconds=round(seconds, 3), seed=seed),
    )


def open_variants(
    profile: DeviceProfile, space: Space, context: int, prompt: int, vocabs: Sequence[int],
    precisions: Sequence[str], confidence: float, kv: str | None = None, scoring: Scoring = DEFAULT,
) -> list[Variant]:
    """A variant per vocabulary and format. Raises MerinoError for a request that cannot be met."""
    for precision in precisions:
        for vocab in vocabs:
            check_request(profile, precision, context, prompt, vocab, kv)
    odd = [width for width in space.widths if width % space.head_size]
    if odd:
        raise MerinoError(f"heads of {space.head_size} do not divide widths of {odd[0]}: take heads of 32")
    if not space.options():
        counts = ", ".join(str(count) for count in space.kv_heads)
        raise MerinoError(f"--kv-heads {counts}: no block has a multiple of so many heads. Give fewer, or heads of 32")
    shape = InferenceShape(precisions[0], context, prompt, kv)
    law = scoring if isinstance(scoring, MeasuredScoring) else None
    return combinations(space, profile, shape, vocabs, precisions, confidence, law)


def loss_ratio(
    arch: Architecture, variant: Variant, limits: Mapping[str, float], scoring: MeasuredScoring
) -> LossRatio:
    """Predicted loss under the measured law, relative to OPT-350M and to the best uniform decoder."""
    shares = any(block.shared for block in arch.blocks)
    varied = [name for name in MEASURED_CONSTANTS if shares or name != "sharing"]
    ends = [[getattr(scoring, name), CONSTANTS[name].low, CONSTANTS[name].high] for name in varied]
    laws = [scoring.model_copy(update=dict(zip(varied, values, strict=True))) for values in itertools.product(*ends)]

    def ratio(other: Geometry) -> Ratio:
        ratios = [(known_score(arch, law) / known_score(other, law)) ** -law.alpha for law in laws]
        return Ratio(value=ratios[0], low=min(ratios), high=max(ratios))

    plain = [
        (even.score, architecture(variant.space, program, even.choice, arch.context))
        for _, program in encode_all([replace(variant, regime=None)], limits, scoring) for even in uniform(program)
    ]  # fmt: skip
    best = max(plain, key=lambda pair: pair[0])[1] if plain else None
    return LossRatio(opt_350m=ratio(model("opt-350m").geometry), uniform=ratio(best) if best else None)


def known_score(geometry: Geometry, scoring: MeasuredScoring) -> float:
    score = existing_score(geometry, BLOCKS, scoring)
    assert score is not None, "the measured law scores any matrices"
    return score


def relative_gap(score: float, bound: float) -> float:
    return max(0.0, (bound - score) / score) if score else float(bound > 0)


def check_request(
    profile: DeviceProfile, precision: str, context: int, prompt: int, vocab: int, kv: str | None = None
) -> None:
    if not has_cache(profile, kv):
        raise MerinoError(
            f"--kv {kv} cannot be designed for on this board: it needs {cache_needs()}, and a {profile.name} has"
            f" {profile.backend} {getattr(profile.software, profile.backend)}. Leave --kv out"
        )
    if not is_predicted(profile, precision):
        where = "" if len(profile.backends) == 1 else f" on {profile.backend}"
        others = [name for name in profile.backends if is_predicted(profile.with_backend(name), precision)]
        raise MerinoError(
            f"--precision {precision} cannot be designed for{where}: choose one of {', '.join(formats_of(profile))}"
            + "".join(f", or --backend {name}" for name in others)
        )
    if not 2 <= context <= 131_072:
        raise MerinoError(f"--context {context} is not allowed: choose 2 to 131072 tokens")
    if not 2 <= vocab <= 1_000_000:
        raise MerinoError(f"--vocab {vocab} is not allowed: choose 2 to 1000000 entries")
    if not 1 <= prompt <= context:
        raise MerinoError(f"--prompt {prompt} is not allowed: choose 1 to the context, {context} tokens")
