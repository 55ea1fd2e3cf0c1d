"""Designs are measured and searched again: by `design --measure`, and in a calibration, which may be cut short."""

import contextlib
import functools
import math
import signal
from contextlib import contextmanager, suppress
from pathlib import Path

import forked
import numpy as np
import pytest
from few_examples import examples
from hypothesis import given
from hypothesis import strategies as st
from sample_probe import BOARD, MACHINE, calibrated_board, synthetic, with_errors

from merino_edge.benchmarking import chosen, measuring
from merino_edge.benchmarking.measuring import (
    AIM,
    ENOUGH,
    MOST_DESIGNS,
    bench_here,
    largest_share,
    measure_design,
    redesign,
)
from merino_edge.calibration import host
from merino_edge.calibration.calibrate import calibrate
from merino_edge.calibration.command import recalibrate
from merino_edge.calibration.probe import MeasuredDesign
from merino_edge.cli.design_tables import solver_line
from merino_edge.design.budgets import options_line
from merino_edge.design.design_file import Measured
from merino_edge.design.designer import design
from merino_edge.design.paper.space import PaperSpace
from merino_edge.design.score import MEASURED, MERINO
from merino_edge.design.space import Space
from merino_edge.families.designed import Architecture, Block
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.reading import load_profile, profile_text
from merino_runtime.errors import MerinoError

PI5 = with_errors(load_profile("raspberry-pi-5"), forms=())
SEARCHED = Space(widths=(64, 128, 192, 256), depths=(2, 3, 4, 5, 6, 7, 8), ffn_ratios=(1.0, 2.0))
ONE_FORMAT = {"vocabs": [2000], "precisions": ["fp32"], "kvs": [None]}


def real(budgets):
    return design(PI5, budgets, space=SEARCHED, context=128, prompt=64, **ONE_FORMAT)


@functools.cache
def ladder():
    """Optima of the space by rising decode time: what a search can answer, computed once."""
    largest = real({"params_m": 100})
    shares = np.geomspace(0.05, 1, 30)
    results = {}
    for share in shares:
        with suppress(MerinoError):
            design = real({"decode_ms": share * largest.predicted.decode_ms})
            results[design.architecture] = design
    assert len(results) > 20
    return list(results.values())


def find(budgets, _=None):
    fitting = [
        design for design in ladder()
        if all(getattr(design.predicted, name) <= most for name, most in budgets.items())
    ]  # fmt: skip
    if not fitting:
        raise MerinoError("less than the least decoder takes: --decode-ms")
    return max(fitting, key=lambda design: design.entropy)


def machine(decode=1.0, prefill=1.0, memory=1.0):
    """A measurement that is so many times what is predicted."""
    seen = []

    def measure(design):
        seen.append(design)
        message = design.predicted
        return Measured(decode_ms=decode * message.decode_ms, prefill_ms=prefill * message.prefill_ms,
                        memory_mb=memory * message.memory_mb, flags=[], designs=1)  # fmt: skip

    return measure, seen


def requested(decode=1.0, **keys):
    """Budgets, decode time as a share of the largest decoder's."""
    return {"decode_ms": decode * ladder()[-1].predicted.decode_ms, **keys}


@pytest.mark.slow
@given(st.floats(0.6, 1.6), st.floats(0.6, 1.6), st.floats(0.9, 1.1), st.floats(0.3, 0.9))
@examples(100, by_day=20)
def test_whatever_the_machine_is_off_by_the_design_keeps_its_budgets(decode, prefill, memory, share):
    largest = ladder()[-1].predicted
    budgets = requested(share, prefill_ms=largest.prefill_ms, memory_mb=largest.memory_mb)
    measure, seen = machine(decode, prefill, memory)
    result = redesign(budgets, find, measure)
    assert result.measured.decode_ms == pytest.approx(decode * result.predicted.decode_ms)
    assert result.budget == budgets and result.measured.designs == len(seen) <= MOST_DESIGNS
    assert all(getattr(result.measured, name) <= limit for name, limit in result.budget.items())
    first = largest_share(seen[0].model_copy(update={"budget": budgets, "measured": measure(seen[0])}))
    if ENOUGH <= first <= 1:
        assert result.measured.designs == 1, "what keeps its budgets and uses them is not designed again"


