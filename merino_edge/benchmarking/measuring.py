"""Measure decoders with random weights for `calibrate`, on this machine or over ssh on a board, by `bench` itself."""

import asyncio
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


def bench_on(address: "Address", say: Say, copied: "Copied") -> Bench:
    """Return a function that measures on a board, and removes the bundles that it copied there."""
    from merino_edge.benchmarking.run import records_of
    from merino_edge.delivery.ssh.board import bundle_there, program, remove_bundle
    from merino_edge.delivery.ssh.connect import connected

    async def work(bundles: Sequence[str], requests: Sequence[BenchRequest]) -> list[Sequence[Record]]:
        async with connected(address) as board:
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
