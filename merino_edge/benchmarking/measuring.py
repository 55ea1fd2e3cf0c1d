"""Measure latency and memory of designs with random weights: on this machine or over ssh on a board, by `bench` itself.

`calibrate` (`chosen`) and `design --measure` (`redesign`) use it. A prediction is some 5 % off, and a budget is a
promise: `redesign` rescales the budgets by the prediction's error, and searches again by the caller's search.
"""

import asyncio
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from merino_bench.harness.cases import BenchRequest
from merino_bench.harness.pairs import flags_by_place, rounds_by_place, select_processes
from merino_bench.harness.record import FAILED
from merino_bench.harness.run import Progress, run_bench
from merino_bench.probe.timing import lower_decile_ms
from merino_edge.benchmarking.random_bundle import write_random_bundle
from merino_edge.design.budgets import BUDGETS_BY_NAME
from merino_edge.design.design_file import Design, Measured
from merino_edge.storage.atomic import scratch_folder
from merino_runtime.errors import MerinoError

if TYPE_CHECKING:  # imports asyncssh
    from merino_edge.delivery.ssh.board import Copied
    from merino_edge.delivery.ssh.connect import Address

STEPS, DECODE_REPETITIONS, PREFILL_REPETITIONS = 32, 4, 2  # few steps, so that the cache is as good as full

Say = Callable[[str], None]
Record = Mapping[str, Any]
# (bundles, requests) -> for each request a record of each bundle
Bench = Callable[[Sequence[Path], Sequence[BenchRequest]], list[Sequence[Record]]]