def by_turns(*factors):
    """A machine off by another factor for each design; by the last one from then on."""
    left, seen = list(factors), []

    def measure(design):
        seen.append(design)
        return machine(left.pop(0) if len(left) > 1 else left[0])[0](design)

    return measure, seen


@pytest.mark.slow
def test_of_an_interval_the_upper_end_is_rescaled():
    """The search holds it against the limit, so the next design measures AIM of the budget."""
    board, requests, made = with_errors(PI5, scale=0.1), [], []

    def searching(budgets, _):
        requests.append(budgets)
        made.append(design(board, budgets, space=SEARCHED, context=128, prompt=64, **ONE_FORMAT))
        return made[-1]

    budget = requested(0.5)
    redesign(budget, searching, machine(decode=0.8)[0])
    first, second = made[:2]
    assert first.predicted.decode_ms < first.predicted.decode_ms_interval[1] <= budget["decode_ms"]
    assert requests[1] == {"decode_ms": pytest.approx(
        AIM * budget["decode_ms"] * first.predicted.decode_ms_interval[1] / (0.8 * first.predicted.decode_ms)
    )}  # fmt: skip
    assert 0.9 * budget["decode_ms"] < 0.8 * second.predicted.decode_ms <= AIM * budget["decode_ms"]


@pytest.mark.slow
def test_the_record_says_which_limits_the_search_and_its_proof_are_for():
    """Its decoder, its bound and its thread counts are those of a search for `searched`, not for `budget`."""
    result = redesign(requested(0.5), find, machine(decode=1.25)[0])
    assert result.budget == requested(0.5) != result.searched
    again = find(result.searched)
    for part in ("architecture", "entropy", "solver", "predicted"):
        assert getattr(result, part) == getattr(again, part), part
    assert result.solver.bound < find(requested(0.5)).solver.bound, "the proof for what was asked is another one"
    assert f"rescaled budgets: {options_line(result.searched)}" in solver_line(result)


@pytest.mark.slow
def test_of_those_that_kept_the_budget_the_one_of_most_entropy_is_chosen():
    """The first breaks it, the second uses too little of it, the third breaks it."""
    measure, seen = by_turns(1.2, 0.9, 1.4)
    messages = []
    result = redesign(requested(0.5), find, measure, messages.append)
    assert len(seen) == len(messages) == 3 and result.architecture == seen[1].architecture
    assert result.measured.designs == 3 and "of decode_ms" in messages[0]


@pytest.mark.slow
def test_what_no_design_keeps_is_said_with_what_each_took():
    with pytest.raises(MerinoError, match=r"none of 1 designs kept .* 12[0-9.]+% of decode_ms"):
        redesign({"decode_ms": 1.02 * ladder()[0].predicted.decode_ms}, find, machine(decode=1.3)[0])


@pytest.mark.slow
def test_less_than_the_least_decoder_takes_is_refused_before_anything_is_measured():
    measure, seen = machine()
    with pytest.raises(MerinoError, match="decode"):
        redesign({"decode_ms": 0.5 * ladder()[0].predicted.decode_ms}, find, measure)
    assert seen == []


@pytest.mark.slow
@pytest.mark.nightly
def test_a_design_is_measured_again_as_bench_does():
    messages = []

    @contextmanager
    def progress():
        yield lambda *message: messages.append(message)

    result = real({"params_m": 0.5})
    measured = measure_design(result, bench_here(progress))
    assert 0 < measured.decode_ms < 1000 and 0 < measured.prefill_ms < 10_000
    assert 30 < measured.memory_mb < 1000
    assert any("tg32 @ d96" in what for *_, what in messages) and any("pp64" in what for *_, what in messages)


