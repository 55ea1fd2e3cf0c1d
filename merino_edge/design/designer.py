"""From a board and budgets to design.json: encode the space, solve it, predict what was found."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from merino_edge.design import evolution, exact
from merino_edge.design.budget import Budgets
from merino_edge.design.entropy import Scoring
from merino_edge.design.evolution import Effort
from merino_edge.design.space import Program, Solution, Space, architecture
from merino_edge.design.variants import Variant, combinations, search
from merino_edge.families.merino.architecture import Architecture
from merino_edge.families.operators import CPU_FORMATS
from merino_edge.prediction.predicted import Predicted
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.profile import DeviceProfile
from merino_edge.storage.faults import fault_list
from merino_runtime.errors import MerinoError

SCHEMA = 1

SolverName = Literal["exact", "evolution"]


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Solver(Strict):
    """How it was found. `bound`: no decoder of the space scores more; `gap`: (bound - entropy) / entropy.

    Where vocabulary or format were open, the bound is the best worth of all, in nats of the chosen combination.
    """

    name: SolverName
    gap: float
    bound: float
    seconds: float
    seed: int


class Considered(Strict):
    """The vocabularies and weight formats that the design was chosen from."""

    vocab: list[int]
    precision: list[str]


class Measured(Strict):
    """On the machine at hand, with random weights; `designs`: how many were tried for this one."""

    decode_ms: float
    prefill_ms: float
    memory_mb: float
    flags: list[str]
    designs: int


class Design(Strict):
    """design.json, as the next stages read it."""

    schema_version: Annotated[int, Field(alias="schema", ge=SCHEMA, le=SCHEMA)] = SCHEMA
    device: str
    architecture: Architecture
    precision: str
    prompt: int
    budget: dict[str, float]
    predicted: Predicted
    measured: Measured | None = None  # where it was tried
    entropy: float
    scoring: Scoring
    considered: Considered
    solver: Solver

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, indent=2) + "\n"


def load_design(path: Path) -> Design:
    """Raises MerinoError with all faults of the file at once."""
    try:
        return Design.model_validate_json(path.read_bytes())
    except OSError as error:
        raise MerinoError(f"cannot read {path}: {error.strerror}. `merino-edge design -o {path}` writes one") from error
    except ValidationError as error:
        raise MerinoError(f"{path} is not a design.json: {fault_list(error)}") from error


def design(
    profile: DeviceProfile,
    budgets: Budgets,
    *,
    space: Space,
    context: int,
    prompt: int,
    precision: str = "fp32",
    vocabs: Sequence[int] = (),
    precisions: Sequence[str] = (),
    solver: SolverName = "exact",
    effort: Effort = Effort(),  # noqa: B008 - frozen
    seed: int = 0,
    scoring: Scoring = Scoring(),  # noqa: B008 - frozen
    progress: Callable[[int], None] | None = None,
) -> Design:
    """The best decoder within `budgets` on the board: of most entropy in `space`, in each vocabulary and format.

    `vocabs` and `precisions` leave open what `space.vocab` and `precision` say else; of several the design of most
    worth is chosen (`credit`). The exact solver also bounds what evolution finds, so that either reports its gap.
    """
    variants = open_variants(profile, space, context, prompt, vocabs or (space.vocab,), precisions or (precision,))
    given = budgets.given()
    started = time.perf_counter()

    def evolve(program: Program, _: float) -> Solution:
        return evolution.evolve(program, seed=seed, effort=effort, progress=progress)

    found = best = search(variants, given, scoring, exact.improve)
    if solver == "evolution":  # in the optimum's own vocabulary, format and regime
        started = time.perf_counter()
        found = search([best.variant], given, scoring, evolve)
    seconds = time.perf_counter() - started
    entropy, variant = found.solution.score, found.variant
    bound = best.worth / variant.credit if best.variant != variant else best.solution.score
    arch = architecture(variant.space, found.program, found.solution.choice, context)
    return Design(
        device=profile.id,
        architecture=arch,
        precision=variant.precision,
        prompt=prompt,
        budget=given,
        predicted=variant.model.predict(arch.operators, given),
        entropy=entropy,
        scoring=scoring,
        considered=Considered(
            vocab=sorted({each.space.vocab for each in variants}),
            precision=sorted({each.precision for each in variants}, key=list(CPU_FORMATS).index),
        ),
        solver=Solver(name=solver, gap=relative_gap(entropy, bound), bound=bound, seconds=round(seconds, 3), seed=seed),
    )


def open_variants(
    profile: DeviceProfile, space: Space, context: int, prompt: int, vocabs: Sequence[int],
    precisions: Sequence[str],
) -> list[Variant]:
    """Every combination of what was left open, or one MerinoError about a request that cannot be met."""
    for precision in precisions:
        for vocab in vocabs:
            check_request(precision, context, prompt, vocab)
    odd = [width for width in space.widths if width % space.head_size]
    if odd:
        raise MerinoError(f"heads of {space.head_size} do not divide widths of {odd[0]}: take heads of 32")
    return combinations(space, profile, InferenceShape(precisions[0], context, prompt), vocabs, precisions)


def relative_gap(score: float, bound: float) -> float:
    return max(0.0, (bound - score) / score) if score else float(bound > 0)


def check_request(precision: str, context: int, prompt: int, vocab: int) -> None:
    if precision not in CPU_FORMATS:
        raise MerinoError(f"--precision {precision} cannot be designed for: choose one of {', '.join(CPU_FORMATS)}")
    if not 2 <= context <= 131_072:
        raise MerinoError(f"--context {context} is not allowed: choose 2 to 131072 tokens")
    if not 2 <= vocab <= 1_000_000:
        raise MerinoError(f"--vocab {vocab} is not allowed: choose 2 to 1000000 entries")
    if not 1 <= prompt <= context:
        raise MerinoError(f"--prompt {prompt} is not allowed: choose 1 to the context, {context} tokens")
