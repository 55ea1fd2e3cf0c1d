"""Measure decoders that the search designs for the machine whose profile was just fitted, for `calibrate`.

A search picks decoders that the latency model underrates, so its errors there exceed those of other decoders. The pick
depends on the score, so designs are made by both kinds of score. The board's own program, or this machine's, times the
designs with random weights, as `bench` does. `calibration` fits the model to the times.
"""

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from merino_bench.harness.cases import BenchRequest
from merino_bench.harness.pairs import flags_by_place, rounds_by_place, select_processes
from merino_bench.harness.record import failures
from merino_bench.harness.run import Progress, run_bench
from merino_bench.probe.timing import lower_decile_ms
from merino_edge.benchmarking.random_bundle import write_random_bundle
from merino_edge.calibration.probe import MeasuredDesign
from merino_edge.design.budgets import with_board_defaults
from merino_edge.design.design_file import Design
from merino_edge.design.designer import design, design_by_paper
from merino_edge.design.paper.space import PAPER_SPACE
from merino_edge.design.score import MEASURED, MERINO, Scoring
from merino_edge.design.space import SPACE, Layer, architecture
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.formats import dialect_of, formats_of
from merino_edge.prediction.intervals import LEAST_CONFIDENCE
from merino_edge.prediction.shape import InferenceShape, default_prompt
from merino_edge.profiles.profile import DeviceProfile
from merino_edge.storage.atomic import scratch_folder
from merino_runtime.errors import MerinoError

if TYPE_CHECKING:  # imports asyncssh
    from merino_edge.delivery.ssh.board import Copied
    from merino_edge.delivery.ssh.connect import Address

DESIGNS = 6  # of a round: each format by each score
RANGE = 12.0  # the board's own latency budget over the least that is designed for
ABOVE_SMALLEST = 1.5  # times the latency of the smallest decoder
VOCABS, CONTEXTS = (4096, 16384, 50257), (512, 1024)
SCORES = (MEASURED, MERINO)
STEPS, DECODE_REPETITIONS, PREFILL_REPETITIONS = 32, 4, 2  # few steps, so that the cache is as good as full

Say = Callable[[str], None]
Record = dict[str, Any]
# (bundles, requests) -> for each request a record of each bundle
Bench = Callable[[Sequence[Path], Sequence[BenchRequest]], list[Sequence[Record]]]


class Request(NamedTuple):
    """The request for one design."""

    format: str
    decode_ms: float
    vocab: int
    context: int
    scoring: Scoring


def measured_designs(profile: DeviceProfile, number: int, bench: Bench, say: Say) -> list[MeasuredDesign]:
    """Return the designs of round `number`, from 0, that the search picks by the profile, with their latencies. `bench`
    measures on the profile's machine. Raise MerinoError if none can be measured."""
    designs = [designed(profile, request) for request in requests(profile, number)]
    with scratch_folder(Path(tempfile.gettempdir()) / "merino-calibration") as scratch:
        # 1. A bundle of each design, with random weights.
        folders = []
        for index, candidate in enumerate(designs):
            arch = candidate.architecture
            say(
                f"design {index + 1} of {len(designs)}: {arch.shape()} in {candidate.precision},"
                f" vocabulary {arch.vocab}, context {arch.context}, by {candidate.scoring.name}:"
                f" predicted {candidate.predicted.decode_ms:.3g} ms"
            )
            folders.append(scratch / f"design-{index + 1}")
            write_random_bundle(
                arch, candidate.precision, folders[-1], folders[-1].name, candidate, dialect=dialect_of(profile)
            )
        # 2. Designs of one context share their cases, so they are measured in interleaved runs.
        by_context: dict[int, list[tuple[Design, Path]]] = {}
        for candidate, folder in zip(designs, folders, strict=True):
            by_context.setdefault(candidate.architecture.context, []).append((candidate, folder))
        rows = [row for _, pairs in sorted(by_context.items()) for row in measured_alike(pairs, bench, say)]
    if not rows:
        raise MerinoError("none of the designs could be measured: see above why, and calibrate again")
    return rows


