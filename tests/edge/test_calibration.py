"""The fit finds the coefficients behind a probe, a bad probe is refused with all its faults, a profile keeps the rest.
Designs that a search chooses are measured in a calibration, which may be cut short.
"""

import contextlib
import json
import math
import tomllib
from pathlib import Path

import numpy as np
import pytest
from sample_probe import BOARD, MACHINE, calibrated_board, synthetic

from merino_bench.probe import bandwidth
from merino_bench.probe import run as board_probe
from merino_bench.probe.tasks import MB
from merino_edge.benchmarking import chosen
from merino_edge.benchmarking.chosen import bench_here
from merino_edge.calibration import host
from merino_edge.calibration.board import board
from merino_edge.calibration.calibrate import calibrate, calibrated_toml, check_same_machine
from merino_edge.calibration.command import recalibrate
from merino_edge.calibration.probe import MeasuredDesign, joined, read_probe
from merino_edge.design.paper.space import PaperSpace
from merino_edge.design.score import MEASURED, MERINO
from merino_edge.design.space import Space
from merino_edge.families.designed import Architecture, Block
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.default_coefficients import estimated
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.coefficients import CacheCoefficients
from merino_edge.profiles.reading import load_profile, profile_text
from merino_runtime.errors import MerinoError

DECODER = Architecture(blocks=(Block(width=512, ffn_ratio=2, depth=6),), vocab=8192)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_the_fit_predicts_what_the_true_coefficients_do(precision):
    """Quantities that no row tells apart may differ, their sums may not."""
    profile = calibrated_board(synthetic())
    work = InferenceShape(precision, 512, 128)
    result = cost_model(profile, work).predict(DECODER.operators)
    expected = cost_model(BOARD, work).predict(DECODER.operators)
    assert result.decode_ms == pytest.approx(expected.decode_ms, rel=0.02)
    assert result.prefill_ms == pytest.approx(expected.prefill_ms, rel=0.02)
    assert (result.decode_threads, result.prefill_threads) == (expected.decode_threads, expected.prefill_threads)
    assert (result.provenance, expected.provenance) == ("calibrated", "estimated")


def test_noise_goes_into_the_residuals_and_hardly_into_predictions():
    fit = calibrate(synthetic(noise=0.05))
    assert 0.01 < fit.residuals[-1].median < 0.06
    work = InferenceShape("int8", 512, 128)
    result = cost_model(calibrated_board(synthetic(noise=0.05)), work).predict(DECODER.operators)
    assert result.decode_ms == pytest.approx(cost_model(BOARD, work).predict(DECODER.operators).decode_ms, rel=0.08)


def test_memory_factors_are_what_processes_held():
    result = calibrated_board(synthetic()).performance.onnxruntime.coefficients
    assert result is not None and result.fp32.resident == pytest.approx(1.25)
    assert (result.fp32.table_resident, result.fp32.table_opening) == (pytest.approx(1), pytest.approx(0.5))
    assert result.int8 is not None and result.int4 is not None
    assert (result.int8.table_resident, result.int8.table_opening) == (pytest.approx(1), pytest.approx(1))
    assert result.int4.table_resident == pytest.approx(1.25), "not measured: as its matrices"


def test_a_format_that_was_not_measured_stays_estimated():
    probe = synthetic(machine=MACHINE._replace(formats=("fp32",)))
    profile = calibrated_board(probe)
    kinds = {
        form: cost_model(profile, InferenceShape(form, 512, 128)).predict(DECODER.operators).provenance
        for form in ("fp32", "int8", "int4")
    }
    assert kinds == {"fp32": "calibrated", "int8": "estimated", "int4": "estimated"}


def test_a_portable_probe_is_fitted_too():
    truth = estimated(load_profile("jetson-nano"))
    probe = synthetic(machine=MACHINE._replace(fused=False), truth=truth)
    result = calibrate(probe)
    assert result.performance["coefficients"]["dialect"] == "portable"
    assert result.performance["coefficients"]["step_us"] == pytest.approx(list(truth.step_us), rel=0.02)
    assert result.performance["coefficients"]["int4"]["mac_ms_g"] == pytest.approx(list(truth.int4.mac_ms_g), rel=0.02)
    assert result.residuals[-1].median < 0.01


def test_a_calibrated_profile_keeps_what_was_not_measured():
    text = calibrated_toml(profile_text("raspberry-pi-5"), synthetic(), calibrate(synthetic()))
    before, after = tomllib.loads(profile_text("raspberry-pi-5")), tomllib.loads(text)
    for table in ("memory", "budget", "software", "power"):
        assert before[table] == after[table]
    assert "# vcgencmd pmic_read_adc" in text
    figure = after["performance"]["onnxruntime"]["read_gb_s"]
    assert figure["kind"] == "calibrated" and figure["value"] == pytest.approx(256 * MB / 21 / 1e6, rel=1e-3)
    assert "2026-01-01" in figure["source"] and "onnxruntime 1.32.0" in figure["source"]


