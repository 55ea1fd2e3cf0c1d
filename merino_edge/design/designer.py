"""From a board and budgets to design.json: encode the space, solve it, predict what was found."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from merino_edge.architecture import Architecture
from merino_edge.design import evolution, exact
from merino_edge.design.budget import Budgets
from merino_edge.design.costs import Workload, predict
from merino_edge.design.entropy import Scoring
from merino_edge.design.space import Program, Solution, Space, architecture, encode
from merino_edge.operators import CPU_FORMATS
from merino_edge.profiles import DeviceProfile
from merino_edge.validation import fault_list
from merino_runtime.errors import MerinoError

SCHEMA = 1
NARROW = 256  # below this width a head has 32 channels, so that a layer keeps at least a few heads (ours)

SolverName = Literal["exact", "evolution"]


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Predicted(Strict):
    """On the board, by the latency model. MB is 2^20 bytes; times at a full cache and for the whole prompt."""

    decode_ms: float
    prefill_ms: float
    memory_mb: float
    flops_g: float
    params: int
    weight_bytes: int
    kv_bytes: int
    provenance: str


class Solver(Strict):
    """How it was found. `bound`: no decoder of the space scores more; `gap`: (bound - entropy) / entropy."""

    name: SolverName
    gap: float
    bound: float
    seconds: float
    seed: int


class Design(Strict):
    """design.json, as the next stages read it."""

    schema_version: Annotated[int, Field(alias="schema", ge=SCHEMA, le=SCHEMA)] = SCHEMA
    device: str
    architecture: Architecture
    precision: str
    prompt: int
    budget: dict[str, float]
    predicted: Predicted
    entropy: float
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
    solver: SolverName = "exact",
    seed: int = 0,
    scoring: Scoring = Scoring(),  # noqa: B008 - frozen
    progress: Callable[[int], None] | None = None,
) -> Design:
    """The decoder of highest entropy in `space` within `budgets` on the board.

    The exact solver also bounds what evolution finds, so that either reports its gap to the optimum.
    """
    check_request(precision, context, prompt, space.vocab)
    work = Workload(precision, context, prompt)
    started = time.perf_counter()
    found, program, space = search(profile, budgets, space, work, scoring, solver, seed, progress)
    seconds = time.perf_counter() - started
    bound = found.bound if found.bound is not None else exact.solve(program).bound
    assert bound is not None
    arch = architecture(space, program, found.choice, context)
    return Design(
        device=profile.id,
        architecture=arch,
        precision=precision,
        prompt=prompt,
        budget=budgets.given(),
        predicted=Predicted(**asdict(predict(arch.operators, profile, work))),
        entropy=found.score,
        solver=Solver(
            name=solver, gap=relative_gap(found.score, bound), bound=bound, seconds=round(seconds, 3), seed=seed
        ),
    )


def relative_gap(score: float, bound: float) -> float:
    return max(0.0, (bound - score) / score) if score else float(bound > 0)


def search(
    profile: DeviceProfile,
    budgets: Budgets,
    space: Space,
    work: Workload,
    scoring: Scoring,
    solver: SolverName,
    seed: int,
    progress: Callable[[int], None] | None,
) -> tuple[Solution, Program, Space]:
    """Solve with heads of 64; where that leads to narrow blocks, solve again with heads of 32, if those fit."""
    program = encode(space, budgets, profile, work, scoring)
    found = exact.solve(program) if solver == "exact" else evolution.evolve(program, seed=seed, progress=progress)
    narrowest = min(program.options[index].width for index in found.choice)
    if narrowest >= NARROW or space.head_size == 32:
        return found, program, space
    try:
        return search(profile, budgets, replace(space, head_size=32), work, scoring, solver, seed, progress)
    except MerinoError:  # more heads have more scores to hold
        return found, program, space


def check_request(precision: str, context: int, prompt: int, vocab: int) -> None:
    if precision not in CPU_FORMATS:
        raise MerinoError(f"--precision {precision} cannot be designed for: choose one of {', '.join(CPU_FORMATS)}")
    if not 2 <= context <= 131_072:
        raise MerinoError(f"--context {context} is not allowed: choose 2 to 131072 tokens")
    if not 2 <= vocab <= 1_000_000:
        raise MerinoError(f"--vocab {vocab} is not allowed: choose 2 to 1000000 entries")
    if not 1 <= prompt <= context:
        raise MerinoError(f"--prompt {prompt} is not allowed: choose 1 to the context, {context} tokens")
