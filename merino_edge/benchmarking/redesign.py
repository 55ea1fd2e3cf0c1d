"""`design --measure`: measure a design on this machine, rescale the budgets by the prediction's error, search again.

A prediction is some 5 % off, and a budget is a promise. The search itself is the caller's (`find`). A design's proof
holds for the limits that its search was given, which `Design.searched` records.
"""

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

from merino_bench.harness.cases import Case, decode_case, prefill_case
from merino_bench.harness.run import Progress, unheard
from merino_bench.harness.turns import measure_apart
from merino_bench.probe.timing import lower_decile_ms
from merino_edge.design.budgets import BUDGETS_BY_NAME
from merino_edge.design.design_file import Design, Measured
from merino_edge.export.random_bundle import write_random_bundle
from merino_edge.families.operators import Core, core_named
from merino_edge.storage.atomic import scratch_folder
from merino_runtime.errors import MerinoError
from merino_runtime.io.board import kind_of_core, this_board

MEASURABLE = [name for name in BUDGETS_BY_NAME if name in Measured.model_fields]  # what a measurement here can judge
MOST_DESIGNS = 3
AIM, ENOUGH = 0.97, 0.93  # share of a budget: what a search after the first aims at, and the least that is used well
STEPS, REPETITIONS, PREFILLS = 16, 12, 3  # of one process; few steps, so that the cache is as good as full
DECODE_PROCESSES, PREFILL_PROCESSES = 5, 3  # one and the same design differs by some percent between processes
PROCESSES = DECODE_PROCESSES + PREFILL_PROCESSES
SEED, TIMEOUT_S = 0, 600.0
BUSY = ": try again while nothing else runs on this machine, or design within a smaller budget"

Limits = dict[str, float]  # by a budget's name
Find = Callable[[Mapping[str, float], Design | None], Design]


def redesign(
    budgets: Mapping[str, float], find: Find, measure: Callable[[Design], Measured],
    say: Callable[[str], None] = lambda _: None,
) -> Design:  # fmt: skip
    """The best of at most three designs that measure within `budgets`, with what it measured.

    The first search has the budgets as they are. Each further one has them rescaled by predicted / measured of the
    design before; once one design took too much and another too little, the geometric mean of their limits.

    find: (limits, the first design or None) -> the best design within the limits; with a first design given, in its
    vocabulary and format. Raises MerinoError where no design is within the budgets when measured.
    """
    budget = dict(budgets)
    limits, under, over = budget, None, None
    tried: list[Design] = []
    while len(tried) < MOST_DESIGNS:
        try:
            found = find(limits, tried[0] if tried else None)
        except MerinoError:
            if not tried:
                raise
            break  # the rescaled limits are below the smallest decoder of the space
        if any(found.architecture == one.architecture for one in tried):
            break
        found = found.model_copy(update={"budget": budget, "searched": limits, "measured": measure(found)})
        tried.append(found)
        say(trial_line(found))
        share = largest_share(found)
        if ENOUGH <= share <= 1:
            break
        under, over = (limits, over) if share < ENOUGH else (under, limits)
        limits = geometric_mean(under, over) if under and over else rescaled(found)
    return best_of(tried)


def upper(design: Design, name: str) -> float:
    """What a search held against the limit: of an interval the upper end."""
    found = design.predicted.upper(name)
    assert found is not None, name
    return found


def rescaled(design: Design) -> Limits:
    """The limits whose design should measure AIM of each measurable budget, if the prediction's error stays.

    They are limits of a search, so of an interval its upper end is rescaled: its width cancels out.
    """
    factors = {name: AIM * upper(design, name) / getattr(design.measured, name) for name in MEASURABLE}
    return {name: limit * factors.get(name, 1.0) for name, limit in design.budget.items()}


def geometric_mean(under: Limits, over: Limits) -> Limits:
    return {name: (under[name] * over[name]) ** 0.5 for name in under}