def test_a_probe_of_another_architecture_is_refused():
    with pytest.raises(MerinoError, match="aarch64.*x86_64.*on the board itself"):
        check_same_machine(synthetic(), BOARD.model_copy(update={"arch": "x86_64"}))


def test_all_faults_of_a_probe_come_in_one_message(tmp_path):
    content = json.loads(synthetic().model_dump_json(by_alias=True))
    content["color"] = "red"
    del content["date"]
    content["measurements"][0]["ms"] = -1
    content["measurements"][1]["kind"] = "guess"
    path = tmp_path / "probe.json"
    path.write_text(json.dumps(content))
    with pytest.raises(MerinoError) as caught:
        read_probe(path)
    faults = ("color: unknown", "date: missing", "measurements[0].ms", "measurements[1].kind")
    for part in ("probe.json", *faults):
        assert part in str(caught.value), part


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 3}, "kv_heads is 3, must divide heads, 8"),
        ({"kv_heads": 0}, "kv_heads is 0, must divide heads, 8"),
        ({"heads": 0, "kv_heads": 0}, "kv_heads is 0, must divide heads, 0"),
        ({"columns": 513}, "heads is 8, must divide columns, 513"),
    ],
)
def test_a_row_of_attention_whose_heads_do_not_fit_is_refused(change, message, tmp_path):
    content = json.loads(synthetic().model_dump_json(by_alias=True))
    place, row = next((place, row) for place, row in enumerate(content["measurements"]) if row["kind"] == "attention")
    row.update(change)
    path = tmp_path / "probe.json"
    path.write_text(json.dumps(content))
    with pytest.raises(MerinoError, match=f"measurements.{place}.*{message}"):
        read_probe(path)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_what_is_no_probe_is_refused(text, tmp_path):
    path = tmp_path / "probe.json"
    path.write_text(text)
    with pytest.raises(MerinoError, match=r"probe\.json"):
        read_probe(path)
    with pytest.raises(MerinoError, match="merino probe -o"):
        read_probe(tmp_path / "absent.json")


@pytest.mark.parametrize(
    "left_out",
    [
        lambda row: row.kind == "linear",
        lambda row: row.kind == "attention" and row.kv_heads < row.heads,
    ],
    ids=["matmuls", "attention with shared heads"],
)
def test_a_probe_that_never_got_to_what_a_calibration_needs_is_refused(left_out):
    with pytest.raises(MerinoError, match="run `merino probe` again"):
        calibrate(synthetic(left_out=left_out))


def test_attention_of_one_query_and_of_each_cache_comes_back_from_a_probe():
    """Their coefficients are far from those of many queries over float32, as they are on boards."""
    truth = estimated(BOARD)
    caches = {
        f"{kv}_cache": CacheCoefficients(**{
            name: tuple(factor * value for value in getattr(truth, name))
            for name in ("attention_ms_per_gmac", "decode_attention_ms_per_gmac")
        })
        for kv, factor in (("int8", 3.0), ("int4", 6.0))
    }  # fmt: skip
    truth = truth.model_copy(update=caches)
    own = calibrated_board(synthetic(truth=truth)).performance.onnxruntime.coefficients
    assert own.decode_attention_ms_per_gmac == pytest.approx(truth.decode_attention_ms_per_gmac, rel=0.02)
    for kv in ("int8_cache", "int4_cache"):
        for name in ("attention_ms_per_gmac", "decode_attention_ms_per_gmac"):
            assert getattr(getattr(own, kv), name) == pytest.approx(getattr(getattr(truth, kv), name), rel=0.02)
    without = synthetic(truth=truth, left_out=lambda row: row.kv == "int4" and row.tokens > 1)
    own = calibrated_board(without).performance.onnxruntime.coefficients
    assert own.int8_cache and own.int4_cache is None, "half of a cache's rows say nothing of the other half"