FORMATS, NAMES = ("fp32", "int8", "int4"), (MEASURED.name, MERINO.name)
CONTEXT, PROMPT, STEPS = 512, 256, 32


def one_kv_head(width, depth):
    return Architecture(
        blocks=(Block(width=width, ffn_ratio=0.5, depth=depth, kv_heads=1),), vocab=4096, context=CONTEXT
    )


def taken(arch, form, noise=0.0, factor=1.0):
    """What a design takes of a board of known coefficients, times `factor` in decode."""
    result = cost_model(BOARD, InferenceShape(form, CONTEXT - STEPS // 2, PROMPT)).predict(arch.operators)
    return MeasuredDesign.model_validate({
        "architecture": arch, "format": form, "score": "measured", "budget_ms": 10.0, "past": CONTEXT - STEPS // 2,
        "prompt": PROMPT, "decode_threads": result.decode_threads, "prefill_threads": result.prefill_threads,
        "decode_ms": factor * math.exp(noise) * result.decode_ms, "prefill_ms": math.exp(noise) * result.prefill_ms,
        "predicted_decode_ms": result.decode_ms, "predicted_prefill_ms": result.prefill_ms, "flags": [],
        "by_groups": True,
    })  # fmt: skip


def designs(factor=1.0, noise=0.0):
    random = np.random.default_rng(0)
    shapes = [(512, 12), (640, 20), (768, 8), (1024, 24)]
    return [taken(one_kv_head(*shape), form, noise * random.normal(), factor) for shape in shapes for form in FORMATS]


def test_intervals_are_of_the_designs_that_a_search_chose_and_the_profile_says_so():
    probe = synthetic(noise=0.01)
    chosen_ones = probe.model_copy(update={"designs": designs(noise=0.15)})
    own, result = (calibrated_board(probed).performance.onnxruntime.coefficients for probed in (probe, chosen_ones))
    for form in FORMATS:
        for name in ("decode_error", "prefill_error"):
            before, after = getattr(own.of_format(form), name), getattr(result.of_format(form), name)
            assert (before.of, after.of, after.decoders) == ("probe", "designs", 4) and before.decoders > 4
            assert after.scale > 3 * before.scale
    kinds = {residual.kind: residual.rows for residual in calibrate(chosen_ones).residuals}
    assert kinds["design int8 decode"] == kinds["design int8 prefill"] == 4


def test_the_fit_learns_what_the_search_exploits():
    """Decode steps of designs with one KV head take 1.3 times what the probe's rows say of it."""
    unseen = one_kv_head(896, 16)
    shape = InferenceShape("int8", CONTEXT - STEPS // 2, PROMPT)
    true = 1.3 * cost_model(BOARD, shape).predict(unseen.operators).decode_ms
    probe = synthetic()
    before, after = (
        cost_model(calibrated_board(probed), shape).predict(unseen.operators)
        for probed in (probe, probe.model_copy(update={"designs": designs(factor=1.3)}))
    )
    assert before.decode_ms < 0.8 * true
    assert after.decode_ms == pytest.approx(true, rel=0.05)
    assert after.decode_ms_interval[0] < true < after.decode_ms_interval[1]


SMALL = {
    "DESIGNS": 3, "VOCABS": (512,), "CONTEXTS": (64, 96), "SPACE": Space(widths=(64, 128), depths=(1, 2)),
    "PAPER_SPACE": PaperSpace(widths=(64, 128), depths=(1, 2), blocks=1),
}  # fmt: skip


@pytest.mark.nightly
def test_designs_are_measured_as_bench_does(monkeypatch):
    """On this machine, whatever board the profile says."""
    for name, value in SMALL.items():
        monkeypatch.setattr(chosen, name, value)
    monkeypatch.setattr(measuring, "DECODE_REPETITIONS", 1)
    monkeypatch.setattr(measuring, "PREFILL_REPETITIONS", 1)
    board = BOARD.model_copy(update={"budget": BOARD.budget.model_copy(update={"decode_ms": 1.0})})
    messages = []
    result = chosen.measured_designs(board, 0, bench_here(lambda: contextlib.nullcontext(None)), messages.append)
    assert [(design.architecture.context, design.past, design.prompt) for design in result] == [
        (64, 48, 32), (64, 48, 32), (96, 80, 48)
    ]  # fmt: skip
    assert {design.score for design in result} == set(NAMES)
    for one in result:
        assert 0 < one.decode_ms < one.prefill_ms < 1000 and one.predicted_decode_ms <= one.budget_ms
    assert len(messages) == 5 and result[0].architecture.shape() in messages[0]
    assert messages[3] == "measuring design-1, design-2: steps behind 32 tokens, prefills of 32"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder with one kept probe of this machine, and a machine whose probe takes no time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(host, "run_probe", quick_probe)
    path = host.cache_folder() / f"probe-{host.machine_key()}-2025.json"
    path.parent.mkdir()
    quick_probe(path)
    return path.parent


def quick_probe(path, _seconds=0):
    """With one thread, which any machine has."""
    Path(path).write_text(synthetic(0.02, MACHINE._replace(threads=(1,))).model_dump_json(by_alias=True))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ending(at, how):
    """`choose` that ends round `at` by `how`."""

    def choose(_, number):
        if number == at:
            how()
        return designs()

    return choose


def interrupted():
    raise KeyboardInterrupt


def lost():
    raise MerinoError("pi: connection lost")


@pytest.mark.parametrize(("how", "at"), [
    (interrupted, 1), (lost, 0), pytest.param(interrupted, 0, marks=pytest.mark.nightly),
    pytest.param(lost, 1, marks=pytest.mark.nightly),
])  # fmt: skip
def test_a_calibration_that_ends_early_leaves_the_former_profile(at, how, cache, tmp_path):
    before = contents(cache)
    with pytest.raises((KeyboardInterrupt, MerinoError)):
        recalibrate("host", [], None, choose=ending(at, how))
    assert contents(cache) == before
    out = tmp_path / "mine.toml"
    out.write_text(profile_text("raspberry-pi-5"))
    with pytest.raises((KeyboardInterrupt, MerinoError)):
        recalibrate("raspberry-pi-5", [], out, probe_board=lambda _: synthetic(), choose=ending(at, how))
    assert out.read_text() == profile_text("raspberry-pi-5")
    messages = []
    recalibrate("host", [], None, messages.append, choose=lambda *_: designs())
    assert len(contents(cache)) == 2 and len(host.kept_probes()[-1].designs) == 24
    assert [line for line in messages if line.startswith("round 2: 12 measured, predicted over measured: decode ")]


KILLED = """
import os, signal, sys
sys.path[:0] = [{here!r}, {tests!r}]
from test_redesign import designs, ending, host, quick_probe, recalibrate
host.run_probe = {probe}
recalibrate("host", [], None, choose=ending({at}, lambda: os.kill(os.getpid(), signal.SIGKILL)))
"""


@pytest.mark.parametrize(("at", "probe"), [
    (1, "quick_probe"),
    pytest.param(
        0, "lambda path, _: (quick_probe(path), os.kill(os.getpid(), signal.SIGKILL))", marks=pytest.mark.nightly
    ),
])
def test_a_killed_calibration_leaves_the_former_profile(at, probe, cache):
    before = host.kept_probes()
    here = Path(__file__).parent
    code = KILLED.format(here=str(here), tests=str(here.parent), at=at, probe=probe)
    done = forked.run(["calibrate"], first=code, cwd=here.parents[1])
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert host.kept_probes() == before
    recalibrate("host", [], None)
    assert len(contents(cache)) == 2, "what the killed one left is removed"
