"""Designs that a search chooses are measured in a calibration, which may be cut short."""

import contextlib
import math
from pathlib import Path

import numpy as np
import pytest
from sample_probe import BOARD, MACHINE, calibrated_board, synthetic

from merino_edge.benchmarking import chosen
from merino_edge.benchmarking.chosen import bench_here
from merino_edge.calibration import host
from merino_edge.calibration.calibrate import calibrate
from merino_edge.calibration.command import recalibrate
from merino_edge.calibration.probe import MeasuredDesign
from merino_edge.design.paper.space import PaperSpace
from merino_edge.design.score import MEASURED, MERINO
from merino_edge.design.space import Space
from merino_edge.families.designed import Architecture, Block
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.reading import profile_text
from merino_runtime.errors import MerinoError

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
    monkeypatch.setattr(chosen, "DECODE_REPETITIONS", 1)
    monkeypatch.setattr(chosen, "PREFILL_REPETITIONS", 1)
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