@pytest.mark.slow
def test_this_machine_is_measured_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runs, output = [], []

    def short(path, seconds):
        result = board_probe.run_probe(path, min(seconds, 12)) | {"flags": []}
        runs.append(Path(path).write_text(json.dumps(result)))

    monkeypatch.setattr(host, "run_probe", short)
    monkeypatch.setattr(bandwidth, "buffer_bytes", lambda: 64 * MB)  # four caches of a server take half the time
    first, again = board("host", output.append), board("host", output.append)
    assert len(runs) == 1
    assert first.performance == again.performance
    own = first.performance.onnxruntime.coefficients
    assert own is not None and own.kind == "calibrated"
    assert len(output) == 3 and "measuring this machine" in output[0] and "kept in" in output[2]
    result = cost_model(first, InferenceShape("fp32", 128, 64)).predict(DECODER.operators)
    assert result.decode_ms > 0.1 and result.provenance == "calibrated"


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A function: the probes that this machine makes from now on, one after another, in an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    waiting = []

    def run_probe(path, _):
        Path(path).write_text(waiting.pop(0).model_dump_json(by_alias=True))

    monkeypatch.setattr(host, "run_probe", run_probe)
    monkeypatch.setattr(host.time, "strftime", lambda _: f"2026-{len(waiting)}")
    return waiting.extend


def kept(tmp_path):
    return sorted(tmp_path.rglob("probe-*.json"))


def test_this_machine_measured_again_counts_by_the_median(recorded, tmp_path):
    recorded([timed(1.2), timed(7.0), timed(1.0)])
    messages = []
    first = host.host_probes()
    assert host.host_probes() == first == [timed(1.2)]
    recalibrate("host", [], None, messages.append)
    assert "median of 2 probes" in messages[-1]
    recalibrate("host", [], None)
    assert joined(host.host_probes()).measurements == timed(1.2).measurements
    assert len(kept(tmp_path)) == 3, "nothing is lost"


def test_a_probe_of_a_busy_machine_is_used_once_and_not_kept(recorded, tmp_path):
    busy = timed(3.0).model_copy(update={"flags": ["busy"]})
    recorded([busy, timed(1.0)])
    messages = []
    assert host.host_probes(messages.append) == [busy] and kept(tmp_path) == []
    assert "busy" in messages[-2] and "does not keep it" in messages[-1] and "calibrate --board host" in messages[-1]
    assert host.host_probes() == [timed(1.0)] and len(kept(tmp_path)) == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == kept(tmp_path), "nothing else is left behind"


def test_calibrate_keeps_the_probe_of_a_busy_machine_and_says_how_to_undo_that(recorded, tmp_path):
    recorded([timed(3.0).model_copy(update={"flags": ["busy", "throttled"]})])
    messages = []
    recalibrate("host", [], None, messages.append)
    (path,) = kept(tmp_path)
    assert "busy and throttled" in messages[-2] and f"remove {path}" in messages[-1]


def timed(factor):
    """A probe all of whose rows took so many times as long."""
    probe = synthetic()
    rows = [row.model_copy(update={"ms": row.ms * factor}) for row in probe.measurements]
    return probe.model_copy(update={"measurements": rows})


def test_each_row_of_joined_probes_has_the_median_of_the_probes():
    both = joined([timed(1.0), timed(4.0), timed(1.5)])
    for row, true in zip(both.measurements, synthetic().measurements, strict=True):
        assert row.ms == pytest.approx(1.5 * true.ms)


def test_several_probes_of_one_board_are_fitted_together(tmp_path):
    paths = [tmp_path / name for name in ("one.json", "two.json", "other.json")]
    other = synthetic().model_copy(update={"machine": {**synthetic().machine, "board": "another"}})
    for path, probe in zip(paths, (synthetic(), synthetic(noise=0.3), other), strict=True):
        path.write_text(probe.model_dump_json(by_alias=True))
    both = joined([synthetic(), synthetic(noise=0.3)])
    residuals = recalibrate("raspberry-pi-5", paths[:2], tmp_path / "mine.toml").residuals
    assert residuals == calibrate(both).residuals != calibrate(synthetic()).residuals
    with pytest.raises(MerinoError, match="different machines"):
        recalibrate("raspberry-pi-5", paths, tmp_path / "none.toml")
    assert not (tmp_path / "none.toml").exists()


@pytest.mark.parametrize(
    ("device", "probe", "out", "message"),
    [("host", "probe.json", None, "takes no --probe"), ("raspberry-pi-5", None, "out.toml", "needs --probe FILE"),
     ("raspberry-pi-5", "probe.json", None, "-o FILE"), ("pi-9", "probe.json", "out.toml", "No device profile")],
)  # fmt: skip
def test_what_calibrate_cannot_do_is_said(device, probe, out, message, tmp_path):
    (tmp_path / "probe.json").write_text(synthetic().model_dump_json(by_alias=True))
    probes = [tmp_path / probe] if probe else []
    with pytest.raises(MerinoError, match=message):
        recalibrate(device, probes, tmp_path / out if out else None)
    assert not (tmp_path / "out.toml").exists()


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
