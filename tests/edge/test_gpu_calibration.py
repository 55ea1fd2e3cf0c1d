"""From the probe of a GPU to `performance.tensorrt`: the figures of a device of known times come back."""

import json
import tomllib

import pytest
from few_examples import examples
from hypothesis import given
from hypothesis import strategies as st

from merino_edge.calibration.command import recalibrate
from merino_edge.calibration.gpu_fit import fit_gpu
from merino_edge.calibration.probe import PROBE_SCHEMA, Probe
from merino_edge.profiles.reading import load_profile
from merino_runtime.errors import MerinoError
from tests.sample_gpu_probe import SPEEDS, probed
from tests.sample_probe import row
from tests.tensorrt_stand_in import VERSIONS, Speeds

MODEL = "NVIDIA Jetson Nano Developer Kit"


def as_of(probe, model=MODEL, mode="MAXN (0)", **changes):
    """The probe as the board would have written it."""
    return probe | {"machine": probe["machine"] | {"arch": "aarch64", "board": model}, "power_mode": mode} | changes


def written(folder, probe, name="probe.json"):
    path = folder / name
    path.write_text(json.dumps(probe))
    return path


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return as_of(probed(VERSIONS[0], tmp_path_factory.mktemp("nano") / "probe.json", patch))


def test_the_devices_figures_come_back_within_one_percent(nano, tmp_path):
    fit = recalibrate("jetson-nano", [written(tmp_path, nano)], tmp_path / "mine.toml")
    board, shipped = load_profile(tmp_path / "mine.toml"), load_profile("jetson-nano")
    speed = board.performance.tensorrt
    for name, truth in SPEEDS._asdict().items():
        figure = getattr(speed, name)
        assert figure.value == pytest.approx(truth, rel=0.01), name
        assert figure.kind == "calibrated" and "tensorrt 8.2.1.8" in figure.source and "MAXN (0)" in figure.source
    assert speed.runtime_mb.value == pytest.approx(nano["resident"][0]["open_mb"], rel=1e-3)
    assert speed.power_mode == "10W" and speed.busy_w == shipped.performance.tensorrt.busy_w
    assert board.performance.onnxruntime == shipped.performance.onnxruntime and board.backend == "tensorrt"
    assert {residual.kind for residual in fit.residuals} >= {"chain fp16 decode", "chain fp32 prefill", "all"}
    assert max(residual.worst for residual in fit.residuals) < 0.03 and fit.errors == {}


positive = st.floats(1, 100)


@examples(40)
@given(positive, st.floats(10, 120), st.floats(1, 2), st.floats(1, 40), st.floats(20, 500), st.floats(0.5, 20))
def test_any_device_that_computes_longer_than_it_reads_comes_back(read, flops_a_byte, more, launch, step, copy):
    speeds = Speeds(read, flops_a_byte * read, more * flops_a_byte * read, launch, step, copy)
    rows = []
    for side, count in ((1024, 16), (64, 8), (64, 64)):
        for form in ("fp32", "fp16"):
            size = 4 * side * side * count
            plan = {"flags": ["FP16"] if form == "fp16" else [], "weight_bytes": size, "matmuls": count}
            rows += [row("chain", format=form, rows=side, columns=side, count=count, tokens=tokens,
                         weight_bytes=size // (2 if form == "fp16" else 1), ms=1e3 * speeds.run_s(plan, tokens))
                     for tokens in (1, 256)]  # fmt: skip
    rows += [row("copy", weight_bytes=size, ms=0.01 + 1e3 * speeds.copy_s(size)) for size in (2**16, 2**22)]
    memory = {"imports_mb": 40, "open_mb": 300, "peak_mb": 310, "gpu_mb": 170, "kind": "call", "format": "fp32",
              "weight_bytes": 0}  # fmt: skip
    probe = Probe.model_validate({
        "schema": PROBE_SCHEMA, "backend": "tensorrt", "date": "2026-01-01", "seconds": 50, "cores": 4, "isa": [],
        "machine": {"board": MODEL, "arch": "aarch64"}, "last_level_cache_mb": 2.0, "memory_mb": 4000,
        "dialect": "portable", "flags": [], "others_cpu_share": 0.0, "left_out": [], "resident": [memory],
        "measurements": rows,
    })  # fmt: skip
    results = {name: figure["value"] for name, figure in fit_gpu(probe)[0].items()}
    for name, truth in speeds._asdict().items():
        assert results[name] == pytest.approx(truth, rel=0.01), name
    assert (results["runtime_mb"], results["cuda_context_mb"]) == (300, 170)


def test_a_probe_of_another_backend_board_or_mode_is_refused_by_name(nano, tmp_path):
    gpu, out = written(tmp_path, nano), tmp_path / "x.toml"
    refused = [
        ("raspberry-pi-4", gpu, None, "made with tensorrt, but Raspberry Pi 4.* has only onnxruntime"),
        ("jetson-nano", gpu, "onnxruntime", "made with tensorrt, not with --backend onnxruntime"),
        ("raspberry-pi-4", gpu, "tensorrt", "no performance.tensorrt: choose onnxruntime"),
        ("jetson-orin-nano", gpu, None, f"the probed machine is '{MODEL}', the profile is of NVIDIA Jetson Orin Nano"),
    ]
    changes = {
        "mode": (as_of(nano, mode="5W_EXTRA (7)"), "power mode 5W_EXTRA, the profile has 10W, 5W"),
        "arch": (nano | {"machine": nano["machine"] | {"arch": "x86_64"}}, "the probed machine is x86_64"),
        "fp16": (nano | {"measurements": [row for row in nano["measurements"] if row["format"] != "fp16"]}, "lacks"),
        "memory": (nano | {"resident": []}, "lacks copies to the host or the memory"),
        "time": (nano | {"measurements": [row | {"ms": 1} for row in nano["measurements"]]}, "took no longer"),
    }
    refused += [("jetson-nano", written(tmp_path, got, name), None, text) for name, (got, text) in changes.items()]
    for device, path, backend, text in refused:
        with pytest.raises(MerinoError, match=text):
            recalibrate(device, [path], out, backend=backend)
        assert not out.exists()
    with pytest.raises(MerinoError, match="--device host takes no .*--backend tensorrt"):
        recalibrate("host", [], None, backend="tensorrt")


def test_a_mode_that_the_profile_has_stands_in_the_file(nano, tmp_path):
    for mode, named in (("5W (1)", "5W"), (None, "10W")):
        recalibrate("jetson-nano", [written(tmp_path, as_of(nano, mode=mode))], tmp_path / "mine.toml")
        assert tomllib.loads((tmp_path / "mine.toml").read_text())["performance"]["tensorrt"]["power_mode"] == named


def test_a_board_over_ssh_is_asked_for_the_backend_of_its_profile(nano, tmp_path):
    calls = []

    def search(profile):
        calls.append(profile.backend)
        return Probe.model_validate(nano)

    recalibrate("jetson-nano", [], tmp_path / "mine.toml", probe_board=search)
    with pytest.raises(MerinoError, match="not with --backend onnxruntime"):
        recalibrate("jetson-nano", [], tmp_path / "other.toml", probe_board=search, backend="onnxruntime")
    assert calls == ["tensorrt", "onnxruntime"]
