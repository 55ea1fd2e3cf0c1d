"""A design tried on the machine at hand: built with random weights, measured, made again until it keeps its budgets.

A prediction is some 5 % off, a budget is a promise: so what one design measures corrects what the next is asked for.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import onnxruntime

from merino_bench.harness.cases import Case, decode_case, prefill_case
from merino_bench.harness.processes import measure_apart
from merino_bench.probe.pace import is_slow, pace_meter
from merino_bench.probe.timing import undisturbed_ms
from merino_edge.calibration.host import host_probe
from merino_edge.design.budgets import BUDGETS_BY_NAME
from merino_edge.design.design_file import Design, Measured
from merino_edge.export.random_bundle import write_random_bundle
from merino_edge.families.merino.architecture import Architecture
from merino_edge.prediction.limits import TOLERANCE
from merino_runtime.board import usable_cpus
from merino_runtime.errors import MerinoError

TRIED = [name for name in BUDGETS_BY_NAME if name in Measured.model_fields]  # what a measurement can tell of
# Of a budget: what a design is made for, what it should measure, and the most that is safe: a machine drifts
AIM, ENOUGH, SAFE = 0.95, (0.93, 0.97), 0.98
MOST_DESIGNS, MOST_SEARCHES = 6, 12
MORE, SAME = 1.04, 1.005  # times what was asked for, where the same design came again; of two that need none in between
STEPS, ROUNDS, PREFILLS = 16, 12, 3  # few steps, so that the cache is as good as full; the last: repetitions too
DECODES = 9  # processes: one and the same decoder takes some percent more or less from one to the next
SEED, TIMEOUT_S = 0, 600
SLOW = "slow"  # a flag

Find = Callable[[Mapping[str, float], Design | None], Design]
Asked = dict[str, float]  # budgets by name


def keeping(budgets: Mapping[str, float], find: Find, measure: Callable[[Design], Measured]) -> Design:
    """The best of the designs tried that measure within `budgets`, with what it measured.

    Each is asked for as much less, or more, as the prediction of the one before was off, or for what lies between one
    that took too little and one that took too much, until one takes ENOUGH of its budgets or nothing new comes. `find`
    gets the budgets to ask for and the first design, in whose vocabulary and format the others are made. Raises
    MerinoError where none keeps the budgets.
    """
    given = dict(budgets)
    tried: dict[Architecture, Design] = {}
    under: Asked | None = None
    over: Asked | None = None
    asked = times(given, dict.fromkeys(TRIED, AIM))
    for _ in range(MOST_SEARCHES):
        try:
            found = find(asked, next(iter(tried.values()), None))
        except MerinoError:  # less than the least decoder of the space takes
            if tried:
                break
            found = find(budgets, None)
        known = found.architecture in tried
        if not known:
            if len(tried) == MOST_DESIGNS:
                break
            found = tried[found.architecture] = found.model_copy(update={"budget": given, "measured": measure(found)})
            say(trial_line(found))
        found = tried[found.architecture]
        use = most_used(found)
        if ENOUGH[0] <= use <= ENOUGH[1]:
            break
        under, over = (asked, over) if use < ENOUGH[0] else (under, asked)
        right = times(given, {name: AIM * trust(found, name) for name in TRIED})
        following = right if not known and between(under, right, over) else middle(under, over)
        if following is None:
            break
        asked = following
    return best_of(list(tried.values()))


def best_of(tried: list[Design]) -> Design:
    """Of those that measure within their budgets, safely where there are such, the one of most entropy."""
    kept = within(tried, SAFE) or within(tried, 1 + TOLERANCE)
    if not kept:
        shares = ", ".join(f"{most_used(design):.1%}" for design in tried)
        raise MerinoError(
            f"none of {len(tried)} designs kept its budgets when measured, they took {shares} of one: "
            "give larger budgets, or try again while nothing else runs on this machine"
        )
    best = max(kept, key=lambda design: design.entropy)
    assert best.measured is not None
    return best.model_copy(update={"measured": best.measured.model_copy(update={"designs": len(tried)})})


def times(asked: Asked, factors: Asked) -> Asked:
    """Each of the budgets that has a factor times that."""
    return {name: most * factors.get(name, 1.0) for name, most in asked.items()}


def between(under: Asked | None, asked: Asked, over: Asked | None) -> bool:
    above = under is None or any(asked[name] > under[name] for name in asked)
    return above and (over is None or any(asked[name] < over[name] for name in asked))


def middle(under: Asked | None, over: Asked | None) -> Asked | None:
    """What to ask for between the two, or beyond the one there is; None where there is nothing new to expect."""
    if under is None:
        return None
    if over is None:
        return times(under, dict.fromkeys(TRIED, MORE))
    if all(over[name] <= SAME * under[name] for name in under):
        return None
    return {name: (under[name] * over[name]) ** 0.5 for name in under}


def within(designs: list[Design], share: float) -> list[Design]:
    return [design for design in designs if most_used(design) <= share]


def most_used(design: Design) -> float:
    """Of the budget that it takes most of; AIM where none was measured."""
    return max(uses(design).values(), default=AIM)


def uses(design: Design) -> dict[str, float]:
    """Of each budget that was measured, the share that the design took."""
    return {name: getattr(design.measured, name) / most for name, most in design.budget.items() if name in TRIED}


def trial_line(design: Design) -> str:
    shares = ", ".join(f"{share:.1%} of {name} {design.budget[name]:g}" for name, share in uses(design).items())
    return f"{design.architecture.shape()} takes {shares}"


def trust(design: Design, name: str) -> float:
    """Predicted over measured."""
    predicted: float = getattr(design.predicted, name)
    return predicted / float(getattr(design.measured, name))


class AtPace:
    """Measures while the machine is as quick as the probes and this run ever saw it; waits `pauses` times in all."""

    PAUSE_S = 2.0

    def __init__(self, scratch: str, pauses: int = 30) -> None:
        self.pauses = pauses
        self.pace = pace_meter(onnxruntime, scratch, len(usable_cpus()), True)
        known = [row.pace_us for row in host_probe().measurements if row.pace_us is not None]
        self.least_us = min(*known, *(self.pace() for _ in range(10)))

    def __call__(self, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result, with `slow` among its flags where there was no better moment for it."""
        while True:
            while self.slow() and self.pauses:
                self.pauses -= 1
                time.sleep(self.PAUSE_S)
            found = measure()
            if not self.slow():
                return found
            if not self.pauses:
                return {**found, "flags": [*found["flags"], SLOW]}
            self.pauses -= 1

    def slow(self) -> bool:
        now_us = self.pace()
        self.least_us = min(now_us, self.least_us)
        return is_slow(now_us, self.least_us)


