"""Measure decoders that the search designs for the machine whose profile was just fitted, for `calibrate`.

A search picks decoders that the latency model underrates, so its errors there exceed those of other decoders. The pick
depends on the score, so designs are made by both kinds of score. The board's own program, or this machine's, times the
designs with random weights, as `bench` does. `calibration` fits the model to the times.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from merino_edge.benchmarking.measuring import Bench, Say, fault_of, requests_for, steps_of, typical_ms
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

DESIGNS = 6  # of a round: each format by each score
RANGE = 12.0  # the board's own latency budget over the least that is designed for
ABOVE_SMALLEST = 1.5  # times the latency of the smallest decoder
VOCABS, CONTEXTS = (4096, 16384, 50257), (512, 1024)
SCORES = (MEASURED, MERINO)


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
        pairs = sorted(zip(designs, folders, strict=True), key=context_of)
        rows = [row for _, group in groupby(pairs, key=context_of) for row in measured_alike(list(group), bench, say)]
    if not rows:
        raise MerinoError("none of the designs could be measured: see above why, and calibrate again")
    return rows


def context_of(pair: tuple[Design, Path]) -> int:
    return pair[0].architecture.context


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
    full = context - steps_of(context)
    names = ", ".join(folder.name for folder in folders)
    say(f"measuring {names}: steps behind {full} tokens, prefills of {prompt}")
    rows = []
    for (candidate, folder), decode, prefill in zip(pairs, *bench(folders, requests_for(context, prompt)), strict=True):
        if fault := fault_of(decode, prefill):
            say(f"{folder.name} is left out, {fault}")
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