def steps_of(context: int) -> int:
    return min(STEPS, context // 2)


def requests_for(context: int, prompt: int) -> list[BenchRequest]:
    """Return requests for decode steps with the cache full up to the last of them, and for prefills."""
    steps = steps_of(context)
    return [
        BenchRequest((), (steps,), DECODE_REPETITIONS, depths=(context - steps,)),
        BenchRequest((prompt,), (), PREFILL_REPETITIONS),
    ]


def fault_of(*records: Record) -> str | None:
    """Return why a bundle could not be measured, or None."""
    faults = [flag for record in records for flag in record["flags"] if flag.startswith(FAILED)]
    return faults[0] if faults else None


def typical_ms(record: Record) -> float:
    """Return the lower decile of a process's samples, and of these the median over the processes that count: one and
    the same decoder differs by some percent between processes."""
    places = select_processes(flags_by_place(record["processes"])).places
    rounds = rounds_by_place(record["processes"], record["rounds_ms"])
    return median(lower_decile_ms([ms for samples_ms in rounds[place] for ms in samples_ms]) for place in places)


def bench_here(progress: Callable[[], AbstractContextManager[Progress | None]]) -> Bench:
    """Return a function that measures on this machine."""

    def bench(folders: Sequence[Path], requests: Sequence[BenchRequest]) -> list[Sequence[Record]]:
        records: list[Sequence[Record]] = []
        for request in requests:
            with progress() as report:
                records.append(run_bench([str(folder) for folder in folders], request, progress=report))
        return records

    return bench


def bench_on(address: "Address", accept_new: bool, say: Say, copied: "Copied") -> Bench:
    """Return a function that measures on a board, and removes the bundles that it copied there."""
    from merino_edge.benchmarking.run import records_of
    from merino_edge.delivery.ssh.board import bundle_there, program, remove_bundle
    from merino_edge.delivery.ssh.connect import connected

    async def work(bundles: Sequence[str], requests: Sequence[BenchRequest]) -> list[Sequence[Record]]:
        async with connected(address, accept_new, say) as board:
            there = await program(board)
            places: dict[str, str] = {}
            try:
                for bundle in bundles:
                    places[bundle] = await bundle_there(there, bundle, copied)
                paths = list(places.values())
                return [await records_of(there, paths, words_of(request), say, copied) for request in requests]
            finally:
                for bundle, place in places.items():
                    with suppress(MerinoError):  # of a connection that is lost
                        await remove_bundle(there, bundle, place)

    return lambda folders, requests: asyncio.run(work([str(folder) for folder in folders], requests))


def words_of(request: BenchRequest) -> list[str]:
    """Return the request as options of the board's `bench`."""
    prompts, steps = (",".join(map(str, lengths or (0,))) for lengths in (request.prompts, request.steps))
    depths = ",".join(map(str, request.depths))
    return [f"-p{prompts}", f"-n{steps}", f"-d{depths}", f"-r{request.repetitions}"]


MEASURABLE = [name for name in BUDGETS_BY_NAME if name in Measured.model_fields]  # that a measurement here can judge
MOST_DESIGNS = 3
AIM, ENOUGH = 0.97, 0.93  # share of a budget: what a search after the first aims at, and the least that is used well

Limits = dict[str, float]  # by a budget's name
Find = Callable[[Mapping[str, float], Design | None], Design]


def redesign(
    budgets: Mapping[str, float], find: Find, measure: Callable[[Design], Measured],
    say: Callable[[str], None] = lambda _: None,
) -> Design:  # fmt: skip
    """Return the best of at most three designs that measure within `budgets`, with its measurement.

    The first search has the budgets as they are. Each further one has them rescaled by predicted / measured of the
    design before; once one design took too much and another too little, the geometric mean of their limits.

    find: (limits, the first design or None) -> the best design within the limits; with a first design, in its
    vocabulary and formats. Raise MerinoError if no design is within the budgets when measured.
    """
    budget = dict(budgets)
    limits, under, over = budget, None, None
    tried: list[Design] = []
    while len(tried) < MOST_DESIGNS:
        try:
            design = find(limits, tried[0] if tried else None)
        except MerinoError:
            if not tried:
                raise
            break  # the rescaled limits are below the smallest decoder of the space
        if design.architecture in [earlier.architecture for earlier in tried]:
            break
        design = design.model_copy(update={"budget": budget, "searched": limits, "measured": measure(design)})
        tried.append(design)
        say(measured_line(design))
        share = largest_share(design)
        if ENOUGH <= share <= 1:
            break
        under, over = (limits, over) if share < ENOUGH else (under, limits)
        if under and over:
            limits = {name: (under[name] * over[name]) ** 0.5 for name in under}
        else:
            limits = rescaled(design)
    return best_of(tried)


def rescaled(design: Design) -> Limits:
    """Return the limits whose design should measure AIM of each measurable budget, if the prediction's error stays the
    same.

    They are limits of a search, so the upper bound of an interval is rescaled: its width cancels out.
    """
    factors: Limits = {}
    for name in MEASURABLE:
        predicted = design.predicted.upper(name)
        assert predicted is not None, name
        factors[name] = AIM * predicted / getattr(design.measured, name)
    return {name: limit * factors.get(name, 1.0) for name, limit in design.budget.items()}


def best_of(tried: list[Design]) -> Design:
    """Return the design of most entropy among those that measured within their budgets. Raise MerinoError if there is
    none."""
    kept = [design for design in tried if largest_share(design) <= 1]
    if not kept:
        raise MerinoError(
            f"none of {len(tried)} designs kept its budgets when measured: {'; '.join(map(measured_line, tried))}. "
            "Give larger budgets, or try again while nothing else runs on this machine"
        )
    best = max(kept, key=lambda design: design.entropy)
    assert best.measured is not None
    return best.model_copy(update={"measured": best.measured.model_copy(update={"designs": len(tried)})})


def shares(design: Design) -> dict[str, float]:
    """Return measured / limit of each budget that was given and can be measured here."""
    return {name: getattr(design.measured, name) / design.budget[name] for name in MEASURABLE if name in design.budget}


def largest_share(design: Design) -> float:
    """Return the largest share, or 1 if no budget can be measured: then no further search would change the design."""
    return max(shares(design).values(), default=1.0)


def measured_line(design: Design) -> str:
    taken = ", ".join(f"{share:.1%} of {name} {design.budget[name]:g}" for name, share in shares(design).items())
    return f"{design.architecture.shape()} takes {taken or 'no budget that can be measured'}"


def measure_design(design: Design, bench: Bench) -> Measured:
    """Return the latency and memory on this machine, with random weights and the design's thread counts. Raise
    MerinoError if it cannot be measured."""
    with scratch_folder(Path(tempfile.gettempdir()) / "merino-redesign") as scratch:
        folder = scratch / "bundle"
        write_random_bundle(design.architecture, design.precision, folder, "redesign", design)
        (decode,), (prefill,) = bench([folder], requests_for(design.architecture.context, design.prompt))
    if fault := fault_of(decode, prefill):
        raise MerinoError(f"{design.architecture.shape()} cannot be measured: {fault}. Give smaller budgets")
    return Measured(
        decode_ms=typical_ms(decode), prefill_ms=typical_ms(prefill), memory_mb=decode["peak_rss_mb"],
        flags=sorted({*decode["flags"], *prefill["flags"]}), designs=1,
    )  # fmt: skip
