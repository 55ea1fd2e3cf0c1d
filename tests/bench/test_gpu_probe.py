"""`probe --backend tensorrt` on the stand-in of both versions: its rows, its faults, nothing left behind."""
import json
import os

import pytest

from merino_bench.probe import gpu, timing
from merino_bench.probe.run import run_probe
from merino_runtime.backends import choice
from merino_runtime.backends.choice import backend_of_machine
from merino_runtime.errors import MerinoError
from tests.sample_gpu_probe import SPEEDS, StandInClock, probed
from tests.tensorrt_stand_in import VERSIONS, Gpu, put_in

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("version", VERSIONS)
def test_each_chain_takes_the_devices_own_time(version, tmp_path, monkeypatch):
    path = tmp_path / "probe.json"
    result = probed(version, path, monkeypatch)
    assert json.loads(path.read_text()) == result and os.listdir(str(tmp_path)) == ["probe.json", "probe.json.cache"]
    assert (result["backend"], result["dialect"], result["left_out"]) == ("tensorrt", "portable", [])
    assert result["gpu"]["name"] == "NVIDIA Stand-In X1" and result["gpu"]["compute_capability"] == "5.3"
    assert result["machine"]["versions"]["tensorrt"] == version
    chains = {(row["format"], row["rows"], row["count"], row["tokens"]): row
              for row in result["measurements"] if row["kind"] == "chain"}
    assert set(chains) == {(form, side, count, tokens) for form in gpu.PRECISIONS
                           for side, count in gpu.CHAINS for tokens in (1, gpu.TOKENS)}
    for (form, side, count, tokens), row in chains.items():
        half = form == "fp16"
        assert row["weight_bytes"] == 4 * side * side * count // (2 if half else 1)
        plan = {"flags": ["FP16"] if half else [], "weight_bytes": 4 * side * side * count, "matmuls": count}
        truth_ms = 1e3 * (SPEEDS.run_s(plan, tokens) + SPEEDS.copy_s(4 * side))
        assert row["ms"] == pytest.approx(truth_ms, rel=1e-4, abs=2e-5) and row["repeats"] >= 3
    (memory,) = result["resident"]
    assert 0 < memory["imports_mb"] < memory["open_mb"] < memory["peak_mb"] + 1 and memory["gpu_mb"] >= 0


def test_a_gpu_that_fails_at_any_call_leaves_no_probe_and_nothing_on_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(gpu, "CHAINS", gpu.CHAINS[1:2])
    monkeypatch.setattr(gpu, "MOST_RUN_S", 0.0)
    sound = Gpu()
    put_in(sound, "8.2.1.8", monkeypatch)
    monkeypatch.setattr(timing, "time", StandInClock(sound))  # which stands still: each run has as many calls
    run_probe(str(tmp_path / "sound.json"), backend="tensorrt")
    assert sound.calls[-4:] == ["cudaStreamSynchronize", "cudaFreeHost", "cudaFree", "cudaStreamDestroy"]
    last = len(sound.calls) - 4  # what fails in freeing at the end spoils no figure
    for fail_at in range(0, last, last // 12):
        broken = Gpu()
        broken.fail_at = fail_at
        put_in(broken, "8.2.1.8", monkeypatch)
        with pytest.raises(MerinoError, match="GPU|CUDA|TensorRT"):
            run_probe(str(tmp_path / "broken.json"), backend="tensorrt")
        assert broken.violations == [] and broken.left() == [], fail_at
    assert sorted(os.listdir(str(tmp_path))) == ["cache", "sound.json"]


def test_without_a_driver_the_probe_says_so(tmp_path, monkeypatch):
    put_in(Gpu(driver=0), "10.3.0", monkeypatch)
    with pytest.raises(MerinoError, match="no NVIDIA driver"):
        run_probe(str(tmp_path / "probe.json"), backend="tensorrt")


def test_a_jetson_with_tensorrt_is_probed_in_it_unless_asked_otherwise(monkeypatch):
    messages = []
    monkeypatch.delenv(choice.BACKEND_VARIABLE, raising=False)
    assert backend_of_machine(None, messages.append) == "onnxruntime" and not messages
    put_in(Gpu(), "10.3.0", monkeypatch)
    monkeypatch.setattr(choice, "is_jetson", lambda: True)
    monkeypatch.setattr(choice, "is_installed", lambda _: True)
    assert backend_of_machine(None, messages.append) == "tensorrt" and "--backend onnxruntime" in messages[0]
    assert backend_of_machine("onnxruntime") == "onnxruntime"
    with pytest.raises(MerinoError, match="allowed: onnxruntime, tensorrt"):
        backend_of_machine("cuda")