def best_of(tried: list[Design]) -> Design:
    """The design of most entropy among those that measured within their budgets. Raises MerinoError without one."""
    kept = [design for design in tried if largest_share(design) <= 1]
    if not kept:
        raise MerinoError(
            f"none of {len(tried)} designs kept its budgets when measured: {'; '.join(map(trial_line, tried))}. Give "
            "larger budgets, or try again while nothing else runs on this machine"
        )
    best = max(kept, key=lambda design: design.entropy)
    assert best.measured is not None
    return best.model_copy(update={"measured": best.measured.model_copy(update={"designs": len(tried)})})


def shares(design: Design) -> dict[str, float]:
    """Measured / limit of each budget that was given and can be measured here."""
    return {name: getattr(design.measured, name) / design.budget[name] for name in MEASURABLE if name in design.budget}


def largest_share(design: Design) -> float:
    """1 where no budget can be measured: then no further search would change the design."""
    return max(shares(design).values(), default=1.0)


def trial_line(design: Design) -> str:
    taken = ", ".join(f"{share:.1%} of {name} {design.budget[name]:g}" for name, share in shares(design).items())
    return f"{design.architecture.shape()} takes {taken or 'no budget that can be measured'}"


def core_here() -> Core:
    return core_named(kind_of_core(this_board()))


def measure_design(
    design: Design, say: Callable[[str], None] = lambda _: None, progress: Progress | None = None
) -> Measured:
    """Latency and memory on this machine, with random weights and the design's thread counts.

    Medians over fresh processes, of which each gives the lower decile of its decode steps behind a full cache (ms), of
    its prefills of `design.prompt` ids (ms), and its peak memory while decoding (MB of 2^20 bytes).

    say: told after the first process how long all will take. progress: told before each process.
    """
    tell = progress or unheard
    context = design.architecture.context
    steps = min(STEPS, context // 2)
    with scratch_folder(Path(tempfile.gettempdir()) / "merino-redesign") as scratch:
        folder = scratch / "bundle"
        write_random_bundle(design.architecture, design.precision, folder, "redesign", design, core_here())

        runs: list[dict] = []
        for number, (what, case, repetitions) in enumerate(plan(design.prompt, steps, context)):
            tell(number, PROCESSES, what)
            started = time.monotonic()
            runs.append(measure_apart(str(folder), case, repetitions, SEED, False, TIMEOUT_S, BUSY))
            if number == 0:
                say(duration_line(time.monotonic() - started))
        tell(PROCESSES, PROCESSES, "")
    decode, prefill = runs[:DECODE_PROCESSES], runs[DECODE_PROCESSES:]
    return Measured(
        decode_ms=median(lower_decile_ms(steps_ms(run)) for run in decode),
        prefill_ms=median(lower_decile_ms(run["prefill_ms"]) for run in prefill),
        memory_mb=median(run["peak_rss_mb"] for run in decode),
        flags=sorted({flag for run in (*decode, *prefill) for flag in run["flags"]}),
        designs=1,
    )


def plan(prompt: int, steps: int, context: int) -> list[tuple[str, Case, int]]:
    """(what it measures, the case, its repetitions) of each process."""
    decode = ("decode behind a full cache", decode_case(steps, context - steps), REPETITIONS)
    prefill = ("prefill", prefill_case(prompt), PREFILLS)
    return [decode] * DECODE_PROCESSES + [prefill] * PREFILL_PROCESSES


def duration_line(process_s: float) -> str:
    """What measuring takes if every process takes as long as the first one."""
    seconds = math.ceil(process_s * PROCESSES)
    shown = f"{seconds} s" if seconds < 120 else f"{round(seconds / 60)} minutes"
    return f"measuring a design takes about {shown}, in {PROCESSES} processes; there are at most {MOST_DESIGNS} designs"


def steps_ms(run: dict) -> list[float]:
    """The decode steps of all repetitions of one process."""
    return [ms for repetition in run["step_ms"] for ms in repetition]