def requests(profile: DeviceProfile, number: int) -> list[Request]:
    """Return requests whose budgets are spread evenly (log) over the board's range, with formats, vocabularies,
    contexts and scores alternating. The second round has budgets between those of the first, and other formats and
    scores at them."""
    own = profile.performance.onnxruntime.coefficients
    formats = own.formats if own else formats_of(profile)  # an older ONNX Runtime has not all of them
    most, context = profile.budget.decode_ms, profile.budget.context
    listed = []
    for index in range(DESIGNS):
        share = (index + 0.5 * (1 - number % 2)) / (DESIGNS - 0.5)
        offset = index + number
        request = Request(
            formats[offset % len(formats)], most * RANGE ** (share - 1),
            VOCABS[(offset + index // len(formats)) % len(VOCABS)], min(context, CONTEXTS[offset // 2 % len(CONTEXTS)]),
            SCORES[offset % len(SCORES)],
        )  # fmt: skip
        least = ABOVE_SMALLEST * smallest_ms(profile, request)
        listed.append(request._replace(decode_ms=float(f"{max(least, request.decode_ms):.3g}")))
    return listed


def smallest_ms(profile: DeviceProfile, request: Request) -> float:
    """Return the upper bound of the decode latency of the space's smallest decoder."""
    if request.scoring == MERINO:
        space = replace(PAPER_SPACE, vocab=request.vocab)
        smallest = space.architecture((space.smallest()[0],) * space.blocks, request.context)
    else:
        layer = Layer(min(SPACE.widths), 1, min(SPACE.ffn_ratios), False)
        smallest = architecture(layer, min(SPACE.depths), request.vocab, request.context)
    shape = InferenceShape(request.format, request.context, 1)
    ms = cost_model(profile, shape).predict(smallest.operators).upper("decode_ms")
    assert ms is not None
    return ms


def designed(profile: DeviceProfile, request: Request) -> Design:
    """Return the design for a request. Its predicted latency is near the budget, because the confidence is the
    lowest."""
    limits = with_board_defaults({"decode_ms": request.decode_ms}, profile)
    context, prompt = request.context, default_prompt(request.context)
    if request.scoring == MERINO:
        return design_by_paper(
            profile, limits, space=replace(PAPER_SPACE, vocab=request.vocab), context=context, prompt=prompt,
            precision=request.format, confidence=LEAST_CONFIDENCE,
        )  # fmt: skip
    return design(
        profile, limits, space=SPACE, context=context, prompt=prompt, vocabs=[request.vocab],
        precisions=[request.format], kvs=[None], confidence=LEAST_CONFIDENCE,
    )  # fmt: skip


def measured_alike(pairs: Sequence[tuple[Design, Path]], bench: Bench, say: Say) -> list[MeasuredDesign]:
    """Measure designs of one context and prompt, in interleaved runs. A design that fails is reported and left out."""
    first, folders = pairs[0][0], [folder for _, folder in pairs]
    context, prompt = first.architecture.context, first.prompt
    steps = min(STEPS, context // 2)
    full = context - steps
    names = ", ".join(folder.name for folder in folders)
    say(f"measuring {names}: steps behind {full} tokens, prefills of {prompt}")
    decodes, prefills = bench(folders, [
        BenchRequest((), (steps,), DECODE_REPETITIONS, depths=(full,)),
        BenchRequest((prompt,), (), PREFILL_REPETITIONS),
    ])  # fmt: skip
    rows = []
    for (candidate, _), decode, prefill in zip(pairs, decodes, prefills, strict=True):
        if faults := failures([decode, prefill]):
            say(f"left out: {faults[0]}")
            continue
        cost = candidate.predicted
        rows.append(MeasuredDesign.model_validate({
            "architecture": candidate.architecture, "format": candidate.precision, "score": candidate.scoring.name,
            "budget_ms": candidate.budget["decode_ms"], "past": (full + context) // 2, "prompt": candidate.prompt,
            "decode_threads": cost.decode_threads, "prefill_threads": cost.prefill_threads,
            "decode_ms": typical_ms(decode), "prefill_ms": typical_ms(prefill),
            "predicted_decode_ms": cost.decode_ms, "predicted_prefill_ms": cost.prefill_ms,
            "flags": sorted({*decode["flags"], *prefill["flags"]}),
        }))  # fmt: skip
    return rows


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