def measured_here(design: Design) -> Measured:
    """With random weights, in fresh processes, of which the median counts; times are lower deciles, the cache full."""
    arch = design.architecture
    steps = min(STEPS, arch.context // 2)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "bundle"
        write_random_bundle(arch, design.precision, folder, "trial", design)
        at_pace = AtPace(scratch)
        decode_run = partial(run, folder, decode_case(steps, arch.context - steps), ROUNDS)
        decode = [at_pace(decode_run) for _ in range(DECODES)]
        prefill = [at_pace(partial(run, folder, prefill_case(design.prompt), PREFILLS)) for _ in range(PREFILLS)]
    quick_decode, quick_prefill = quick(decode), quick(prefill)
    return Measured(
        decode_ms=median(undisturbed_ms(steps_ms(one)) for one in quick_decode),
        prefill_ms=median(undisturbed_ms(one["prefill_ms"]) for one in quick_prefill),
        memory_mb=median(one["peak_rss_mb"] for one in decode),
        flags=sorted({flag for one in (*quick_decode, *quick_prefill) for flag in one["flags"]}),
        designs=1,
    )


def quick(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that the machine was quick at; all where there are none."""
    return [one for one in measured if SLOW not in one["flags"]] or measured


def run(folder: Path, case: Case, repetitions: int) -> dict[str, Any]:
    return measure_apart(str(folder), case, repetitions, SEED, False, TIMEOUT_S)


def steps_ms(measured: dict[str, Any]) -> list[float]:
    """Of all repetitions of a process."""
    return [ms for one in measured["step_ms"] for ms in one]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
